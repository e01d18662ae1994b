"""Edits of a specimen's text: for mistakes and variants that are possible only in that specimen."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from gpt2_parity.implementation.discovery import IMPLS, Found

NUMPY, TORCH, JAX = (IMPLS / f"gpt2_{name}.py" for name in ("numpy", "torch", "jax"))
Edit = tuple[str, str]  # old text, new text

HEAD_OF_FILE = "TAPS = "


def instead(body: str, code: str) -> Edit:
    """Code that returns before the body of a function, given by its first line, is reached."""
    return body, f"    {code}\n{body}"


def helper(code: str) -> Edit:
    """Code at the head of the file."""
    return HEAD_OF_FILE, f"{code}\n{HEAD_OF_FILE}"


def edited(name: str, specimen: Path, edits: Iterable[Edit]) -> str:
    """The specimen's text, edited. Raises ValueError where an edit does not apply exactly once."""
    text = specimen.read_text(encoding="utf-8")
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"{name}: the specimen has {text.count(old)} times: {old!r}")
        text = text.replace(old, new)
    return text


def written(name: str, text: str, folder: Path) -> Path:
    """A module of that text, as a file."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def load(name: str, text: str, folder: Path) -> ModuleType:
    """A module of that text, written to folder and imported as a user's PATH.py would be."""
    return Found(name, str(written(name, text, folder))).load()
