"""The folder that --out names: found to be of use before the work, and an earlier run's files in it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge


def writable(out: Path) -> None:
    """Find out before the work, not after it, that there is no place for the results; make nothing."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            out.lstat()  # raises for a name that is too long for there ever to be such a folder
        there = next(place for place in (out, *out.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryDirectory(dir=there, prefix=".parity-probe-"):
            pass
    except OSError as error:
        raise CannotJudge(f"{out}: cannot be made or written to ({error.strerror})") from error


RUNNING = ".parity-running"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else's run is in this folder meanwhile: two would write into each other's journal.

    The folder is made, and goes again if nothing came into it. Raises CannotJudge where a run is there.
    """
    made = not out.exists()
    place = out / RUNNING  # a folder of its own: what is written into out locks that one
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        locked(descriptor, out)
        try:
            yield
        finally:
            with suppress(OSError):
                place.rmdir()
                if made:
                    out.rmdir()  # which fails where anything is in it
    finally:
        os.close(descriptor)


def locked(descriptor: int, out: Path) -> None:
    """Lock a folder for as long as it is open. Raises CannotJudge where another run has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        told = f"{out}: a run is still under way there; wait for it, or name another --out"
        raise CannotJudge(told) from error
    except OSError:
        pass  # some networks' folders cannot be locked


EARLIER = ".parity-earlier"


@contextmanager
def replacing(out: Path, names: Iterable[str]) -> Iterator[None]:
    """A new run in the place of an earlier one, whose files must not pass for its own.

    They are back where the new run is refused (CannotJudge), and gone otherwise.
    """
    aside = out / EARLIER
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    there = [name for name in names if os.path.lexists(out / name)]
    for name in there:
        if "." in name and (out / name).is_dir() and not (out / name).is_symlink():
            raise CannotJudge(f"{out / name}: cannot be removed (it is a folder)")
    moved: list[str] = []
    try:
        if there:
            aside.mkdir()
        for name in there:
            (out / name).rename(aside / name)
            moved.append(name)
    except OSError as error:
        put_back(out, moved)
        raise CannotJudge(f"{error.filename}: cannot be removed ({error.strerror})") from error
    refused = False
    try:
        yield
    except CannotJudge:
        refused = True
        for name in names:  # what the refused run has made of itself goes
            shutil.rmtree(out / name, ignore_errors=True)
        put_back(out, moved)
        raise
    finally:
        if not refused:
            shutil.rmtree(aside, ignore_errors=True)


def put_back(out: Path, names: Iterable[str]) -> None:
    """Files that were put aside; one that cannot come back stays where it is."""
    for name in names:
        with suppress(OSError):
            (out / EARLIER / name).rename(out / name)
    with suppress(OSError):
        (out / EARLIER).rmdir()
