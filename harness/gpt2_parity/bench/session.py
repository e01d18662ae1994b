"""A run of a benchmark, from the request to the rows."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from gpt2_parity.bench import interval, roofline
from gpt2_parity.bench.contestant import Contestant
from gpt2_parity.bench.expected import Expected
from gpt2_parity.bench.process import Lost, Refused, Worker, cores, threads
from gpt2_parity.bench.roofline import ITEMSIZE, Rates
from gpt2_parity.bench.rows import entrant_rows
from gpt2_parity.bench.workload import SAMPLES, Outcome, Plans, Row, Workload, workloads
from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run import runner

REST = 0.15  # seconds after a turn; OpenBLAS's idle threads were seen to spin for 0.11
AGAIN = 8  # tokens of generate in the verification afterwards; all that was timed is checked besides

Report = Callable[[str, int, int], None]  # what is going on, requests done, requests in all


class Session:
    """One run on one model."""

    def __init__(self, found: Sequence[Found], model: Model, plans: Plans, folder: Path, report: Report):
        self.model, self.plans, self.folder, self.report = model, plans, folder, report
        self.done, self.all = 0, len(found) * (2 + sum(plans.samples + 1 for _ in plans.workloads)) + 1
        self.step("preparing the truth")
        self.truth = Expected(model, plans, folder)
        self.contestants = [Contestant(one, self) for one in found]
        self.rates: list[Rates] = []

    def step(self, what: str) -> None:
        self.report(what, self.done, self.all)
        self.done += 1

    def job(self, found: Found | None) -> dict[str, Any]:
        """A worker's job; of no implementation: the bare machine's."""
        return {
            "name": found.name.replace("/", "-") if found else "machine",
            "implementation": found._asdict() if found else None,
            "target": self.plans.target,
            "hparams": self.truth.hparams._asdict(),
            "weights": str(self.truth.checkpoint.weights),
            "truth": str(self.truth.path),
            "records": self.truth.paths,
            "cpus": cores()[: threads(self.plans)],
        }

    def run(self) -> None:
        """Everything, in order; processes that are left are ended, whatever happens."""
        machine = Worker(self.job(None), self.folder, self.plans)
        try:
            machine.hear()
            for contestant in self.contestants:
                contestant.begin()  # all at once: they import and load side by side
            for contestant in self.contestants:
                self.step(f"{contestant.found.name}: loading and verifying")
                contestant.greet()
                if contestant.running:
                    contestant.verify("before")
            self.refuse_absent_target()
            self._machine(machine)  # for a run of nothing but starts, which have no roofline
            for workload in self.plans.workloads:
                self._time(workload, machine)
            for contestant in self.contestants:
                self.step(f"{contestant.found.name}: verifying again")
                if contestant.running:
                    contestant.verify("after", AGAIN)
                    contestant.check_ids()
        except (Lost, Refused) as error:
            raise CannotJudge(f"the machine's own rates: {error.args[0]}") from error
        finally:
            for contestant in self.contestants:
                contestant.close()
            machine.close()

    def refuse_absent_target(self) -> None:
        """Raise CannotJudge where nobody offers the target. Where all crashed, rows say so instead."""
        offers = [contestant.offered for contestant in self.contestants]
        if any(offers) and not any(self.plans.target in offered for offered in offers):
            told = "; ".join(
                f"{contestant.found.name}: {contestant.detail}" for contestant in self.contestants
            )
            raise CannotJudge(f"target {self.plans.target}: nobody can be timed on it ({told})")

    def _time(self, workload: Workload, machine: Worker) -> None:
        """Warm up apart, then rounds in which everyone has a turn, a different one first each time."""
        for contestant in self.contestants:
            self.step(f"{contestant.found.name}: {workload}, warming up")
            contestant.warm(workload)
        for i in range(self.plans.samples):
            first = i % max(1, len(self.contestants))
            turns = [*self.contestants[first:], *self.contestants[:first]]
            words = f"{workload}, round {i + 1} of {self.plans.samples}"
            if workload.phase == "start":
                self._start(workload, turns, words)
            else:
                self._round(workload, turns, words, machine)

    def _start(self, workload: Workload, turns: list[Contestant], words: str) -> None:
        """Fresh processes, which need no rest and have no roofline."""
        for contestant in turns:
            self.step(f"{contestant.found.name}: {words}")
            contestant.time(workload)

    def _round(self, workload: Workload, turns: list[Contestant], words: str, machine: Worker) -> None:
        """A turn of each, with the machine's own rates before and after it."""
        before = self._machine(machine)
        for contestant in turns:
            self.step(f"{contestant.found.name}: {words}")
            if contestant.is_out(workload):
                continue
            taken = contestant.time(workload)
            after = self._machine(machine)
            if taken is not None:
                contestant.rates[workload].append(before.between(after))
            before = after

    def _machine(self, machine: Worker) -> Rates:
        """What the machine can do at this moment: memory that is shared may change within seconds."""
        time.sleep(REST)
        self.rates.append(Rates(**machine.ask("rates")))
        return self.rates[-1]


