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


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold a lock file, after waiting until no other process holds it. The file stays.

    Where the file system has no locks, nothing is held: two processes may then do the same work.
    """
    from filelock import FileLock

    file = FileLock(path)
    try:
        file.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        file.release()
