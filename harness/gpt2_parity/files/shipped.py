"""The folders with data that ship with the package: the specimens and the golden records."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent.parent


def folder(name: str) -> Path:
    """The folder impls/ or golden/: inside an installed package, or at the top of a checkout."""
    installed = PACKAGE / "shipped" / name
    return installed if installed.is_dir() else CHECKOUT / name