def measure(
    found: Sequence[Found],
    model: Model,
    plans: Plans,
    against: str = "",
    quick: bool = False,
    report: Report = lambda what, done, of: None,
) -> Outcome:
    """Run a benchmark. against: the baseline's name; the first implementation, if empty.

    Raises CannotJudge for a baseline that is not among the implementations, a dtype unknown to the
    noise floor, too few samples, too little memory, or golden that cannot be trusted.
    """
    if plans.samples < SAMPLES:
        raise CannotJudge(f"--samples {plans.samples}: an interval of 95 % needs at least {SAMPLES}")
    names = [one.name for one in found]
    baseline = against or names[0]
    if baseline not in names:
        raise CannotJudge(f"--against {baseline}: not measured in this run ({', '.join(names)})")
    if plans.target.dtype not in dtypes.DTYPES:
        raise CannotJudge(f"target {plans.target}: dtype is not one of {', '.join(dtypes.DTYPES)}")
    hparams = checkpoint.read_hparams(model.checkpoint / "hparams.json")
    if lacking := too_big(hparams, plans.target, len(names)):
        raise CannotJudge(f"model {model.name}: {lacking}")
    plans = plans._replace(workloads=plans.workloads or workloads(hparams, quick))
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        session = Session(found, model, plans, Path(folder), report)
        session.run()
        first = next(one for one in session.contestants if one.found.name == baseline)
        rows = [row for contestant in session.contestants for row in entrant_rows(contestant, first)]
        return Outcome(rows, environment(session, baseline, started))


def too_big(hparams: HParams, target: Target, n_implementations: int) -> str:
    """Why so many implementations of a model do not fit in memory; "" if they do.

    Twice the weights for each (most copy them, and work besides), the mapped file, and the oracle's
    largest weight and logits in float64.
    """
    one = roofline.parameters(hparams) * ITEMSIZE[target.dtype]
    truth = 8 * hparams.n_vocab * (hparams.n_embd + 2 * hparams.n_ctx)
    needed = one * (1 + 2 * n_implementations) + truth
    free = psutil.virtual_memory().available
    if needed <= free:
        return ""
    return f"{needed / 2**30:.1f} GiB of memory are needed and {free / 2**30:.1f} are free"


def environment(session: Session, baseline: str, started: float) -> dict[str, Any]:
    """results.json's environment, and what timing depends on besides."""
    truth, plans, contestants = session.truth, session.plans, session.contestants
    versions = {name: v for contestant in contestants for name, v in contestant.versions.items()}
    offered = {target for contestant in contestants for target in contestant.offered}
    gemm = [rate.gemm for rate in session.rates if rate.gemm is not None]
    return runner.environment(
        session.model, truth.checkpoint, truth.records, plans.seed, versions, offered, started
    ) | {
        "threads": threads(plans),
        "samples": plans.samples,
        "interval_confidence": interval.median([0.0] * plans.samples).confidence,
        "bandwidth_bytes_per_s": interval.median([rate.bandwidth for rate in session.rates]).median,
        "gemm_flop_per_s": interval.median(gemm).median if gemm else None,
        "truth": truth.source,
        "against": baseline,
    }


def exit_code(rows: Sequence[Row]) -> int:
    """0: something was measured and nothing was wrong. 1: wrong output, or a crash. 2: no figures."""
    verdicts = {row.verdict for row in rows}
    if verdicts & {"wrong output", "crashed"}:
        return 1
    return 0 if "verified" in verdicts else 2
