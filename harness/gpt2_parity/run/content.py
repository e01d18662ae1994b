"""Files that several machines share, kept in the per-user cache of each under their SHA-256.

The name of a file is the hash of its bytes: it is checked when the file is put in place, and again by
each process that uses it. Nothing is removed; a file that is missing or damaged is sent again.
"""

import functools
import time
from collections.abc import Iterable
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest
from gpt2_parity.model import checkpoint

FOLDER = "content"  # in the per-user cache
ARRIVING = "arriving-"  # prefix of files that are not complete yet
OLD = 24 * 3600.0  # seconds after which such a file is given up


def path(sha256: str) -> Path:
    """Where the file of that hash is kept, or would be."""
    return checkpoint.home() / FOLDER / sha256


def missing(hashes: Iterable[str]) -> list[str]:
    """Those hashes of which there is no intact file here."""
    return [sha256 for sha256 in dict.fromkeys(hashes) if not is_intact(path(sha256))]


def is_intact(file: Path) -> bool:
    """Whether a file exists and has the bytes that its name calls for."""
    try:
        status = file.stat()
    except OSError:
        return False
    return _sha256(file, status.st_mtime_ns, status.st_size) == file.name


@functools.cache
def _sha256(file: Path, changed: int, size: int) -> str:
    """The hash of a file, which is read again only if it has changed."""
    return digest.sha256(file)


def receive(sha256: str, sending: str, offset: int, data: bytes, last: bool) -> None:
    """Write one piece of a file; after the last, check the whole and put it in place.

    sending: a name for all pieces of one sending. Raises CannotJudge if the file is not the one that was
    announced, and OSError if it cannot be written.
    """
    arriving = checkpoint.home() / FOLDER / f"{ARRIVING}{sending}"
    if offset == 0:
        arriving.parent.mkdir(parents=True, exist_ok=True)
        give_up_old(arriving.parent)
    with arriving.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(data)
    if last:
        found = digest.sha256(arriving)
        if found != sha256:
            atomic.remove(arriving)
            raise CannotJudge(
                f"a file with SHA-256 {sha256} was sent, but {found} arrived; run it again"
            )
        arriving.replace(path(sha256))


def give_up_old(folder: Path) -> None:
    """Remove what killed runs began to send."""
    for file in folder.glob(f"{ARRIVING}*"):
        try:
            if time.time() - file.stat().st_mtime > OLD:
                file.unlink()
        except FileNotFoundError:  # it has arrived meanwhile
            continue
