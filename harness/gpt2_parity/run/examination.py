"""The implementations of one request, examined side by side, each target in a process of its own.

Every event of every worker is written to a journal in one folder. From there a run that was killed
resumes: finished checks are read back, and only the rest is measured.
"""

import functools
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt2_parity.contract.interface import CannotJudge, CodeChanged, Target
from gpt2_parity.contract.progress import Progress
from gpt2_parity.run import history, imported, in_process
from gpt2_parity.run.executor import Executor, Task
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.run.progress import Reporter
from gpt2_parity.run.request import Request
from gpt2_parity.run.schedule import Schedule, Unit
from gpt2_parity.run.supervisor import Handle


class Examination:
    """Examines all implementations of a request; its states then have the rows."""

    def __init__(self, request: Request, prepared: Prepared, journals: Path, progress: Progress):
        self.request, self.prepared, self.journals = request, prepared, journals
        self.states = [prepared.state(each.name, request.model.name) for each in request.implementations]
        for state in self.states:
            state.asked = request.asked
        self.reporter = Reporter(self.states, request.targets, progress)
        self.lock = threading.Lock()  # for the states, and for what is below
        self.n_journals = 0
        self.executor: Executor | None = None

    def in_this_process(self, objects: Sequence[Any]) -> None:
        """Examine objects in this process, one after the other; None: import the implementation."""
        for i, (found, loaded) in enumerate(zip(self.request.implementations, objects, strict=True)):
            load = found.load if loaded is None else functools.partial(identity, loaded)
            self.reporter.starts(i)
            in_process.examine(
                self.states[i], load, self.request.targets, self.prepared, self.handler(i)
            )

    def in_workers(self, executor: Executor) -> None:
        """Examine all in worker processes. An exception in one thread ends all workers."""
        self.replay()
        self.executor = executor
        schedule = Schedule(self.states, self.request.targets, history.read(), executor.devices)
        with ThreadPoolExecutor(executor.shares.jobs) as pool:
            try:
                slots = range(executor.shares.jobs)
                threads = [pool.submit(self.work, executor, schedule, slot) for slot in slots]
                for thread in threads:
                    thread.result()
            finally:  # after Ctrl-C too, before the pool waits for its threads
                schedule.stop()
        if not self.request.only:  # a selection says nothing about the whole
            history.add(self.states)

    def work(self, executor: Executor, schedule: Schedule, slot: int) -> None:
        """Examine one unit after another, until there are no more."""
        try:
            while unit := schedule.next():
                self.examine(executor, schedule, unit, slot)
                schedule.release(unit.implementation)
        except BaseException:
            schedule.stop()
            raise

    def examine(self, executor: Executor, schedule: Schedule, unit: Unit, slot: int) -> None:
        """Run one worker process. Where its implementation has just started, it may claim a target."""
        i, state, target = unit.implementation, self.states[unit.implementation], unit.target

        def claim() -> Mapping[str, Any] | None:
            nonlocal target
            target = target or schedule.claim(i)
            if target is None:
                return None
            done = state.targets[target].checked if target in state.targets else []
            return {"target": target, "done": done}

        if state.offered is None:
            self.reporter.starts(i)
        task = Task(unit, slot, self.new_journal(i), self.handler(i), claim, schedule.stopped)
        reason = executor.examine(task)
        if not task.stop.is_set() and (lost := unfinished(state, target, reason)):
            record_loss(task.journal, task.handle, *lost)

    def handler(self, i: int) -> Handle:
        """What handles the events of an implementation."""

        def handle(event: str, data: dict[str, Any]) -> None:
            state = self.states[i]
            with self.lock:
                state.handle(event, data)
            refuse_change(state)
            if event == "cannot_judge":
                raise CannotJudge(data["message"])
            if event in ("hello", "device"):
                refuse_absence(state, self.request.require)
            if event == "hello" and self.executor:
                self.executor.expect(target.dtype for target in state.left(self.request.targets) or ())
            self.reporter.show(i, event, data)

        return handle

    def stem(self, i: int) -> str:
        """The names of an implementation's journals begin with it."""
        return f"{i}-" + re.sub(r"[^\w-]", "_", self.states[i].name)[:50]

    def new_journal(self, i: int) -> Path:
        """A path for the journal of one more worker."""
        with self.lock:
            self.n_journals += 1
            return self.journals / f"{self.stem(i)}.{self.n_journals:03}.jsonl"

    def replay(self) -> None:
        """Read the journals of a run that was killed, so that it continues where it was."""
        for i, state in enumerate(self.states):
            for journal in sorted(self.journals.glob(f"{self.stem(i)}.*.jsonl")):
                replay(journal, state)
                self.n_journals = max(self.n_journals, int(journal.suffixes[0][1:]))
            refuse_other_code(state)


def identity(loaded: Any) -> Any:
    return loaded


def unfinished(
    state: RunState, target: Target | None, exit_reason: str
) -> tuple[Target | None, str] | None:
    """After a worker's end: the target that it left unfinished and why; None if it finished everything.

    target: what it was to examine. The target is None if the worker ended before it reported which it
    offers.
    """
    if state.offered is None:
        return None, state.broken or exit_reason or "it never started"
    if not state.offered:
        return None, "targets() is empty: it cannot run on this machine"
    if target and (exit_reason or target not in state.ended):
        return target, exit_reason or "ended without a report on this target"
    return None


def record_loss(journal: Path, handle: Handle, target: Target | None, message: str) -> None:
    """Write to the journal, whose worker has ended, and handle that a target was left unfinished."""
    event = {"target": target, "message": message}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "lost", **event}) + "\n")
    handle("lost", event)


def replay(journal: Path, state: RunState) -> None:
    """Replay the events that a killed run wrote into state; cut off an unfinished last line.

    Raises CannotJudge, naming the line, if the journal is damaged.
    """
    if not journal.is_file():
        return
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(journal, len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            event = json.loads(line)
            state.handle(event.pop("event"), event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CannotJudge(f"{journal}:{number}: damaged ({error!r}); start a new run") from error


def refuse_change(state: RunState) -> None:
    """Raise CodeChanged if processes of an implementation have imported different versions of a file."""
    if state.changed:
        raise CodeChanged(
            f"{', '.join(state.changed)} of {state.name}: edited since the run began, so that its rows "
            "would be of different code; start a new run"
        )


def refuse_other_code(state: RunState) -> None:
    """Raise CodeChanged if a file that a killed run imported is no longer what it was."""
    for name, file in state.files.items():
        if "path" in file and imported.sha256_of(Path(file["path"])) != file["sha256"]:
            state.changed.append(name)
    refuse_change(state)


def refuse_absence(state: RunState, device: str) -> None:
    """Raise CannotJudge if a device is required and is not offered, or is not there.

    An implementation that declares a device may well compute on another one.
    """
    if device and device in state.unseen:
        raise CannotJudge(
            f"device {device} is required, and {state.name} declares it, but none is visible on this "
            "machine: no driver of a GPU is loaded, or CUDA_VISIBLE_DEVICES hides all"
        )
    if device and device in state.elsewhere:
        raise CannotJudge(
            f"device {device} is required, and {state.name} declares it, but after a forward pass "
            f"nothing is seen of it there: {state.elsewhere[device]}"
        )
    if device and state.offered is not None and device not in {t.device for t in state.offered}:
        offers = ", ".join(map(str, state.offered)) or "nothing"
        raise CannotJudge(f"device {device} is required, but {state.name} offers {offers} here")
