"""One implementation in a benchmark: its process, its turns, and their results."""

import statistics
import time
from collections import defaultdict
from typing import Any

from gpt2_parity.bench.roofline import Rates
from gpt2_parity.bench.setup import Setup
from gpt2_parity.bench.worker import VERIFIED
from gpt2_parity.bench.workload import Workload
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract import limits
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import FURTHER, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.reference.records import shape_of
from gpt2_parity.run.supervisor import Lost, Refused, WorkerProcess
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.judge import Judge

DECODE_SECONDS = 2.0  # about the longest sample of decode, unless one token takes longer
LEAST_SECONDS = 0.1  # a sample repeats its call for at least so long; the median counts


class Participant:
    """One implementation, its process, and its results."""

    def __init__(self, found: Found, setup: Setup):
        self.found, self.setup = found, setup
        self.verdict, self.detail = "verified", ""
        self.samples: dict[Workload, list[float]] = defaultdict(list)
        self.rates: dict[Workload, list[Rates]] = defaultdict(
            list
        )  # of the machine, before and after each sample
        self.fresh: dict[str, list[float]] = defaultdict(
            list
        )  # samples of the fresh processes, by metric
        self.failed: dict[Workload, tuple[str, str]] = {}
        self.decoded: dict[Workload, int] = {}
        self.ids: dict[Workload, list[list[list[int]]]] = defaultdict(list)
        self.how: dict[Workload, str] = {}
        self.imported: dict[str, Any] = {"files": {}, "packages": {}}  # as run/imported.py has it
        self.offered: list[Target] = []
        self.unseen: list[str] = []  # devices that it declares and that are not to be seen
        self.worker: WorkerProcess | None = None

    @property
    def running(self) -> bool:
        return self.verdict == "verified"

    def kept(self, workload: Workload) -> dict[str, Any]:
        """All that it has of a workload, as JSON, and how it is itself."""
        return {
            "verdict": [self.verdict, self.detail],
            "failed": self.failed.get(workload),
            "samples": self.samples.get(workload, []),
            "rates": self.rates.get(workload, []),
            "fresh": self.fresh if workload.phase == "start" else {},
            "decoded": self.decoded.get(workload),
            "ids": self.ids.get(workload, []),
            "how": self.how.get(workload),
        }

    def restore(self, workload: Workload, kept: dict[str, Any]) -> None:
        """Take over what kept gave before a benchmark was interrupted."""
        self.verdict, self.detail = kept["verdict"]
        self.samples[workload] = kept["samples"]
        self.rates[workload] = [Rates(*each) for each in kept["rates"]]
        self.ids[workload] = kept["ids"]
        if kept["fresh"]:
            self.fresh = defaultdict(list, kept["fresh"])
        if kept["failed"]:
            self.failed[workload] = tuple(kept["failed"])
        if kept["decoded"]:
            self.decoded[workload] = kept["decoded"]
        if kept["how"]:
            self.how[workload] = kept["how"]

    def is_out(self, workload: Workload) -> bool:
        return workload in self.failed or not self.running

    def end(self, verdict: str, detail: str) -> None:
        """End its part in the benchmark: all its figures are dropped."""
        self.verdict, self.detail = verdict, detail
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None

    def begin(self) -> None:
        """Start its process, which loads the model."""
        self.worker = self.setup.start(self.setup.job(self.found))

    def wait_until_loaded(self) -> None:
        """Wait until it has loaded the model, and request what it offers."""
        assert self.worker is not None
        target = self.setup.settings.target
        try:
            self.worker.receive()
            hello = self.worker.request("hello")
        except Refused as error:
            self.end("skipped" if error.kind == "import" else "crashed", str(error))
            return
        except Lost as error:
            self.end("crashed", str(error))
            return
        self.imported, self.generates = hello["imported"], hello["generates"]
        self.unseen = hello["unseen"]
        self.offered = [Target(*offered) for offered in hello["offered"]]
        if target not in self.offered:
            offered = ", ".join(map(str, self.offered)) or "nothing"
            self.end("skipped", f"{target} is not offered (offered: {offered})")

    def verify(self, when: str, further: int = FURTHER) -> None:
        """Run the checks on the records, with so many tokens of generate. A failure ends its part."""
        reply = self.attempt(None, "verify", further=further)
        if reply is None:
            return
        expected = self.setup.expected
        cases = tuple(shape_of(record) for record in expected.records)
        offers = tuple(each for each in CAPABILITIES if each.name in reply["plan"]["offers"])
        plan = Plan(expected.hparams, cases, tuple(reply["plan"]["taps"]), offers, further)
        plan = plan._replace(reloads=reply["plan"]["reloads"])
        measured = [(check, Measurement(**found)) for check, found in reply["measured"]]
        judge = Judge(self.found.name, self.setup.settings.target, self.setup.model.name)
        rows = [row for row in judge.rows(plan, measured, {}) if row.check in VERIFIED]
        wrong = [row for row in rows if row.verdict == "fail"]
        if wrong or not any(row.verdict == "pass" for row in rows):
            row = wrong[0] if wrong else None
            shown = explain.detail(row) if row else ""
            detail = f"{row.check} {row.case} {row.metric} {row.value}: {shown}" if row else "no pass"
            self.end("wrong output", f"{when} the timing: {detail}")

    def attempt(self, workload: Workload | None, op: str, **request: Any) -> dict[str, Any] | None:
        """Send a request. Where it fails, return None and end the workload, or all if that is None."""
        if self.worker is None:
            return None
        try:
            return self.worker.request(op, **request)
        except Refused as error:
            if workload is None:
                self.end("crashed", f"{op}: {error}")
            else:
                self.failed[workload] = ("crashed", str(error))
        except Lost as error:
            self.end("crashed", f"{workload or op}: {error}")
        return None

    def warm(self, workload: Workload) -> None:
        """Run a workload untimed: compile, touch memory, and find how many tokens fit in a sample."""
        if workload.phase == "prefill":
            self.time(workload, keep=False)
        if workload.phase != "decode":
            return
        if workload in self.decoded:  # by the rounds before an interruption: they must be alike
            self.time(workload, keep=False)
            return
        self.decoded[workload] = min(2, workload.n)
        for _ in range(2):  # the first one compiles
            pace = self.time(workload, keep=False)
        if pace is None:
            return
        fits = int(DECODE_SECONDS / max(pace, 1e-9))
        self.decoded[workload] = max(1, min(workload.n, fits))
        if self.decoded[workload] > 2:
            self.time(workload, keep=False)

    def time(self, workload: Workload, keep: bool = True) -> float | None:
        """Take one sample and check its results. Returns seconds, for decode those of one token."""
        if self.is_out(workload):
            return None
        if workload.phase == "start":
            return self._start(workload, keep)
        taken: list[float] = []
        began = time.perf_counter()
        while not taken or time.perf_counter() - began < LEAST_SECONDS:
            if (reply := self._call(workload)) is None:
                return None
            self.check(workload, reply)
            taken.append(float(reply["seconds"]))
        sample = statistics.median(taken)
        if keep:
            self.samples[workload].append(sample)
        return sample

    def _call(self, workload: Workload) -> dict[str, Any] | None:
        if workload.phase == "prefill":
            return self.attempt(workload, "prefill", n=workload.n, batch=workload.batch)
        n = self.decoded[workload]
        return self.attempt(workload, "decode", n_past=workload.n_past, n=n, batch=workload.batch)

    def check(self, workload: Workload, reply: dict[str, Any]) -> None:
        """Check a timed call's logits; its token ids wait until all timing is over."""
        if "ids" in reply:
            self.how[workload] = reply["how"]
            rows = len(reply["ids"]), {len(row) for row in reply["ids"]}
            if rows != (workload.batch, {self.decoded[workload] + 1}):
                self.end("wrong output", f"{workload}: ids of the wrong shape")
            elif reply["ids"] not in self.ids[workload]:
                self.ids[workload].append(reply["ids"])
            return
        units = self.setup.expected.units(reply["difference"])
        if not units <= limits.NOISE.most:
            self.end(
                "wrong output", f"{workload}: a timed call's logits are {units:.3g} noise units off"
            )

    def _start(self, workload: Workload, keep: bool) -> float | None:
        """Time a fresh process from its start to its first logits, then measure its memory."""
        job = self.setup.job(self.found) | {"first": workload.n}
        resident, self.worker = self.worker, self.setup.start(job)
        try:
            self.worker.receive()
            taken = time.perf_counter() - self.worker.started
            memory = self.worker.request("memory")
            first = self.worker.request("agree")
            self.check(workload, first)
        except (Lost, Refused) as error:
            self.end("crashed", f"{workload}: {error}")
            return None
        finally:
            self.close()
            if self.running:
                self.worker = resident
            elif resident is not None:
                resident.kill()
        if keep:
            self.samples[workload].append(taken)
            for name, value in {**memory, "load": first["load_seconds"]}.items():
                if value is not None:
                    self.fresh[name].append(float(value))
        return taken

    def check_ids(self) -> None:
        """Compare every sequence of tokens that a timed call chose with the oracle."""
        for workload, sequences in self.ids.items():
            for ids in sequences:
                if self.running and (fault := self.setup.expected.unlikely(workload.n_past, ids)):
                    self.end("wrong output", f"{workload}: {fault}")
