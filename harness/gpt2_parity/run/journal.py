"""The state of one implementation's run: a fold over the events of its journal.

The same events give the same rows, whether they are handled live or read back after the run was killed:
that is what makes a run resumable.

    hello     the targets that the implementation offers, and the versions that it runs on
    begin     a target begins
    plan      the target's taps and capabilities
    checking  a check begins
    measured  one measurement of the check
    error     why the check ended early
    checked   the check is done
    broken    why a target could not be started
    end       the target is done
    lost      why the work ended early, and on which target; written by the parent of a worker that
              ended, or by a worker in which every call raises
"""

from collections.abc import Sequence
from typing import Any

from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import CaseShape, Plan
from gpt2_parity.contract.rows import Measurement, Row
from gpt2_parity.verdict.judge import Judge


class RunState:
    """One implementation's run: the targets that it offers, its progress, and the rows judged so far."""

    def __init__(self, name: str, model: str, hparams: HParams, cases: tuple[CaseShape, ...]):
        self.name, self.model, self.hparams, self.cases = name, model, hparams, cases
        self.offered: list[Target] | None = None
        self.versions: dict[str, str] = {}
        self.rows: list[Row] = []
        self.current: Target | None = None
        self.ended: list[Target] = []
        self.over = False  # it ended before it reported its targets
        self._clear()

    def _clear(self) -> None:
        self.plan: Plan | None = None
        self.measured: list[tuple[str, Measurement]] = []
        self.errors: dict[str, str] = {}
        self.broken = ""
        self.checking = ""
        self.checked: list[str] = []

    def handle(self, event: str, data: dict[str, Any]) -> None:
        """Handle one event. Raises ValueError, KeyError or TypeError if it is malformed."""
        match event:
            case "hello":
                self.offered = [Target(*target) for target in data["targets"]]
                self.versions = data["versions"]
            case "begin":
                self._begin(Target(*data["target"]))
            case "plan":
                offers = tuple(each for each in CAPABILITIES if each.name in data["offers"])
                self.plan = Plan(self.hparams, self.cases, tuple(data["taps"]), offers)
            case "checking":
                self.checking = data["check"]
            case "measured":
                self.measured.append((data["check"], Measurement(**data["measurement"])))
            case "error":
                self.errors[data["check"]] = data["message"]
            case "checked":
                self.checking = ""
                self.checked.append(data["check"])
            case "broken":
                self.broken = data["message"]
            case "end":
                self._close("")
            case "lost":
                self._lose(
                    data["target"] and Target(*data["target"]), data["message"], data.get("since", "")
                )
            case _:
                raise ValueError(f"unknown event {event!r}")

    def _begin(self, target: Target) -> None:
        if target == self.current:  # resumed: keep the measurements of finished checks
            self.measured = [each for each in self.measured if each[0] in self.checked]
            self.errors = {check: text for check, text in self.errors.items() if check in self.checked}
            self.broken = ""
        else:
            self._clear()
        self.current = target

    def _close(self, lost: str, since: str = "") -> None:
        """Judge the current target.

        lost: why it ended early, or "". since: the check since which every call has raised, or "".
        """
        target = self.current or Target("", "")
        judge = Judge(self.name, target, self.model)
        if self.plan is None:
            self.rows.append(judge.failure("load", self.broken or lost or "it never started"))
        else:
            self.rows += judge.rows(self.plan, self.measured, self.errors, lost)
            if lost:
                when = {"since": since} if since else {"during": self.checking}
                self.rows.append(judge.failure("process", lost, **when))
        self.ended.append(target)
        self.current = None
        self._clear()

    def _lose(self, target: Target | None, message: str, since: str) -> None:
        if target in self.ended:  # all its checks were done when the process failed
            judge = Judge(self.name, target, self.model)
            self.rows.append(judge.failure("process", message))
            return
        if target is None:
            self.over = True
        self.current = target
        self._close(message, since)

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
            self.rows.append(judge.skipped(self.offered or ()))
