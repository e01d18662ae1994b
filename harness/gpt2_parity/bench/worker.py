"""The process in which one implementation is timed: python -m harness.bench.worker JOB.json

It stays alive and does what its parent asks, one JSON line in and one out, so that several
implementations can take turns in one run. What an implementation prints goes to standard error:
the pipe to the parent is out of its reach. Nothing here judges.

This module is what a fresh process pays for before the implementation is imported, so whatever
timing does not need is imported where it is used.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation import discovery
from gpt2_parity.model import weight_layout

Reply = dict[str, Any]


class Timed:
    """One implementation, loaded on one target, with the tokens that all timing is done on."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.hparams, self.target = job, HParams(**job["hparams"]), Target(*job["target"])
        self.impl: Any = discovery.Found(**job["implementation"]).load()
        self.truth = safetensors_mmap.read(Path(job["truth"]))  # tokens [1, n], positions, logits there
        self.offered = [Target(*target) for target in self.impl.targets()]
        if self.target in self.offered:
            weights, fresh = Path(job["weights"]), bool(job.get("first"))
            params = weight_layout.params_for(
                self.impl, weights, known=fresh
            )  # not what a start is timed for
            start = time.perf_counter()
            self.model = self.impl.load(params, self.hparams, **self.target._asdict())
            self.load_seconds = time.perf_counter() - start

    def hello(self) -> Reply:
        """What it offers."""
        from gpt2_parity.run.worker import versions

        return {"offered": self.offered, "generates": self.generates, "versions": versions()}

    @property
    def generates(self) -> bool:
        return getattr(self.impl, "generate", None) is not None

    def tokens(self, n: int, batch: int = 1) -> np.ndarray:
        """The first n of the tokens [batch, n], all rows the same."""
        return np.ascontiguousarray(np.repeat(self.truth["tokens"][:, :n], batch, axis=0))

    def prefill(self, n: int, batch: int = 1) -> Reply:
        """Seconds from tokens to the logits of every position on the host, and how wrong they are."""
        tokens = self.tokens(n, batch)
        start = time.perf_counter()
        logits = self.impl.numpy(self.impl.forward(self.model, tokens)[0])
        taken = time.perf_counter() - start
        return {"seconds": taken, "difference": self.difference(logits, n, batch)}

    def begin(self, n: int) -> None:
        """The first logits of a process, kept until the parent, its clock stopped, asks about them."""
        self.first = self.impl.numpy(self.impl.forward(self.model, self.tokens(n))[0])

    def agree(self) -> Reply:
        """How wrong the first logits were, and what part of the time load took."""
        difference = self.difference(self.first, self.first.shape[1], 1)
        return {"difference": difference, "load_seconds": self.load_seconds}

    def difference(self, logits: np.ndarray, n: int, batch: int) -> float:
        """Greatest difference from the float64 truth at the positions that are kept of it."""
        if logits.shape != (batch, n, self.hparams.n_vocab):
            return float("nan")
        kept = self.truth["positions"][self.truth["positions"] < n]
        want = self.truth["logits"][:, : len(kept)]
        return float(np.max(np.abs(logits[:, kept] - want)))

    def decode(self, n_past: int, n: int, batch: int = 1) -> Reply:
        """Seconds for each of n tokens after n_past, the ids chosen, and how it was done."""
        tokens = self.tokens(n_past, batch)
        if not self.generates:
            return self._decode_by_forward(tokens, n)
        # a copy for each call, for an implementation may write into what it is given;
        # a first call after a rest may find its memory given back and caches cold: it is not timed, or
        # it would make the prompt, which is subtracted, dearer than it is in the call that decodes
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
        """The checks "logits" and "greedy" on the golden records, on the model that is timed."""
        from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
        from gpt2_parity.contract.rows import plain
        from gpt2_parity.implementation.loaded import Loaded
        from gpt2_parity.reference.records import Record
        from gpt2_parity.run.worker import plan_as_json

        records = [
            Record(name, safetensors_mmap.Glances(Path(path)), self.hparams.n_layer)
            for name, path in self.job["records"].items()
        ]
        params = safetensors_mmap.Glances(Path(self.job["weights"]))
        loaded = Loaded(self.impl, self.model, self.target, params, self.hparams, records)
        plan = loaded.plan(CAPABILITIES)._replace(further=further)
        measured = [
            (name, plain(m._asdict())) for name in VERIFIED for m in CHECKS[name].measure(loaded, plan)
        ]
        return {"plan": plan_as_json(plan), "measured": measured}

    def memory(self) -> Reply:
        """Bytes: the greatest resident set so far, what is its own now, and on the GPU."""
        reply = {"peak_rss": status("VmHWM"), "anonymous": status("RssAnon")}
        return reply | ({"gpu": gpu_memory()} if self.target.device != "cpu" else {})


VERIFIED = ("logits", "greedy")


class Bare:
    """No implementation: the machine's own rates."""

    def __init__(self, job: dict[str, Any]):
        self.hparams, self.target = HParams(**job["hparams"]), Target(*job["target"])

    def rates(self) -> Reply:
        from gpt2_parity.bench import roofline

        return roofline.rates(self.target.device, self.target.dtype, self.hparams)._asdict()


def status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status; None where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def gpu_memory() -> int | None:
    """Bytes that this process holds on GPUs, by NVML; None without nvidia-ml-py or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        found = [p for d in devices for p in pynvml.nvmlDeviceGetComputeRunningProcesses(d)]
    except pynvml.NVMLError:
        return None
    # a container may show other process ids, or none: then nothing is known
    return sum(p.usedGpuMemory or 0 for p in found if p.pid == os.getpid()) or None


def channel() -> tuple[Iterator[str], Callable[[Reply], None]]:
    """The parent's requests and the way to answer; from here on print() goes to standard error."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def reply(value: Reply) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    return requests, reply


def main(job_path: str) -> None:
    """Serve until the parent closes the pipe. A job with ``first`` begins with logits of so many."""
    sys.path.append(os.getcwd())  # a module beside the user; last, for its json.py is not ours
    requests, reply = channel()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    if job["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cpus"])
    try:
        loaded: Any = Timed(job) if job["implementation"] else Bare(job)
        if job.get("first"):
            loaded.begin(job["first"])
    except Exception as error:
        reply(failure(error))
        return
    reply({})  # the parent's clock stops here
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(loaded, request.pop("op"))(**request)
        except Exception as error:  # ends this request and no other
            answer = failure(error)
        reply(answer)


def failure(error: Exception) -> Reply:
    from gpt2_parity.run.worker import explain

    return {"error": explain(error), "missing": isinstance(error, ImportError)}


if __name__ == "__main__":
    main(sys.argv[1])
