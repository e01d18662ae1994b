"""Turns the events of a run into updates for whoever watches it."""

import time
from collections.abc import Sequence
from typing import Any

from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.progress import Progress, Update
from gpt2_parity.contract.rows import OUTCOMES, exit_code
from gpt2_parity.run.journal import RunState
from gpt2_parity.verdict.judge import Judge

SHOWN = {"begin": "checks", "checked": "checks", "end": "ends", "lost": "ends"}  # event -> step


class Reporter:
    """Reports the progress of several implementations."""

    def __init__(self, states: Sequence[RunState], wanted: Sequence[Target], progress: Progress):
        self.states, self.wanted, self.progress = states, wanted, progress
        self.began: dict[tuple[int, Target], float] = {}

    def starts(self, i: int) -> None:
        """Report that a process of implementation i starts."""
        self._send(Update("starts", self.states[i].name))

    def show(self, i: int, event: str, data: dict[str, Any]) -> None:
        """Report an event of implementation i, which its state has handled already."""
        if event == "worker_lost" and data["again"]:
            target_name = str(Target(*data["target"])) if data["target"] else ""
            where = f"{data['worker']} on {data['host']}"
            self._send(Update("again", self.states[i].name, target_name, worker=where))
        if event not in SHOWN:
            return
        state, step = self.states[i], SHOWN[event]
        files = {file["path"]: file["sha256"] for file in state.files.values() if "path" in file}
        if not data["target"]:
            outcome = OUTCOMES[exit_code(state.rows)]
            self._send(Update(step, state.name, outcome=outcome, files=files))
            return
        target = Target(*data["target"])
        known, began = state.targets[target], self.began.setdefault((i, target), time.monotonic())
        update = Update(step, state.name, str(target), len(known.checked), time.monotonic() - began)
        if event == "checked":
            judge = Judge(state.name, target, state.model)
            outcome = known.outcome(data["check"], judge)
            update = update._replace(check=data["check"], outcome=outcome)
        elif step == "ends":
            update = update._replace(outcome=OUTCOMES[exit_code(known.rows)], files=files)
        self._send(update)

    def _send(self, update: Update) -> None:
        left = [state.left(self.wanted) for state in self.states]
        targets = sum(len(each) for each in left if each is not None)
        self.progress(update._replace(targets_left=targets, starting=left.count(None)))
