"""One implementation in a benchmark: its process, its turns, and what came of them."""

import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Protocol

from gpt2_parity.bench.expected import Expected
from gpt2_parity.bench.process import Lost, Refused, Worker
from gpt2_parity.bench.roofline import Rates
from gpt2_parity.bench.worker import VERIFIED
from gpt2_parity.bench.workload import Plans, Workload
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract import limits
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import FURTHER, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model.catalogue import Model
from gpt2_parity.reference.records import shape_of
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.judge import Judge

DECODE_SECONDS = 2.0  # a sample of decode is cut to about so long, down to one token
LEAST_SECONDS = 0.1  # of calls in a sample: what is shorter is called again, and the median counts


class Session(Protocol):
    """The run that it takes part in."""

    model: Model
    plans: Plans
    folder: Path
    truth: Expected

    def job(self, found: Found | None) -> dict[str, Any]:
        """What its process is told."""


class Contestant:
    """One implementation, its process, and what came of it."""

    def __init__(self, found: Found, session: "Session"):
        self.found, self.session = found, session
        self.verdict, self.detail = "verified", ""
        self.samples: dict[Workload, list[float]] = defaultdict(list)
        self.rates: dict[Workload, list[Rates]] = defaultdict(list)  # the machine's, around each sample
        self.fresh: dict[str, list[float]] = defaultdict(list)  # of the fresh processes
        self.failed: dict[Workload, tuple[str, str]] = {}
        self.decoded: dict[Workload, int] = {}
        self.ids: dict[Workload, list[list[list[int]]]] = defaultdict(list)
        self.how: dict[Workload, str] = {}
        self.versions: dict[str, str] = {}
        self.offered: list[Target] = []
        self.worker: Worker | None = None

    @property
    def running(self) -> bool:
        return self.verdict == "verified"

    def is_out(self, workload: Workload) -> bool:
        return workload in self.failed or not self.running

    def end(self, verdict: str, detail: str) -> None:
        """It is out: no figure of it will stand."""
        self.verdict, self.detail = verdict, detail
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def begin(self) -> None:
        """Start its process, which loads the model."""
        self.worker = Worker(self.session.job(self.found), self.session.folder, self.session.plans)

    def greet(self) -> None:
        """Wait until it has loaded the model, and hear what it offers."""
        assert self.worker is not None
        target = self.session.plans.target
        try:
            self.worker.hear()
            hello = self.worker.ask("hello")
        except Refused as error:
            missing = error.args[1]
            self.end("skipped" if missing else "crashed", str(error.args[0]))
            return
        except Lost as error:
            self.end("crashed", str(error))
            return
        self.versions, self.generates = hello["versions"], hello["generates"]
        self.offered = [Target(*offered) for offered in hello["offered"]]
        if target not in self.offered:
            offered = ", ".join(map(str, self.offered)) or "nothing"
            self.end("skipped", f"{target} is not offered (offered: {offered})")

    def verify(self, when: str, further: int = FURTHER) -> None:
        """The checks on the records, with so many tokens of generate; a failure ends it."""
        reply = self.attempt(None, "verify", further=further)
        if reply is None:
            return
        truth = self.session.truth
        cases = tuple(shape_of(record) for record in truth.records)
        offers = tuple(each for each in CAPABILITIES if each.name in reply["plan"]["offers"])
        plan = Plan(truth.hparams, cases, tuple(reply["plan"]["taps"]), offers, further)
        measured = [(check, Measurement(**found)) for check, found in reply["measured"]]
        judge = Judge(self.found.name, self.session.plans.target, self.session.model.name)
        rows = [row for row in judge.rows(plan, measured, {}) if row.check in VERIFIED]
        wrong = [row for row in rows if row.verdict == "fail"]
        if wrong or not any(row.verdict == "pass" for row in rows):
            row = wrong[0] if wrong else None
            told = (
                f"{row.check} {row.case} {row.metric} {row.value}: {explain.detail(row)}"
                if row
                else "no pass"
            )
            self.end("wrong output", f"{when} the timing: {told}")

    def attempt(self, workload: Workload | None, op: str, **request: Any) -> dict[str, Any] | None:
        """Send a request. A failure is recorded, against all of it where workload is None; then None."""
        if self.worker is None:
            return None
        try:
            return self.worker.ask(op, **request)
        except Refused as error:
            if workload is None:
                self.end("crashed", f"{op}: {error.args[0]}")
            else:
                self.failed[workload] = ("crashed", str(error.args[0]))
        except Lost as error:
            self.end("crashed", f"{workload or op}: {error}")
        return None

    def warm(self, workload: Workload) -> None:
        """Untimed first goes: compilation, page faults, and how many tokens fit in a sample."""
        if workload.phase == "prefill":
            self.time(workload, keep=False)
        if workload.phase != "decode":
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
        """One sample, its results checked; seconds (of decode, for each token)."""
        if self.is_out(workload):
            return None
        if workload.phase == "start":
            return self._start(workload, keep)
        taken: list[float] = []
        began = time.perf_counter()
        while not taken or time.perf_counter() - began < LEAST_SECONDS:
            if (reply := self._call(workload)) is None:
                return None
            self.hold(workload, reply)
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

    def hold(self, workload: Workload, reply: dict[str, Any]) -> None:
        """Hold a timed call's result against the truth; token ids wait until all timing is over."""
        if "ids" in reply:
            self.how[workload] = reply["how"]
            rows = len(reply["ids"]), {len(row) for row in reply["ids"]}
            if rows != (workload.batch, {self.decoded[workload] + 1}):
                self.end("wrong output", f"{workload}: ids of the wrong shape")
            elif reply["ids"] not in self.ids[workload]:
                self.ids[workload].append(reply["ids"])
            return
        units = self.session.truth.units(reply["difference"])
        if not units <= limits.NOISE.most:
            self.end(
                "wrong output", f"{workload}: a timed call's logits are {units:.3g} noise units off"
            )

    def _start(self, workload: Workload, keep: bool) -> float | None:
        """A fresh process, from its start to its first logits; then what memory it has used."""
        job = self.session.job(self.found) | {"first": workload.n}
        resident, self.worker = self.worker, Worker(job, self.session.folder, self.session.plans)
        try:
            self.worker.hear()
            taken = time.perf_counter() - self.worker.started
            memory = self.worker.ask("memory")
            first = self.worker.ask("agree")
            self.hold(workload, first)
        except (Lost, Refused) as error:
            self.end("crashed", f"{workload}: {error.args[0]}")
            return None
        finally:
            self.close()
            if self.running:
                self.worker = resident
            elif resident is not None:
                resident.close()
        if keep:
            self.samples[workload].append(taken)
            for name, value in {**memory, "load": first["load_seconds"]}.items():
                if value is not None:
                    self.fresh[name].append(float(value))
        return taken

    def check_ids(self) -> None:
        """Every sequence of tokens that a timed call chose, against the oracle."""
        for workload, sequences in self.ids.items():
            for ids in sequences:
                if self.running and (told := self.session.truth.unlikely(workload.n_past, ids)):
                    self.end("wrong output", f"{workload}: {told}")
