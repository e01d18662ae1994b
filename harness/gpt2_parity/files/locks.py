"""Locks between processes: a file that one process holds at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path) -> Iterator[bool | None]:
    """Try to hold a lock file, without waiting. It is removed afterwards; the system frees it on a kill.

    Yields True where it is held, False where another process holds it, and None where the file system
    has no locks, as with some network folders.
    """
    from filelock import FileLock, Timeout  # 50 ms, which the start of a benchmark's worker need not pay

    file = FileLock(path)
    held: bool | None = True
    try:
        file.acquire(blocking=False)
    except Timeout:
        held = False
    except (OSError, NotImplementedError):
        held = None
    try:
        yield held
    finally:
        if held:
            # before the release, so that no other process can lock a file that is then removed
            path.unlink(missing_ok=True)
            file.release()
