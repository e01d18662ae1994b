"""One unit as a task of a dask worker, where it gets a supervised process of its own as it does locally.

What it finds is sent as numbered messages on a topic of the client, which the scheduler keeps in order.
"""

import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.files import atomic
from gpt2_parity.run import code, content, cores, imported, supervisor
from gpt2_parity.run.order import Order, decode
from gpt2_parity.run.request import source_sha256

if TYPE_CHECKING:  # distributed is optional
    from distributed import Worker

UNITS: dict[str, tuple[str, int]] = {}  # under way in this dask worker: key -> run, slot
LOCK = threading.Lock()


def about() -> dict[str, Any]:
    """This machine and its code, as JSON, for the client to compare and to share it out."""
    return {
        "code": list(code.installed()),
        "hostname": platform.node(),
        "cores": len(cores.available()),
        "memory": psutil.virtual_memory().available,
    }


def under_way(run: str) -> int:
    """How many units of a run this dask worker has."""
    with LOCK:
        return sum(each == run for each, _ in UNITS.values())


def folder_of(run: str) -> Path:
    """The folder for a run on this machine, shared by its dask workers; the name cannot be guessed."""
    return Path(tempfile.gettempdir()) / f"parity-run-{run}"


async def lacking(hashes: list[str]) -> list[str]:
    """content.missing, while the dask worker goes on."""
    return await asyncio.to_thread(content.missing, hashes)


async def receive(*piece: Any) -> None:
    """content.receive, while the dask worker goes on."""
    await asyncio.to_thread(content.receive, *piece)


def forget(run: str) -> None:
    """Remove what a run has left on this machine, apart from what is kept between runs."""
    shutil.rmtree(folder_of(run), ignore_errors=True)


class Cancelled(threading.Event):
    """Set once a task is unwanted, because its client cancelled it or has gone, or its worker closes."""

    def __init__(self, worker: "Worker", key: str):
        super().__init__()
        self.worker, self.key = worker, key

    def is_set(self) -> bool:
        return self.unwanted() or self.worker.status.name not in ALIVE

    def unwanted(self) -> bool:
        task = self.worker.state.tasks.get(self.key)
        return task is None or task.state != "executing"


ALIVE = ("running", "paused")  # states of a dask worker


class Messages:
    """Sends numbered messages about one unit to the client."""

    def __init__(self, worker: "Worker", order: Order):
        self.worker, self.order, self.n = worker, order, 0

    def send(self, kind: str, **data: Any) -> None:
        text = json.dumps({"kind": kind, **data})
        self.worker.log_event(self.order.topic, {"unit": self.order.key, "n": self.n, "text": text})
        self.n += 1


def examine(text: str) -> None:
    """Examine a unit; text: an Order. Does nothing if it was begun before: its dask worker was lost."""
    from distributed import get_worker

    order, worker = decode(text), get_worker()
    if has_begun(worker, order.key):
        return
    messages = Messages(worker, order)
    messages.send("began", worker=worker.address, host=platform.node())
    stop = Cancelled(worker, order.key)
    with registered(order) as slot:
        kind, data = outcome(order, slot, messages, stop)
    if stop.unwanted():  # asked before the last message: the client cancels what has sent it
        if not under_way(order.run):
            forget(order.run)
    else:
        messages.send(kind, **data)


def outcome(
    order: Order, slot: int, messages: Messages, stop: threading.Event
) -> tuple[str, dict[str, Any]]:
    """Examine a unit and return the last message about it."""
    try:
        refuse_other_code(order)
        if lacking := content.missing(order.hashes):
            return "lacks", {"hashes": lacking}
        return "ended", {"reason": supervise(order, slot, messages, stop)}
    except (CannotJudge, OSError) as error:
        return "refused", {"message": str(error)}


def has_begun(worker: "Worker", key: str) -> bool:
    """Whether a task was begun before; from now on it was.

    The scheduler keeps that as the Event of that name. Here its handlers are called, because an Event
    needs a client, and a dask worker with a client may not end when its scheduler does.
    """
    from distributed.utils import sync

    before = sync(worker.loop, worker.scheduler.event_is_set, name=key)
    if not before:
        sync(worker.loop, worker.scheduler.event_set, name=key)
    return bool(before)


@contextmanager
def registered(order: Order) -> Iterator[int]:
    """Count a unit as under way; yields the lowest slot of this dask worker that is free."""
    with LOCK:
        slot = min(set(range(len(UNITS) + 1)) - {slot for _, slot in UNITS.values()})
        UNITS[order.key] = order.run, slot
    folder_of(order.run).mkdir(mode=0o700, exist_ok=True)
    try:
        yield slot
    finally:
        with LOCK:
            del UNITS[order.key]


def refuse_other_code(order: Order) -> None:
    """Raise CannotJudge if other code than the client's would measure or be measured here."""
    ours, found = code.installed(), order.implementation
    if ours != order.code:
        raise CannotJudge(f"has {ours}, but the client has {order.code}; install the same on both")
    if not found.is_file and (here := source_sha256(found)) != order.source:
        raise CannotJudge(
            f"the file of {found.module} has SHA-256 {here or 'none'}, but {order.source or 'none'} on "
            "the client; a module must be the same on every dask worker"
        )


def supervise(order: Order, slot: int, messages: Messages, stop: threading.Event) -> str:
    """Run the unit's process from start to end. Returns why it ended early, or "".

    Raises CannotJudge if the implementation does not offer the target on this machine.
    """
    target, offered = order.target, True

    def handle(event: str, data: dict[str, Any]) -> None:
        nonlocal offered
        if event == "hello" and target is not None:  # the client knows it already, from all machines
            offered = target in [Target(*each) for each in data["targets"]]
        else:
            messages.send("event", event=event, data=imported.without_paths(data))

    def claim() -> Mapping[str, Any] | None:
        return {"target": target, "done": order.done} if target and offered else None

    threads = order.job["threads"]
    limits = order.resources._replace(threads=threads)  # over those of the dask worker's environment
    with tempfile.TemporaryDirectory(dir=folder_of(order.run)) as folder:
        journal = Path(folder, "unit.jsonl")
        reason = supervisor.supervise(job_of(order, slot), journal, limits, handle, claim, stop)
    if not offered:
        raise CannotJudge(
            f"{order.implementation.name} does not offer {target} here, but on another machine it does; "
            "dask workers for the same device must offer the same targets"
        )
    return reason


def job_of(order: Order, slot: int) -> dict[str, Any]:
    """The job of the unit's process, with paths of this machine."""
    folder, files, found = folder_of(order.run), order.files, order.implementation
    for name, sha256 in files.tokenizer.items():
        place(sha256, folder / "tokenizer" / name)
    if found.is_file:  # its name is in the messages of its errors
        path = folder / order.source / Path(found.module).name
        place(order.source, path)
        found = found._replace(module=str(path))
    count = order.resources.threads or 0
    return {
        **order.job,
        "implementation": found._asdict(),
        "path": [entry or os.getcwd() for entry in sys.path],
        "cores": cores.available()[slot * count : (slot + 1) * count],
        "weights": str(content.path(files.weights)),
        "records": {name: str(content.path(sha256)) for name, sha256 in files.records.items()},
        "tokenizer": str(folder / "tokenizer"),
        "folder": str(folder / "truth"),
    }


def place(sha256: str, path: Path) -> None:
    """Let a path in the folder of a run be the file of that hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with atomic.replacing(path) as new:
            new.symlink_to(content.path(sha256))
