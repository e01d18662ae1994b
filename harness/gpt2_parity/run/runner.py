"""A run: golden in, one worker process per implementation, judged rows out.

What decides a run, and every event of every worker, is written to a folder as it happens. A run that
was killed is resumed from there: what was measured is read back, what is left is measured.
"""

import json
import os
import platform
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_parity import __version__
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.rows import Results
from gpt2_parity.files import atomic, digest, safetensors_mmap, strict_json
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference import golden
from gpt2_parity.reference.records import Record, fresh_case, make_record, shape_of
from gpt2_parity.run import supervisor
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.supervisor import Resources
from gpt2_parity.verdict import known_failures

Progress = Callable[[str, str, int], None]  # implementation, target or "", checks done


def silent(name: str, target: str, done: int) -> None:
    """No progress is shown."""


FORMAT = 1  # of the journal folder
NAME = "run.json"


class Request(NamedTuple):
    """All that decides a run."""

    implementations: Sequence[Found]
    model: Model
    seed: int  # of the fresh tokens
    targets: Sequence[Target] = ()  # all that are offered, if none are named
    require: str = ""  # a device that every implementation must offer
    resources: Resources = Resources()
    ledger: Path | None = None  # of known disagreements


class Prepared(NamedTuple):
    """The truth, ready for workers to map."""

    checkpoint: Checkpoint
    records: list[Record]
    job: dict[str, Any]  # what every worker's job has in common

    def state(self, name: str, model: str) -> RunState:
        """An empty state for an implementation."""
        cases = tuple(shape_of(record) for record in self.records)
        return RunState(name, model, self.checkpoint.hparams, cases)


