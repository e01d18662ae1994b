"""Files and folders that are written whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import locks

PREFIX = ".parity-writing-"  # of temporary names; NAME.lock is held for as long as NAME is written


def write_text(path: Path, text: str) -> None:
    """Write a text file all or nothing. What UTF-8 cannot encode is written as an escape.

    Raises CannotJudge, naming path, where it cannot be written.
    """
    try:
        with replacing(path) as new:
            new.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CannotJudge(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside path. The file written there replaces path, unless something is raised."""
    with temporary(path) as new:
        yield new
        new.replace(path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """An unused path in the folder of path, for a file or folder that the caller then renames.

    What is left there at the end is removed. A killed process cannot do so: the next one that writes
    into the same folder removes what it left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    new = path.parent / f"{PREFIX}{secrets.token_hex(8)}"
    with locks.lock(new.with_name(f"{new.name}.lock")):
        try:
            yield new
        finally:
            remove(new)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: a living one holds its lock."""
    for path in folder.glob(f"{PREFIX}*.lock"):
        with locks.lock(path) as held:
            if held:
                remove(path.with_suffix(""))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    shutil.rmtree(path, ignore_errors=True)  # which refuses files and links
    with suppress(OSError):
        path.unlink()
