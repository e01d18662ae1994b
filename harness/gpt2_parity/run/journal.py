"""The state of one implementation's run: a fold over the events of its journals.

The same events give the same rows, whether they are handled live or read back after the run was killed:
that is what makes a run resumable. Targets may be examined at the same time by several workers, each
with a journal of its own, so every event that belongs to a target names it.

    hello     the targets that the implementation offers, and what it has imported (run/imported.py)
    begin     a target begins, and on which machine
    plan      the target's taps and capabilities
    imported  what the process of the target has imported by now; hello and broken have it too
    device    what is to be seen of the target on the GPU that it declares (run/host.py)
    checking  a check begins
    measured  one measurement of the check
    error     why the check ended early
    checked   the check is done, how many seconds it took, and how many each load() in it
    broken    why a target could not be started, or (without a target) the implementation itself
    end       the target is done
    cannot_judge  why the run must end without a verdict
    worker_lost   a dask worker was lost with the work, which begins again, or not; written by the client
    lost      why the work ended early, and on which target; written by the parent of a worker that
              ended, or by a worker in which every call raises
"""

from collections.abc import Sequence
from typing import Any

from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import Asked, CaseShape, Plan
from gpt2_parity.contract.rows import Measurement, Row
from gpt2_parity.run.host import Seen
from gpt2_parity.verdict.judge import Judge


