"""The schedule of a run: what is examined next, by how many workers at once, and with how many threads.

A unit of work is one target of one implementation, in a process of its own: so what is measured does not
depend on the schedule. Only the first process of an implementation starts without a target, to report
which there are.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.interface import Target
from gpt2_parity.run import cores, history
from gpt2_parity.run.journal import RunState

SMALL = 10_000_000  # weights; the products of smaller models are too short for several threads
FRAMEWORK = 1.5  # GiB that a framework needs beside the weights
COPIES = 4  # of the weights that a worker may hold, in float32


class Unit(NamedTuple):
    """One implementation, and its target; None: it has not reported its targets yet."""

    implementation: int
    target: Target | None


class Schedule:
    """Hands out units. Several threads use it at once."""

    def __init__(
        self,
        states: Sequence[RunState],
        wanted: Sequence[Target],
        seconds: history.Seconds,
        devices: Mapping[str, int] | None = None,
    ):
        """seconds: what targets took the last time (run/history.py); the longest start first.

        devices: how many targets a device other than the CPU carries at once, if more than one.
        """
        self.states, self.wanted, self.seconds = states, wanted, seconds
        self.devices = devices or {}
        self.changed = threading.Condition()
        self.starting: set[int] = set()  # implementations that may still report targets
        self.taken: set[tuple[int, Target]] = set()
        self.stopped = threading.Event()

    def next(self) -> Unit | None:
        """A unit for a new worker, after waiting for one if need be; None if there will be no more."""
        with self.changed:
            while not self.stopped.is_set():
                if unit := self._new() or self._unit():
                    return unit
                if not self.starting and not self._waiting():
                    return None
                self.changed.wait()
        return None

    def claim(self, i: int) -> Target | None:
        """A target for the first worker of implementation i, which has reported them; None: it ends."""
        with self.changed:
            self.starting.discard(i)
            unit = None if self.stopped.is_set() else self._unit([i])
            self.changed.notify_all()
            return unit and unit.target

    def release(self, i: int) -> None:
        """A worker of implementation i has ended."""
        with self.changed:
            self.starting.discard(i)
            self.changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self.changed:
            self.stopped.set()
            self.changed.notify_all()

    def _new(self) -> Unit | None:
        """An implementation that no worker has started yet: one of unknown length, or the longest."""
        unknown = [
            i
            for i, state in enumerate(self.states)
            if state.left(self.wanted) is None and i not in self.starting
        ]
        if not unknown:
            return None
        i = max(unknown, key=self._length)
        self.starting.add(i)
        return Unit(i, None)

    def _unit(self, of: Sequence[int] | None = None) -> Unit | None:
        """A target that nobody has taken: one of unknown length, or the longest."""
        free = self._free(range(len(self.states)) if of is None else of)
        for unit in sorted(free, key=lambda unit: self._length(*unit), reverse=True):
            if not self._busy(unit[1]):
                self.taken.add(unit)
                return Unit(*unit)
        return None

    def _free(self, of: Sequence[int]) -> list[tuple[int, Target]]:
        known = ((i, target) for i in of for target in self.states[i].left(self.wanted) or ())
        return [unit for unit in known if unit not in self.taken]

    def _length(self, i: int, target: Target | None = None) -> float:
        """Seconds that a target took the last time, or all of an implementation; unknown: infinite."""
        known = self.seconds.get(history.name_of(self.states[i]), {})
        if target is not None:
            return known.get(str(target), math.inf)
        return sum(known.values()) if known else math.inf

    def _busy(self, target: Target) -> bool:
        """Whether a device other than the CPU is in use: its memory is for one at a time."""
        using = [each.device for i, each in self.taken if each not in self.states[i].ended]
        return target.device != "cpu" and using.count(target.device) >= self.devices.get(
            target.device, 1
        )

    def _waiting(self) -> bool:
        """Whether a target waits for its device."""
        return bool(self._free(range(len(self.states))))


class Shares(NamedTuple):
    """How many workers run at once, and the threads of each; None: as its libraries choose."""

    jobs: int
    threads: int | None


def shares(hparams: HParams, jobs: int | None, threads: int | None) -> Shares:
    """The workers that cores and memory carry, unless jobs or threads say otherwise."""
    available = len(cores.available())
    gigabytes = FRAMEWORK + COPIES * 4 * n_weights(hparams) / 2**30
    carried = int(psutil.virtual_memory().available / 2**30 / gigabytes)
    chosen = jobs or max(1, min(available // (threads or 1), carried))
    return Shares(chosen, threads or threads_each(hparams, available, chosen))


def threads_each(hparams: HParams, cores: int, jobs: int) -> int:
    """The threads of each of several workers that share so many cores: one for a small model."""
    return 1 if n_weights(hparams) < SMALL else max(1, cores // jobs)


def n_weights(hparams: HParams) -> int:
    """The number of weights of a model."""
    return sum(math.prod(shape) for shape in parameter_shapes(hparams).values())
