"""The folder that --out names: check it before the work, hold it, and replace an earlier run's files."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge, Interrupted
from gpt2_parity.files import locks


def writable(out: Path) -> None:
    """Raise CannotJudge, before any work, where the folder cannot be written to. Creates nothing."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            out.lstat()  # raises for a name that is too long for any folder
        existing = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryDirectory(dir=existing, prefix=".parity-probe-"):
            pass
    except OSError as error:
        raise CannotJudge(f"{out}: cannot be made or written to ({error.strerror})") from error


RUNNING = ".parity-running"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold an output folder, so that no other run writes into it meanwhile.

    The folder is created, and removed again if nothing was written into it. Raises CannotJudge where
    another run holds it.
    """
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locks.lock(out / RUNNING) as held:
            if held is False:
                raise CannotJudge(f"{out}: another run is using it; wait for it, or name another --out")
            yield
    finally:
        if created:
            with suppress(OSError):
                out.rmdir()  # fails where anything is in it


EARLIER = ".parity-earlier"


@contextmanager
def replacing(out: Path, names: Iterable[str]) -> Iterator[None]:
    """Put the files of an earlier run aside, so that they are not taken for those of the new run.

    They come back if the new run is refused (CannotJudge) and are removed otherwise, also if it is
    Interrupted: it can then be resumed.
    """
    aside = out / EARLIER
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
    present = [name for name in names if os.path.lexists(out / name)]
    for name in present:
        if "." in name and (out / name).is_dir() and not (out / name).is_symlink():
            raise CannotJudge(f"{out / name}: cannot be removed (it is a folder)")
    moved: list[str] = []
    try:
        if present:
            aside.mkdir()
        for name in present:
            (out / name).rename(aside / name)
            moved.append(name)
    except OSError as error:
        put_back(out, moved)
        raise CannotJudge(f"{error.filename}: cannot be removed ({error.strerror})") from error
    refused = False
    try:
        yield
    except Interrupted:
        raise
    except CannotJudge:
        refused = True
        for name in names:  # remove what the refused run wrote
            shutil.rmtree(out / name, ignore_errors=True)
        put_back(out, moved)
        raise
    finally:
        if not refused:
            shutil.rmtree(aside, ignore_errors=True)


def put_back(out: Path, names: Iterable[str]) -> None:
    """Move files back that were put aside. One that cannot be moved stays there."""
    for name in names:
        with suppress(OSError):
            (out / EARLIER / name).rename(out / name)
    with suppress(OSError):
        (out / EARLIER).rmdir()
