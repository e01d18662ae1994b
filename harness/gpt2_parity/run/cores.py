"""The processor cores that this process may use."""

import os
from collections.abc import Sequence


def available() -> list[int]:
    """Numbers of the cores that this process may use, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to(cores: Sequence[int]) -> None:
    """Restrict this process to some cores. Does nothing if the system does not support it."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
