"""Run a benchmark, from the request to the rows."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from gpt2_parity.bench import interval, roofline
from gpt2_parity.bench.participant import Participant
from gpt2_parity.bench.roofline import ITEMSIZE, Rates
from gpt2_parity.bench.rows import rows_of
from gpt2_parity.bench.setup import Setup
from gpt2_parity.bench.workload import SAMPLES, Outcome, Settings, TimedRow, Workload, workloads
from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.spelling import meant
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run import runner
from gpt2_parity.run.supervisor import Lost, Refused, WorkerProcess

REST = 0.15  # seconds after a turn; idle threads of OpenBLAS were seen to spin for 0.11 s
AGAIN = 8  # tokens of generate in the verification afterwards; timed results are checked besides

Report = Callable[[str, int, int], None]  # the current step, steps done, steps in total


class Session:
    """One benchmark on one model."""

    def __init__(
        self, found: Sequence[Found], model: Model, settings: Settings, folder: Path, report: Report
    ):
        self.settings, self.report = settings, report
        steps = 2 + (settings.samples + 1) * len(settings.workloads)  # for each implementation
        self.done, self.all = 0, 1 + len(found) * steps
        self.step("preparing what is expected")
        self.setup = Setup(model, settings, folder)
        self.participants = [Participant(one, self.setup) for one in found]
        self.rates: list[Rates] = []

    def step(self, what: str) -> None:
        """Report the start of a step."""
        self.report(what, self.done, self.all)
        self.done += 1

    def run(self) -> None:
        """Verify, time and verify again. All processes are ended, whatever happens."""
        machine = self.setup.start(self.setup.job(None))
        try:
            machine.receive()
            for participant in self.participants:
                participant.begin()  # all at once, so that they import and load side by side
            for participant in self.participants:
                self.step(f"{participant.found.name}: loading and verifying")
                participant.wait_until_loaded()
                if participant.running:
                    participant.verify("before")
            self.refuse_absent_target()
            self._machine(machine)  # for a run of starts only, which measure no rates
            for workload in self.settings.workloads:
                self._time(workload, machine)
            for participant in self.participants:
                self.step(f"{participant.found.name}: verifying again")
                if participant.running:
                    participant.verify("after", AGAIN)
                    participant.check_ids()
        except (Lost, Refused) as error:
            raise CannotJudge(f"the machine's own rates: {error}") from error
        finally:
            for participant in self.participants:
                participant.close()
            machine.kill()

    def refuse_absent_target(self) -> None:
        """Raise CannotJudge where no implementation that runs offers the target. Crashes have rows."""
        offers = [participant.offered for participant in self.participants]
        if any(offers) and not any(self.settings.target in offered for offered in offers):
            offered = "; ".join(
                f"{participant.found.name}: {participant.detail}" for participant in self.participants
            )
            raise CannotJudge(
                f"target {self.settings.target}: no implementation can be timed on it ({offered})"
            )

    def _time(self, workload: Workload, machine: WorkerProcess) -> None:
        """Warm up, then run rounds in which each has a turn, with a different one first each time."""
        for participant in self.participants:
            self.step(f"{participant.found.name}: {workload}, warming up")
            participant.warm(workload)
        for i in range(self.settings.samples):
            first = i % max(1, len(self.participants))
            turns = [*self.participants[first:], *self.participants[:first]]
            caption = f"{workload}, round {i + 1} of {self.settings.samples}"
            if workload.phase == "start":
                self._start(workload, turns, caption)
            else:
                self._round(workload, turns, caption, machine)

    def _start(self, workload: Workload, turns: list[Participant], caption: str) -> None:
        """A turn of each with fresh processes, which need no rest and have no roofline."""
        for participant in turns:
            self.step(f"{participant.found.name}: {caption}")
            participant.time(workload)

    def _round(
        self, workload: Workload, turns: list[Participant], caption: str, machine: WorkerProcess
    ) -> None:
        """A turn of each, with the machine's rates measured before and after it."""
        before = self._machine(machine)
        for participant in turns:
            self.step(f"{participant.found.name}: {caption}")
            if participant.is_out(workload):
                continue
            taken = participant.time(workload)
            after = self._machine(machine)
            if taken is not None:
                participant.rates[workload].append(before.between(after))
            before = after

    def _machine(self, machine: WorkerProcess) -> Rates:
        """Measure the machine's rates now: where others share its memory, they change within seconds."""
        time.sleep(REST)
        self.rates.append(Rates(**machine.request("rates")))
        return self.rates[-1]


