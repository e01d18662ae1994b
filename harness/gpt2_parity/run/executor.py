"""Where the units of a run are examined: in processes on this machine, or elsewhere by the same rules.

An examination knows only this interface; what is measured does not depend on who keeps it.
"""

import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from gpt2_parity.reference import parallel
from gpt2_parity.run import cores, supervisor
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.run.request import Request
from gpt2_parity.run.schedule import Shares, Unit, shares
from gpt2_parity.run.supervisor import Claim, Handle


class Task(NamedTuple):
    """A unit, and what its process is to do with what it finds."""

    unit: Unit
    slot: int  # from 0: which of the processes at once it is
    journal: Path  # a new file, which receives every event
    handle: Handle  # is called with every event; what it raises ends the unit
    claim: Claim  # says which target to examine, once the unit's process has reported its targets
    stop: threading.Event  # once set, the process ends


class Executor(Protocol):
    """Examines units. Entered before anything is prepared, and left when no unit is under way."""

    shares: Shares  # units at once, and the threads of each; known once prepared
    devices: Mapping[str, int]  # how many targets a device carries at once; others carry one

    def prepare(self, prepared: Prepared) -> None:
        """Get ready for the units of what was prepared."""

    def expect(self, dtypes: Iterable[str]) -> None:
        """Targets of these dtypes will come: their truth may be made meanwhile."""

    def examine(self, task: Task) -> str:
        """Examine a unit; return why its process ended early, with its last output, or ""."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


ONE = ("float32",)  # what nearly every implementation offers


class LocalExecutor:
    """Examines units in processes of this machine."""

    def __init__(self, request: Request):
        self.request = request
        self.devices: Mapping[str, int] = {}
        self.ahead = ThreadPoolExecutor(1)
        self.dtypes: set[str] = set()  # of which the fresh case is known, or being made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.ahead.shutdown(cancel_futures=True)

    def prepare(self, prepared: Prepared) -> None:
        """Share this machine out, and begin to make the truth that is surely needed."""
        self.prepared = prepared
        self.shares = shares(prepared.hparams, self.request.jobs, self.request.resources.threads)
        self.expect(target.dtype for target in self.request.targets)
        if not self.request.targets:
            self.expect(ONE)

    def expect(self, dtypes: Iterable[str]) -> None:
        """Make the truth about the fresh case while workers start, which takes as long."""
        for dtype in dtypes:
            if dtype not in self.dtypes:
                self.dtypes.add(dtype)
                self.ahead.submit(self._make, dtype)

    def _make(self, dtype: str) -> None:
        with parallel.alone():
            self.prepared.at(dtype)

    def examine(self, task: Task) -> str:
        """Run one worker process from start to end."""
        request, slot, threads = self.request, task.slot, self.request.resources.threads or 0
        job = self.prepared.job | {
            "implementation": request.implementations[task.unit.implementation]._asdict(),
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "threads": self.shares.threads,
            "first": list(request.first),
            "asked": request.asked._asdict(),
            "cores": cores.available()[slot * threads : (slot + 1) * threads],
        }
        return supervisor.supervise(
            job, task.journal, request.resources, task.handle, task.claim, task.stop
        )
