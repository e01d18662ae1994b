"""The process in which one implementation is timed: python -m gpt2_parity.bench.worker JOB.json LIFELINE

It stays alive and answers one request at a time, so that several implementations can take turns in one
run. Nothing here judges.

The time to import this module is part of what the start of a fresh process is timed for. So what timing
does not need is imported where it is used.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation import discovery
from gpt2_parity.implementation.without_cache import with_cache
from gpt2_parity.model import weight_layout
from gpt2_parity.run import child

Reply = dict[str, Any]


class TimedModel:
    """One implementation, loaded on one target, and the tokens that are timed."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.hparams, self.target = job, HParams(**job["hparams"]), Target(*job["target"])
        self.used = gpu_used(self.target)
        self.impl: Any = with_cache(discovery.Found(**job["implementation"]).load())
        # tokens [1, n], positions [kept], and logits [1, kept, n_vocab] there
        self.expected = safetensors_mmap.read(Path(job["expected"]))
        self.offered = [Target(*target) for target in self.impl.targets()]
        if self.target in self.offered:
            weights, fresh = Path(job["weights"]), bool(job.get("first"))
            params = weight_layout.params_for(self.impl, weights, known=fresh)
            start = time.perf_counter()
            self.model = self.impl.load(params, self.hparams, **self.target._asdict())
            self.load_seconds = time.perf_counter() - start

    def hello(self) -> Reply:
        """The targets and capabilities that it offers."""
        from gpt2_parity.run import host, imported

        unseen = host.unseen(target.device for target in self.offered)
        if self.target.device == "cuda" and self.target in self.offered:
            logits = self.impl.forward(self.model, self.tokens(1))[0]
            unseen += ["cuda"] * (host.seen(logits, self.used).there is False)
        found = {"offered": self.offered, "generates": self.generates, "unseen": sorted(set(unseen))}
        return found | {"imported": imported.now()}

    @property
    def generates(self) -> bool:
        return getattr(self.impl, "generate", None) is not None

    def tokens(self, n: int, batch: int = 1) -> np.ndarray:
        """The first n of the tokens [batch, n], all rows the same."""
        return np.ascontiguousarray(np.repeat(self.expected["tokens"][:, :n], batch, axis=0))

    def prefill(self, n: int, batch: int = 1) -> Reply:
        """Seconds from tokens to the logits of every position on the host, and their error."""
        tokens = self.tokens(n, batch)
        start = time.perf_counter()
        logits = self.impl.numpy(self.impl.forward(self.model, tokens)[0])
        taken = time.perf_counter() - start
        return {"seconds": taken, "difference": self.difference(logits, n, batch)}

    def begin(self, n: int) -> None:
        """Compute the first logits of this process; ``agree`` checks them when no clock is running."""
        self.first = self.impl.numpy(self.impl.forward(self.model, self.tokens(n))[0])

    def agree(self) -> Reply:
        """The error of the first logits, and the seconds that load took."""
        difference = self.difference(self.first, self.first.shape[1], 1)
        return {"difference": difference, "load_seconds": self.load_seconds}

    def difference(self, logits: np.ndarray, n: int, batch: int) -> float:
        """Greatest difference of logits [batch, n, n_vocab] from float64, at the kept positions."""
        if logits.shape != (batch, n, self.hparams.n_vocab):
            return float("nan")
        kept = self.expected["positions"][self.expected["positions"] < n]
        want = self.expected["logits"][:, : len(kept)]
        return float(np.max(np.abs(logits[:, kept] - want)))

    def decode(self, n_past: int, n: int, batch: int = 1) -> Reply:
        """Seconds for each of n tokens after n_past, the ids chosen, and how they were timed."""
        tokens = self.tokens(n_past, batch)
        if not self.generates:
            return self._decode_by_forward(tokens, n)
        # Each call gets a copy, since an implementation may write into its input. The first call after a
        # rest is not timed: its memory may have been returned and caches are cold, so the prompt, whose
        # time is subtracted, would take longer than it does in the call that decodes.
        self.impl.generate(self.model, tokens.copy(), 1)
        start = time.perf_counter()
        self.impl.generate(self.model, tokens.copy(), 1)
        middle = time.perf_counter()
        ids = np.array(self.impl.generate(self.model, tokens.copy(), 1 + n))
        taken = (time.perf_counter() - middle) - (middle - start)
        return {"seconds": taken / n, "ids": ids.tolist(), "how": "generate(1 + n) less generate(1)"}

    def _decode_by_forward(self, tokens: np.ndarray, n: int) -> Reply:
        logits, past = self.impl.forward(self.model, tokens)
        ids = [self.impl.numpy(logits)[:, -1].argmax(-1).astype(np.int32)]
        start = time.perf_counter()
        for _ in range(n):
            logits, past = self.impl.forward(self.model, ids[-1][:, None].copy(), past)
            ids.append(self.impl.numpy(logits)[:, -1].argmax(-1).astype(np.int32))
        taken = time.perf_counter() - start
        return {"seconds": taken / n, "ids": np.stack(ids, 1).tolist(), "how": "forward with past"}

    def verify(self, further: int) -> Reply:
        """Run the checks VERIFIED on the golden records, on the model that is timed."""
        from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
        from gpt2_parity.contract.rows import plain
        from gpt2_parity.implementation.loaded import Loaded
        from gpt2_parity.reference.records import Record
        from gpt2_parity.run.worker import plan_as_json

        records = [
            Record(name, safetensors_mmap.MappedArrays(Path(path)), self.hparams.n_layer)
            for name, path in self.job["records"].items()
        ]
        params = safetensors_mmap.MappedArrays(Path(self.job["weights"]))
        loaded = Loaded(self.impl, self.model, self.target, params, self.hparams, records)
        plan = loaded.plan(CAPABILITIES)._replace(further=further)
        measured = [
            (name, plain(m._asdict())) for name in VERIFIED for m in CHECKS[name].measure(loaded, plan)
        ]
        return {"plan": plan_as_json(plan), "measured": measured}

    def memory(self) -> Reply:
        """Bytes: the greatest resident set so far, anonymous memory now, and memory on the GPU."""
        reply = {"peak_rss": status("VmHWM"), "anonymous": status("RssAnon")}
        if self.target.device == "cpu":
            return reply
        from gpt2_parity.run import host

        return reply | {"gpu": host.gpu_memory()}


def gpu_used(target: Target) -> int | None:
    """Bytes in use on GPUs before an implementation is imported, if it is to use one."""
    if target.device != "cuda":
        return None
    from gpt2_parity.run import host

    return host.gpu_used()


VERIFIED = ("logits", "greedy")


class BareMachine:
    """Measures the machine itself, without an implementation."""

    def __init__(self, job: dict[str, Any]):
        self.hparams, self.target = HParams(**job["hparams"]), Target(*job["target"])

    def rates(self) -> Reply:
        from gpt2_parity.bench import roofline

        return roofline.rates(self.target.device, self.target.dtype, self.hparams)._asdict()


def status(field: str) -> int | None:
    """Bytes in a field of /proc/self/status, or None where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def main(job_path: str, lifeline: str) -> None:
    """Serve until the parent closes the pipe. job["first"]: begin with logits of so many tokens."""
    job = child.begin(job_path, lifeline)

    def load() -> TimedModel | BareMachine:
        if not job["implementation"]:
            return BareMachine(job)
        timed = TimedModel(job)
        if job.get("first"):
            timed.begin(job["first"])
        return timed

    child.serve(load)


if __name__ == "__main__":
    main(*sys.argv[1:])