def measure(
    found: Sequence[Found],
    model: Model,
    settings: Settings,
    against: str = "",
    quick: bool = False,
    report: Report = lambda what, done, of: None,
) -> Outcome:
    """Run a benchmark. against: the baseline's name; the first implementation, if empty.

    Raises CannotJudge for a baseline that is not among the implementations, a dtype unknown to the
    noise floor, too few samples, too little memory, or golden that cannot be trusted.
    """
    if settings.samples < SAMPLES:
        raise CannotJudge(f"--samples {settings.samples}: an interval of 95 % needs at least {SAMPLES}")
    names = [one.name for one in found]
    baseline = against or names[0]
    if baseline not in names:
        raise CannotJudge(
            f"--against {baseline}: not measured in this run ({', '.join(names)})"
            f"{meant(baseline, names)}"
        )
    if settings.target.dtype not in dtypes.DTYPES:
        raise CannotJudge(f"target {settings.target}: dtype is not one of {', '.join(dtypes.DTYPES)}")
    hparams = checkpoint.hparams_of(model.checkpoint)
    if lacking := too_big(hparams, settings.target, len(names)):
        raise CannotJudge(f"model {model.name}: {lacking}")
    settings = settings._replace(workloads=settings.workloads or workloads(hparams, quick))
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        session = Session(found, model, settings, Path(folder), report)
        session.run()
        first = next(one for one in session.participants if one.found.name == baseline)
        rows = [row for participant in session.participants for row in rows_of(participant, first)]
        return Outcome(rows, made_with(session, baseline, started))


def too_big(hparams: HParams, target: Target, n_implementations: int) -> str:
    """Why so many implementations of a model do not fit in memory, or "" if they do.

    Needed are twice the weights for each (most copy them, and need working memory), the mapped file, and
    the oracle's largest weight and logits in float64.
    """
    one = roofline.parameters(hparams) * ITEMSIZE[target.dtype]
    oracle = 8 * hparams.n_vocab * (hparams.n_embd + 2 * hparams.n_ctx)
    needed = one * (1 + 2 * n_implementations) + oracle
    free = psutil.virtual_memory().available
    if needed <= free:
        return ""
    return f"{needed / 2**30:.1f} GiB of memory are needed and {free / 2**30:.1f} are free"


def made_with(session: Session, baseline: str, started: float) -> dict[str, Any]:
    """The environment of a verification, and what else timing depends on."""
    setup, settings, participants = session.setup, session.settings, session.participants
    imports = {participant.found.name: participant.imported for participant in participants}
    packages = {name: each["packages"] for name, each in imports.items()}
    versions = {name: each["version"] for found in packages.values() for name, each in found.items()}
    offered = {target for participant in participants for target in participant.offered}
    gemm = [rate.gemm for rate in session.rates if rate.gemm is not None]
    return runner.environment(
        setup.model.name,
        setup.expected.checkpoint,
        [record.name for record in setup.expected.records],
        settings.seed,
        versions,
        offered,
        started,
    ) | {
        "implementation_files": {
            name: {file: found["sha256"] for file, found in each["files"].items()}
            for name, each in imports.items()
        },
        "packages": packages,
        "threads": settings.threads,
        "samples": settings.samples,
        "interval_confidence": interval.median([0.0] * settings.samples).confidence,
        "bandwidth_bytes_per_s": interval.median([rate.bandwidth for rate in session.rates]).median,
        "gemm_flop_per_s": interval.median(gemm).median if gemm else None,
        "truth": setup.expected.source,
        "against": baseline,
    }


def exit_code(rows: Sequence[TimedRow]) -> int:
    """0: something was measured and nothing is wrong. 1: wrong output or a crash. 2: no figures."""
    verdicts = {row.verdict for row in rows}
    if verdicts & {"wrong output", "crashed"}:
        return 1
    return 0 if "verified" in verdicts else 2
