"""How many rounds each workload gets, if a benchmark is to end within some seconds."""

import time
from collections.abc import Callable

LEAST = 1  # rounds of each workload, however long they take


class Pace:
    """Shares the seconds that are left among the workloads that are left."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        """seconds: from now; None: as long as it takes."""
        self.clock = clock
        self.end = None if seconds is None else clock() + seconds
        self.deadline = self.end

    def begin(self, workloads: int, afterwards: float) -> None:
        """Begin the first of so many workloads, after which seconds are needed to verify again."""
        if self.end is not None:
            now = self.clock()
            self.deadline = now + max(0.0, self.end - afterwards - now) / workloads

    def another(self, done: int, took: float) -> bool:
        """Whether the workload that was begun has time for one more round.

        done: its rounds so far. took: seconds of the last one.
        """
        return self.deadline is None or done < LEAST or self.clock() + took <= self.deadline
