"""SHA-256 of files."""

import hashlib
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CannotJudge where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CannotJudge(f"{path}: cannot be read ({error.strerror})") from error
