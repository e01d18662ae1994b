"""A run: compares implementations with the golden records, each in its own worker, and returns rows.

The request and every event of every worker are written to a journal folder as they happen. A run that
was killed resumes from there: finished checks are read back, and only the rest is measured.
"""

import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.plan import Progress
from gpt2_parity.contract.rows import Results
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference.records import Record
from gpt2_parity.run import in_process, supervisor
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import Prepared, prepare
from gpt2_parity.run.request import Recorded, Request, begin, command, record
from gpt2_parity.verdict import known_failures
from gpt2_parity.version import __version__


def silent(name: str, target: str, done: int) -> None:
    """A progress callback that shows nothing."""


def verify(
    request: Request,
    folder: Path | None = None,
    progress: Progress = silent,
    objects: Sequence[Any] | None = None,
) -> Results:
    """Run every implementation of a request on its targets and judge it.

    folder: where the journal is written; a journal that is already there is resumed. None: in a
    temporary folder, so that the run cannot be resumed.
    objects: one for each of the request's implementations, to be examined in this process; None in it
    means that the implementation is imported here. Without objects, each gets a process of its own.

    Raises CannotJudge if the golden record or the checkpoint cannot be trusted, if no implementation
    offers a target of the request, or if a required device is absent.
    """
    started = time.time()
    known = known_failures.read(request.ledger) if request.ledger else []
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary, journal_folder(folder) as journals:
        progress("golden", "", 0)  # takes minutes where the model is large
        prepared = prepare(request.model, request.seed, Path(temporary))
        recorded = record(request, prepared.checkpoint.sha256)
        begin(recorded, journals)
        states = []
        for i, found in enumerate(request.implementations):
            state = prepared.state(found.name, request.model.name)
            if objects is None:
                stem = re.sub(r"[^\w.-]", "_", found.name)[:50]
                examine(state, found, request, prepared, journals / f"{i}-{stem}.jsonl", progress)
            else:
                examine_here(state, found, objects[i], request, prepared, progress)
            if state.offered and request.targets and not set(request.targets) & set(state.offered):
                state.skip(request.targets)
            states.append(state)
    refuse_missing_targets(request.targets, states)
    rows = known_failures.apply([row for state in states for row in state.rows], known)
    made_with = environment(
        request.model,
        prepared.checkpoint,
        prepared.records,
        request.seed,
        {name: version for state in states for name, version in state.versions.items()},
        {target for state in states for target in state.offered or ()},
        started,
    )
    return Results(rows, made_with | how(request, recorded, isolated=objects is None))


def how(request: Request, recorded: Recorded, isolated: bool) -> dict[str, Any]:
    """How the run was made, apart from its model, as JSON."""
    facts: dict[str, Any] = {
        "golden_sha256": recorded.golden_sha256,
        "implementation_sha256": recorded.sources,
        "isolated": isolated,
    }
    if isolated:
        facts["resources"] = request.resources._asdict()
    if text := command(request):
        facts["command"] = text
    return facts


@contextmanager
def journal_folder(folder: Path | None) -> Iterator[Path]:
    """The folder for the journal: the given one, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        yield Path(temporary)


def examine(
    state: RunState,
    found: Found,
    request: Request,
    prepared: Prepared,
    journal: Path,
    progress: Progress,
) -> None:
    """Run one implementation in a worker process; if it ends early, start another for the rest."""
    replay(journal, state)

    def handle(event: str, data: dict[str, Any]) -> None:
        state.handle(event, data)
        if state.current:
            progress(found.name, str(state.current), len(state.checked))

    while (left := state.left(request.targets)) is None or left:
        progress(found.name, "", 0)
        job = prepared.job | {
            "implementation": found._asdict(),
            "targets": left or list(request.targets) or None,
            "require": request.require,
            "resume": {"target": state.current, "checks": state.checked},
            "path": [entry for entry in sys.path if isinstance(entry, str)],
        }
        ended = len(state.ended)
        exit_reason = supervisor.supervise(job, journal, request.resources, handle)
        refuse_absence(state, request.require)
        if not exit_reason and not state.current and len(state.ended) > ended:
            continue  # every call raised in that process: a new one examines the targets that are left
        if lost := unfinished(state, request.targets, exit_reason):
            record_loss(journal, state, *lost)


def examine_here(
    state: RunState,
    found: Found,
    loaded: Any,
    request: Request,
    prepared: Prepared,
    progress: Progress,
) -> None:
    """Run one implementation in this process. loaded: the implementation, or None to import it."""

    def load() -> Any:
        return found.load() if loaded is None else loaded

    def show(done: int) -> None:
        progress(found.name, str(state.current), done)

    def offers() -> None:
        refuse_absence(state, request.require)

    progress(found.name, "", 0)
    in_process.examine(state, load, request.targets, prepared, show, offers)


def unfinished(
    state: RunState, wanted: Sequence[Target], exit_reason: str
) -> tuple[Target | None, str] | None:
    """After a worker's end: the target that it left unfinished and why; None if it finished everything.

    The target is None if the worker ended before it reported its targets.
    """
    left = state.left(wanted)
    if left is None:
        return None, state.broken or exit_reason or "it never started"
    if state.offered == []:
        return None, "targets() is empty: it cannot run on this machine"
    if left:  # the worker was on one of them, or about to start it
        reason = exit_reason or "ended without a report on this target"
        return state.current or left[0], reason
    if exit_reason and state.ended:
        return state.ended[-1], exit_reason
    return None


def record_loss(journal: Path, state: RunState, target: Target | None, message: str) -> None:
    """Record in the journal, whose worker has ended, and in state that a target was left unfinished."""
    event = {"target": target, "message": message}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "lost", **event}) + "\n")
    state.handle("lost", event)


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


def refuse_absence(state: RunState, device: str) -> None:
    """Raise CannotJudge if a device is required and the implementation does not offer it."""
    if device and state.offered is not None and device not in {t.device for t in state.offered}:
        offers = ", ".join(map(str, state.offered)) or "nothing"
        raise CannotJudge(f"device {device} is required, but {state.name} offers {offers} here")


def refuse_missing_targets(wanted: Sequence[Target], states: Sequence[RunState]) -> None:
    """Raise CannotJudge if none of the implementations offers a requested target.

    Does not raise if one of them failed before it reported its targets: its row "load" reports that.
    """
    offered = {target for state in states for target in state.offered or ()}
    absent = [str(target) for target in wanted if target not in offered]
    if absent and all(state.offered is not None for state in states):
        raise CannotJudge(
            f"target {', '.join(absent)}: offered by none of the implementations on this machine; "
            f"offered are {', '.join(sorted(map(str, offered))) or 'none'}"
        )


def environment(
    model: Model,
    loaded: Checkpoint,
    records: Sequence[Record],
    seed: int,
    versions: dict[str, str],
    offered: set[Target],
    started: float,
) -> dict[str, Any]:
    """Where and with what the results were made, as JSON; started is in seconds since the epoch."""
    cuda = any(target.device == "cuda" for target in offered)
    return {
        "gpt2_parity": __version__,
        "model": model.name,
        "hparams": loaded.hparams._asdict(),
        "checkpoint_sha256": loaded.sha256,
        "seed": seed,
        "cases": [record.name for record in records],
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "cuda": "present" if cuda else "skipped: no CUDA device offered",
        "date": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
    }
