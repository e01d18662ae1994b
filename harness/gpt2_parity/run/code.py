"""Whose code measures: a verdict by other code than this would be none."""

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.version import __version__

PACKAGE = Path(__file__).parent.parent


class Code(NamedTuple):
    """What identifies an installation of this package."""

    version: str
    sha256: str  # of all source files, with those of checks that other packages add

    def __str__(self) -> str:
        return f"gpt2_parity {self.version} with source {self.sha256[:16]}"


def installed() -> Code:
    """The code in this process's installation, read from its files."""
    whole = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        _add(whole, path.relative_to(PACKAGE).as_posix(), path)
    for name, check in CHECKS.items():
        module = sys.modules[check.measure.__module__]
        if module.__name__.partition(".")[0] != PACKAGE.name and module.__file__:
            _add(whole, name, Path(module.__file__))
    return Code(__version__, whole.hexdigest())


def _add(whole: "hashlib._Hash", name: str, path: Path) -> None:
    """Add a file under a name that does not depend on where it is installed."""
    whole.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
