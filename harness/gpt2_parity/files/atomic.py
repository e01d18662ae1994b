"""Files and folders that are written whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge

ASIDE = ".parity-writing-"  # prefix of the folders in which new content is prepared


def write_text(path: Path, text: str) -> None:
    """Write a text file all or nothing, likewise. What UTF-8 cannot say is written as an escape."""
    try:
        with aside(path) as folder:
            (folder / "new").write_text(text, encoding="utf-8", errors="backslashreplace")
            (folder / "new").replace(path)
    except OSError as error:
        raise CannotJudge(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A folder beside path in which to prepare what is then renamed to it; gone afterwards.

    A process that is killed cannot clear its own away. Each holds a lock on its folder for as long as
    it lives, so that the next one to write beside it knows which are left over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as briefly:  # nobody is between making a folder and locking it
            if lock(path.parent, fcntl.LOCK_EX, briefly):
                for left in path.parent.glob(f"{ASIDE}*"):
                    if lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB, briefly):
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=ASIDE))
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            lock(folder, fcntl.LOCK_EX, held)
        yield folder


def lock(folder: Path, how: int, held: contextlib.ExitStack) -> bool:
    """Lock a folder until held ends, or the process. False where that cannot be, as on some networks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True
