"""Run a benchmark, from the request to the rows."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from gpt2_parity.bench import interval, roofline
from gpt2_parity.bench.journal import Inputs, Journal
from gpt2_parity.bench.pace import Pace
from gpt2_parity.bench.participant import Participant
from gpt2_parity.bench.roofline import ITEMSIZE, Rates
from gpt2_parity.bench.rows import rows_of
from gpt2_parity.bench.setup import Setup
from gpt2_parity.bench.workload import SAMPLES, Outcome, Settings, TimedRow, Workload, workloads
from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, CodeChanged, Target
from gpt2_parity.contract.plan import FURTHER
from gpt2_parity.contract.spelling import meant
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run import runner
from gpt2_parity.run.supervisor import Lost, Refused, WorkerProcess

REST = 0.15  # seconds after a turn; idle threads of OpenBLAS were seen to spin for 0.11 s
# tokens of generate in the verification afterwards, and with --quick before; timed results are checked
# besides
AGAIN = 8


class Stage(NamedTuple):
    """What a benchmark does now."""

    who: str  # an implementation, or "" for all
    what: str
    round: bool  # whether it is a turn of a round, in which the others have the same
    done: int  # steps
    of: int


Report = Callable[[Stage], None]


class Session:
    """One benchmark on one model."""

    def __init__(
        self,
        found: Sequence[Found],
        model: Model,
        settings: Settings,
        folder: Path,
        report: Report,
        pace: Pace | None = None,
    ):
        self.settings, self.report = settings, report
        steps = 2 + (settings.samples + 1) * len(settings.workloads)  # for each implementation
        self.done, self.all = 0, 1 + len(found) * steps
        self.pace = pace or Pace(settings.seconds)
        self.round_seconds: dict[Workload, float] = {}  # of the last round
        self.journal: Journal | None = None
        self.over: dict[Workload, int] = {}  # rounds before an interruption
        self.step("", "preparing what is expected")
        self.setup = Setup(model, settings, folder)
        self.participants = [Participant(one, self.setup) for one in found]
        self.rates: list[Rates] = []
        self.written = 0  # of the rates, those that the journal has

    def step(self, who: str, what: str, round: bool = False) -> None:
        """Report the start of a step."""
        self.report(Stage(who, what, round, self.done, self.all))
        self.done += 1

    def resume(self, journal: Journal) -> None:
        """Write to a journal, and take over the rounds that it has already."""
        self.journal = journal
        for event in journal.rounds:
            workload = Workload(*event["workload"])
            for participant in self.participants:
                participant.restore(workload, event["kept"][participant.found.name])
            self.rates += [Rates(*each) for each in event["machine"]]
            self.written = len(self.rates)
            self.round_seconds[workload] = event["seconds"]
            self.over[workload] = event["rounds"]
            if event["last"]:
                self.setup.rounds[workload] = event["rounds"]

    def run(self) -> None:
        """Verify, time and verify again. All processes are ended, whatever happens."""
        machine = self.setup.start(self.setup.job(None))
        try:
            machine.receive()
            took = self._load()
            self._machine(machine)  # for a run of starts only, which measure no rates
            for i, workload in enumerate(self.settings.workloads):
                self.pace.begin(len(self.settings.workloads) - i, afterwards=took)
                self._time(workload, machine)
            for participant in self.participants:
                self.step(participant.found.name, "verifying again")
                if participant.running:
                    participant.verify("after", AGAIN)
                    participant.check_ids()
        except (Lost, Refused) as error:
            raise CannotJudge(f"the machine's own rates: {error}") from error
        finally:
            for participant in self.participants:
                participant.close()
            machine.kill()

    def _load(self) -> float:
        """Load and verify all that were not out before. Returns the seconds that verifying took."""
        present = [participant for participant in self.participants if participant.running]
        for participant in present:
            participant.begin()  # all at once, so that they import and load side by side
        took = 0.0
        for participant in present:
            self.step(participant.found.name, "loading and verifying")
            participant.wait_until_loaded()
            if participant.running:
                since = self.pace.clock()
                participant.verify("before", AGAIN if self.settings.seconds else FURTHER)
                took += self.pace.clock() - since
        self.refuse_absent_target()
        self._note_code(present)
        return took

    def _note_code(self, loaded: Sequence[Participant]) -> None:
        """Write what has been imported. Raises CodeChanged if that is not what it was before."""
        if self.journal is None:
            return
        earlier = {each["who"]: each for each in self.journal.events if each["event"] == "loaded"}
        for participant in self.participants:
            if before := earlier.get(participant.found.name):
                if participant in loaded:
                    refuse_other_files(participant, before["imported"]["files"])
                else:
                    participant.imported = before["imported"]
            elif participant.offered:
                name = participant.found.name
                self.journal.add("loaded", who=name, imported=participant.imported)

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
        done = self.over.get(workload, 0)
        if workload in self.setup.rounds:  # all before an interruption
            self.done += (self.settings.samples + 1) * len(self.participants)
            return
        for participant in self.participants:
            self.step(participant.found.name, f"{workload}, warming up")
            participant.warm(workload)
        self.done += done * len(self.participants)
        for i in range(done, self.settings.samples):
            since = self.pace.clock()
            first = i % max(1, len(self.participants))
            turns = [*self.participants[first:], *self.participants[:first]]
            caption = f"{workload}, round {i + 1} of {self.settings.samples}"
            if workload.phase == "start":
                self._start(workload, turns, caption)
            else:
                self._round(workload, turns, caption, machine)
            took = self.pace.clock() - since
            last = i + 1 == self.settings.samples or not self.pace.another(i + 1, took)
            self._keep(workload, i + 1, took, last)
            if last:
                break

    def _keep(self, workload: Workload, rounds: int, took: float, last: bool) -> None:
        """Note that a round is over."""
        self.round_seconds[workload] = took
        if last:
            self.setup.rounds[workload] = rounds
            self.done += (self.settings.samples - rounds) * len(self.participants)
        if self.journal is not None:
            kept = {each.found.name: each.kept(workload) for each in self.participants}
            facts = {"rounds": rounds, "seconds": took, "last": last}
            self.journal.add(
                "round", workload=workload, **facts, machine=self.rates[self.written :], kept=kept
            )
            self.written = len(self.rates)

    def _start(self, workload: Workload, turns: list[Participant], caption: str) -> None:
        """A turn of each with fresh processes, which need no rest and have no roofline."""
        for participant in turns:
            self.step(participant.found.name, caption, round=True)
            participant.time(workload)

    def _round(
        self, workload: Workload, turns: list[Participant], caption: str, machine: WorkerProcess
    ) -> None:
        """A turn of each, with the machine's rates measured before and after it."""
        before = self._machine(machine)
        for participant in turns:
            self.step(participant.found.name, caption, round=True)
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
    report: Report = lambda step: None,
    journal: Journal | None = None,
    command: str = "",
) -> Outcome:
    """Run a benchmark. against: the baseline's name; the first implementation, if empty.

    journal: receives every round, and may have those of a benchmark that was interrupted. command: the
    command line, for the environment.

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
        if journal is not None:
            sha256 = session.setup.expected.checkpoint.sha256
            journal.begin(Inputs.of(found, model, sha256, settings, against, command))
            session.resume(journal)
        session.run()
        first = next(one for one in session.participants if one.found.name == baseline)
        rows = [row for participant in session.participants for row in rows_of(participant, first)]
        environment = made_with(session, baseline, started)
        return Outcome(rows, environment | ({"command": command} if command else {}))


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
        unseen={device for participant in participants for device in participant.unseen},
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
        "few_rounds": few_rounds(session),
        "truth": setup.expected.source,
        "against": baseline,
    }


def few_rounds(session: Session) -> dict[str, dict[str, float]]:
    """By workload: the rounds where there were fewer than usual, their seconds, and the confidence."""
    return {
        str(workload): {
            "rounds": rounds,
            "seconds_of_a_round": round(session.round_seconds[workload], 1),
            "interval_confidence": interval.median([0.0] * rounds).confidence,
        }
        for workload, rounds in session.setup.rounds.items()
        if rounds < session.settings.samples
    }


def refuse_other_files(participant: Participant, before: dict[str, dict[str, str]]) -> None:
    """Raise CodeChanged if an implementation's files are not what they were before an interruption."""
    now = participant.imported["files"]
    changed = [name for name in before if name in now and now[name]["sha256"] != before[name]["sha256"]]
    if changed:
        raise CodeChanged(
            f"{', '.join(changed)} of {participant.found.name}: edited since the benchmark began; start "
            "a new one"
        )


def exit_code(rows: Sequence[TimedRow]) -> int:
    """0: something was measured and nothing is wrong. 1: wrong output or a crash. 2: no figures."""
    verdicts = {row.verdict for row in rows}
    if verdicts & {"wrong output", "crashed"}:
        return 1
    return 0 if "verified" in verdicts else 2
