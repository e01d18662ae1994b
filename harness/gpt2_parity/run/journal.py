"""What one implementation's journal says: a fold over its events.

The same events give the same rows, whether they are handled live or read back after the run was killed:
that is what makes a run resumable.

    hello     what the implementation offers, and the versions that it runs on
    begin     a target; plan: its taps and capabilities
    checking  a check; measured, error: what came of it; checked: it is over
    broken    why a target could not even be started
    end       of a target
    lost      what ended the work early, and on which target; written by the parent of a worker that
              died, or by one in which nothing works any more
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
    """One implementation: what it offers, how far it got, and the rows judged so far."""

    def __init__(self, name: str, model: str, hparams: HParams, cases: tuple[CaseShape, ...]):
        self.name, self.model, self.hparams, self.cases = name, model, hparams, cases
        self.offered: list[Target] | None = None
        self.versions: dict[str, str] = {}
        self.rows: list[Row] = []
        self.current: Target | None = None
        self.ended: list[Target] = []
        self.over = False  # it died before it could say what it offers
        self._clear()

    def _clear(self) -> None:
        self.plan: Plan | None = None
        self.measured: list[tuple[str, Measurement]] = []
        self.errors: dict[str, str] = {}
        self.broken = ""
        self.checking = ""
        self.checked: list[str] = []

    def handle(self, event: str, data: dict[str, Any]) -> None:
        """Take in one event. Raises ValueError, KeyError or TypeError for what is none."""
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
        if target == self.current:  # resumed: what its finished checks measured stands
            self.measured = [found for found in self.measured if found[0] in self.checked]
            self.errors = {check: text for check, text in self.errors.items() if check in self.checked}
            self.broken = ""
        else:
            self._clear()
        self.current = target

    def _close(self, lost: str, since: str = "") -> None:
        """Judge the current target.

        lost: what ended it early, if anything did; since: the check from which on nothing worked.
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
        if target in self.ended:  # its checks had all been made when the process failed
            judge = Judge(self.name, target, self.model)
            self.rows.append(judge.failure("process", message))
            return
        if target is None:
            self.over = True
        self.current = target
        self._close(message, since)

    def left(self, wanted: Sequence[Target]) -> list[Target] | None:
        """The targets still to be examined, of those wanted (all, if none are); None: not known yet."""
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
        """Record that none of the targets asked for is offered: a row that is neither pass nor fail."""
        for target in targets:
            judge = Judge(self.name, target, self.model)
            self.rows.append(judge.skipped(self.offered or ()))