def verify(
    request: Request,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Results:
    """Run every implementation on the targets and judge it, with the journal in folder.

    A journal that is there already is gone on with. Raises CannotJudge where golden or checkpoint cannot
    be trusted, where a named target is offered by none of the implementations, or where a required
    device is absent.
    """
    started = time.time()
    known = known_failures.read(request.ledger) if request.ledger else []
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary, journals(folder) as place:
        progress("golden", "", 0)  # minutes, where the model is large
        prepared = prepare(request.model, request.seed, Path(temporary))
        begin(request, prepared, place)
        states = []
        for number, found in enumerate(request.implementations):
            state = prepared.state(found.name, request.model.name)
            stem = re.sub(r"[^\w.-]", "_", found.name)[:50]
            examine(state, found, request, prepared, place / f"{number}-{stem}.jsonl", progress)
            states.append(state)
    offered = {target for state in states for target in state.offered or ()}
    unheard = any(state.offered is None for state in states)  # its row of load says why, and fails
    absent = [str(target) for target in request.targets if target not in offered]
    if absent and not unheard:
        raise CannotJudge(
            f"target {', '.join(absent)}: offered by none of the implementations on this machine; "
            f"offered are {', '.join(sorted(map(str, offered))) or 'none'}"
        )
    rows = known_failures.apply([row for state in states for row in state.rows], known)
    versions = {name: v for state in states for name, v in state.versions.items()}
    made_with = environment(
        request.model,
        prepared.checkpoint,
        prepared.records,
        request.seed,
        versions,
        offered,
        started,
    )
    made_with["golden_sha256"] = digest.sha256(request.model.records / "manifest.json")
    made_with["resources"] = request.resources._asdict()
    made_with["implementation_sha256"] = sources(request)
    made_with["command"] = command(request)
    return Results(rows, made_with)


@contextmanager
def journals(folder: Path | None) -> Iterator[Path]:
    """The folder for the journal; a temporary one, if none is named: such a run cannot be resumed."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        yield Path(temporary)


def begin(request: Request, prepared: Prepared, folder: Path) -> None:
    """Write down what decides the run or, where that is written already, see that it is the same.

    Raises CannotJudge where an implementation, the checkpoint or the golden has changed since.
    """
    text = json.dumps(written(request, prepared), indent=1) + "\n"
    path = folder / NAME
    if not path.is_file():
        atomic.write_text(path, text)
        return
    before, now = read(path), json.loads(text)
    for name, value in now.items():
        if before.get(name) != value:
            raise CannotJudge(
                f"{path}: {name} was {before.get(name)!r:.200} when the run began "
                f"and is now {value!r:.200}; start a new run"
            )


def written(request: Request, prepared: Prepared) -> dict[str, Any]:
    """A request as JSON, with hashes of all that it reads."""
    return {
        "format": FORMAT,
        "gpt2_parity": __version__,
        "implementations": [list(found) for found in request.implementations],
        "sources": sources(request),
        "model": request.model.argument,
        "checkpoint_sha256": prepared.checkpoint.sha256,
        "golden_sha256": digest.sha256(request.model.records / "manifest.json"),
        "seed": request.seed,
        "targets": [list(target) for target in request.targets],
        "require": request.require,
        "resources": list(request.resources),
        "ledger": str(request.ledger) if request.ledger else None,
    }


def sources(request: Request) -> dict[str, str]:
    """SHA-256 of the file of each implementation; "" where it is in none."""
    files = {found.name: found.source() for found in request.implementations}
    return {name: digest.sha256(path) if path and path.is_file() else "" for name, path in files.items()}


def command(request: Request) -> str:
    """The command line that repeats a run, seed and all; limits where they are not the usual ones."""
    usual, chosen = Resources(), request.resources
    words = [word for found in request.implementations for word in ("--impl", found.argument)]
    door = ["verify", *words]
    if request.require:
        door = ["gate", request.implementations[0].argument, "--require-device", request.require]
    words = [word for target in request.targets for word in ("--target", str(target))]
    words += ["--model", request.model.argument, "--seed", str(request.seed)]
    words += ["--timeout", f"{chosen.seconds:g}"] if chosen.seconds != usual.seconds else []
    words += ["--memory", f"{chosen.gigabytes:g}"] if chosen.gigabytes != usual.gigabytes else []
    words += ["--threads", str(chosen.threads)] if chosen.threads else []
    words += ["--ledger", str(request.ledger)] if request.ledger else []
    return shlex.join(["parity", *door, *words])


def is_journal(folder: Path) -> bool:
    """Whether a folder holds the journal of a run, or nothing at all; nobody else's may be removed."""
    return (folder / NAME).is_file() or (folder.is_dir() and not any(folder.iterdir()))


def interrupted(folder: Path) -> Request:
    """The request of a run whose journal is in folder. Raises CannotJudge where there is none."""
    path = folder / NAME
    told = read(path)
    try:
        return Request(
            implementations=[Found(*found) for found in told["implementations"]],
            model=catalogue.locate(told["model"]),
            seed=told["seed"],
            targets=[Target(*target) for target in told["targets"]],
            require=told["require"],
            resources=Resources(*told["resources"]),
            ledger=Path(told["ledger"]) if told["ledger"] else None,
        )
    except (KeyError, TypeError) as error:
        raise CannotJudge(f"{path}: not the journal of a run ({error!r}); start a new run") from error


def read(path: Path) -> dict[str, Any]:
    """run.json. Raises CannotJudge where it is missing, not JSON or of another format."""
    try:
        told = strict_json.read(path)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: no run to resume there ({error})") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise CannotJudge(f"{path}: not a journal of format {FORMAT}; start a new run")
    return told


def prepare(model: Model, seed: int, folder: Path) -> Prepared:
    """Check golden and checkpoint, add the fresh case, and lay out what workers need."""
    loaded, records = golden.read(model)
    fresh = make_record(fresh_case(loaded.hparams, seed), loaded.params, loaded.hparams)
    safetensors_mmap.write(folder / "fresh.safetensors", fresh.arrays)
    paths = {record.name: str(model.records / f"{record.name}.safetensors") for record in records}
    job = {
        "weights": str(loaded.weights),
        "hparams": loaded.hparams._asdict(),
        "tokenizer": str(model.checkpoint.resolve()),
        "records": paths | {fresh.name: str(folder / "fresh.safetensors")},
    }
    return Prepared(loaded, [*records, fresh], job)


def examine(
    state: RunState,
    found: Found,
    request: Request,
    prepared: Prepared,
    journal: Path,
    progress: Progress,
) -> None:
    """Run one implementation; after a death go on with the targets that are left, in a new process."""
    replay(journal, state)

    def hear(event: str, data: dict[str, Any]) -> None:
        state.hear(event, data)
        if state.current:
            progress(found.name, str(state.current), len(state.checked))

    while (left := state.left(request.targets)) is None or left:
        progress(found.name, "", 0)
        job = prepared.job | {
            "implementation": found._asdict(),
            "targets": left or list(request.targets) or None,
            "require": request.require,
            "resume": {"target": state.current, "checks": state.checked},
        }
        ended = len(state.ended)
        death = supervisor.supervise(job, journal, request.resources, hear)
        refuse_absence(state, request.require)
        if not death and not state.current and len(state.ended) > ended:
            continue  # with the targets that are left, if any: it could do no more in that process
        if lost := what_was_lost(state, request.targets, death):
            note(journal, state, *lost)
    if state.offered and request.targets and not set(request.targets) & set(state.offered):
        state.skip(request.targets)


def what_was_lost(
    state: RunState, wanted: Sequence[Target], death: str
) -> tuple[Target | None, str] | None:
    """After a worker's end: the target on which it ended too early, or none, and why."""
    left = state.left(wanted)
    if left is None:
        return None, state.broken or death or "it never started"
    if state.offered == []:
        return None, "targets() is empty: it can run on nothing here"
    if left:  # one of them was running, or about to
        return state.current or left[0], death or "the worker ended without a word about this target"
    if death and state.ended:
        return state.ended[-1], death
    return None


def note(journal: Path, state: RunState, target: Target | None, message: str) -> None:
    """Write the loss into the journal, now that its worker is gone, and hear it."""
    event = {"target": target, "message": message}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "lost", **event}) + "\n")
    state.hear("lost", event)


def replay(journal: Path, state: RunState) -> None:
    """Hear what an earlier, killed run has written, and cut off a line that it could not finish.

    Raises CannotJudge, naming the line, where the journal is damaged.
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
            state.hear(event.pop("event"), event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CannotJudge(f"{journal}:{number}: damaged ({error!r}); start a new run") from error


def refuse_absence(state: RunState, device: str) -> None:
    """Raise CannotJudge where a device is required and the implementation does not offer it."""
    if device and state.offered is not None and device not in {t.device for t in state.offered}:
        offers = ", ".join(map(str, state.offered)) or "nothing"
        raise CannotJudge(f"device {device} is required, but {state.name} offers {offers} here")


def environment(
    model: Model,
    loaded: Checkpoint,
    records: Sequence[Record],
    seed: int,
    versions: dict[str, str],
    offered: set[Target],
    started: float,
) -> dict[str, Any]:
    """Where, with what and how the results were made, as JSON."""
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