class TargetState:
    """One target: what was measured so far and, once it has ended, its rows."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.measured: list[tuple[str, Measurement]] = []
        self.errors: dict[str, str] = {}
        self.broken = ""
        self.checking = ""
        self.host: dict[str, Any] = {}  # the machine that it was examined on, as run/host.py reports it
        self.seconds: dict[str, float] = {}  # by check that is done; "load": until the first check
        self.loads: dict[str, list[float]] = {}  # likewise: the seconds of each call of load()
        self.rows: list[Row] = []
        self.ended = False

    @property
    def checked(self) -> list[str]:
        """The checks that are done."""
        return [name for name in self.seconds if name != "load"]

    def outcome(self, check: str, judge: Judge) -> str:
        """PASS, FAIL or NO VERDICT on a check that is done; "" if it has nothing to measure."""
        return judge.outcome(self.plan, check, self.measured, self.errors) if self.plan else ""

    def begin(self, host: dict[str, Any]) -> None:
        """Begin, or begin again after a resume: keep the measurements of finished checks only."""
        self.host = host
        self.measured = [each for each in self.measured if each[0] in self.seconds]
        self.errors = {check: text for check, text in self.errors.items() if check in self.seconds}
        self.broken = self.checking = ""

    def close(self, judge: Judge, lost: str, since: str) -> None:
        """Judge what was measured.

        lost: why it ended early, or "". since: the check since which every call has raised, or "".
        """
        if self.plan is None:
            self.rows = [judge.failure("load", self.broken or lost or "it never started")]
        else:
            self.rows = judge.rows(self.plan, self.measured, self.errors, lost)
            if lost:
                when = {"since": since} if since else {"during": self.checking}
                self.rows.append(judge.failure("process", lost, **when))
        self.measured, self.ended = [], True


class RunState:
    """One implementation's run: the targets that it offers, and the state of each."""

    def __init__(self, name: str, model: str, hparams: HParams, cases: tuple[CaseShape, ...]):
        self.name, self.model, self.hparams, self.cases = name, model, hparams, cases
        self.offered: list[Target] | None = None
        self.asked = Asked()
        self.versions: dict[str, str] = {}
        self.files: dict[str, dict[str, str]] = {}  # its own files that were imported: path, sha256
        self.packages: dict[str, dict[str, str]] = {}  # distributions likewise: version, file
        self.changed: list[str] = []  # its own files of which there was more than one version
        self.unseen: list[str] = []  # devices that it declares and its machine does not show
        self.elsewhere: dict[str, str] = {}  # devices on which it declares to be and is not: why
        self.broken = ""
        self.over = False  # it ended before it reported its targets
        self.targets: dict[Target, TargetState] = {}
        self.lost_workers: list[dict[str, Any]] = []  # of a cluster: what ran there, address, host
        self._others: list[Row] = []  # of no target, and of targets that are not offered

    @property
    def rows(self) -> list[Row]:
        """The rows of all targets that have ended, in the order in which they are offered."""
        ended = [row for target in self._in_order() for row in self.targets[target].rows]
        return ended + self._others

    def _in_order(self) -> list[Target]:
        offered = [target for target in self.offered or () if target in self.targets]
        return offered + [target for target in self.targets if target not in offered]

    @property
    def ended(self) -> list[Target]:
        return [target for target in self._in_order() if self.targets[target].ended]

    def handle(self, event: str, data: dict[str, Any]) -> None:
        """Handle one event. Raises ValueError, KeyError or TypeError if it is malformed."""
        target = Target(*data["target"]) if data.get("target") else None
        if "imported" in data:
            self._import(**data["imported"])
        match event, target:
            case "hello", None:
                self.offered = [Target(*offered) for offered in data["targets"]]
                self.unseen = list(data.get("unseen", ()))
            case "cannot_judge", None:
                pass  # a resumed run tries again
            case "broken", None:
                self.broken = data["message"]
            case "begin", Target():
                self.targets.setdefault(target, TargetState()).begin(data.get("host", {}))
            case "device", Target() if target in self.targets:
                seen = Seen(*data["seen"])
                self.targets[target].host["seen"] = seen._asdict()
                if seen.there is False:
                    self.elsewhere[target.device] = str(seen)
            case "imported", Target() if target in self.targets:
                own = {name: each["version"] for name, each in data["imported"]["packages"].items()}
                self.targets[target].host.setdefault("versions", {}).update(own)
            case "lost", _:
                self._lose(target, data["message"], data.get("since", ""))
            case "worker_lost", _:
                unit = f"{self.name}-{target}" if target else self.name
                self.lost_workers.append(
                    {"unit": unit, **{key: data[key] for key in ("worker", "host")}}
                )
            case "end", Target():
                self._close(target)
            case _, Target() if target in self.targets:
                self._measure(self.targets[target], event, data)
            case _:
                raise ValueError(f"unknown event {event!r}")

    def _import(self, files: dict[str, dict[str, str]], packages: dict[str, dict[str, str]]) -> None:
        """Add what a process has imported to what others had."""
        for name, file in files.items():
            known = self.files.setdefault(name, file)
            if known["sha256"] != file["sha256"] and name not in self.changed:
                self.changed.append(name)
        self.packages |= packages
        self.versions |= {name: each["version"] for name, each in packages.items()}

    def _measure(self, state: TargetState, event: str, data: dict[str, Any]) -> None:
        """Handle an event within a target."""
        match event:
            case "plan":
                offers = tuple(each for each in CAPABILITIES if each.name in data["offers"])
                taps, cache, weights = tuple(data["taps"]), str(data["cache"]), str(data["weights"])
                plan = Plan(self.hparams, self.cases, taps, offers, cache=cache, weights=weights)
                state.plan = plan._replace(asked=self.asked, reloads=str(data.get("reloads", "")))
                state.seconds["load"] = float(data["seconds"])
                state.loads["load"] = [float(each) for each in data.get("loads", ())]
            case "checking":
                state.checking = data["check"]
            case "measured":
                state.measured.append((data["check"], Measurement(**data["measurement"])))
            case "error":
                state.errors[data["check"]] = data["message"]
            case "checked":
                state.checking = ""
                state.seconds[data["check"]] = float(data["seconds"])
                state.loads[data["check"]] = [float(each) for each in data.get("loads", ())]
            case "broken":
                state.broken = data["message"]
            case _:
                raise ValueError(f"unknown event {event!r}")

    def _close(self, target: Target, lost: str = "", since: str = "") -> None:
        state = self.targets.setdefault(target, TargetState())
        state.close(Judge(self.name, target, self.model), lost, since)

    def _lose(self, target: Target | None, message: str, since: str) -> None:
        if target is None:
            self.over = True
            judge = Judge(self.name, Target("", ""), self.model)
            self._others.append(judge.failure("load", self.broken or message))
        elif target in self.ended:  # all its checks were done when the process failed
            judge = Judge(self.name, target, self.model)
            self.targets[target].rows.append(judge.failure("process", message))
        else:
            self._close(target, message, since)

    def left(self, wanted: Sequence[Target]) -> list[Target] | None:
        """The wanted targets (all, if none is named) still to be examined; None if not known yet."""
        if self.over:
            return []
        if self.offered is None:
            return None
        return [
            target
            for target in self.offered
            if target not in self.ended and (not wanted or target in wanted)
        ]

    def skip(self, targets: Sequence[Target]) -> None:
        """Add a row, neither pass nor fail, for each requested target, none of which is offered."""
        for target in targets:
            judge = Judge(self.name, target, self.model)
            self._others.append(judge.skipped(self.offered or ()))
