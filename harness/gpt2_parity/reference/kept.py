"""Truths that are made once and kept: in the per-user cache, or in a folder that ends with the run.

An entry is a safetensors file. Beside it lies what it was made from, the code that made it, and the hash
of its bytes. An entry that is damaged, or that another version or other inputs made, is made again. One
process makes an entry while others wait, and all of them map the same file.
"""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract import architecture, dtypes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest, locks, safetensors_mmap, strict_json
from gpt2_parity.model import checkpoint, synthetic

MOST = 2**30  # bytes of entries in the per-user cache; beyond that, those unused for longest are removed


def entry(
    made_from: Mapping[str, Any],
    make: Callable[[], Mapping[str, np.ndarray]],
    folder: Path | None = None,
) -> Path:
    """The safetensors file of what make() returns; made_from: JSON that determines it.

    folder: where it is kept; None: in the per-user cache or, if nothing can be written there, in a
    folder of this process.
    """
    key = json.dumps({"made_from": made_from, "code": code()}, sort_keys=True)
    if folder is not None:
        return _entry(folder, key, make)
    try:
        return _entry(checkpoint.home() / "truth", key, make)
    except (CannotJudge, OSError):  # a full disk or a read-only home is no fault of an implementation
        return _entry(Path(_temporary().name), key, make)


def _entry(folder: Path, key: str, make: Callable[[], Mapping[str, np.ndarray]]) -> Path:
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if not is_intact(path, key):
        folder.mkdir(parents=True, exist_ok=True)
        with locks.waiting(path.with_suffix(".lock")):
            if not is_intact(path, key):  # another process may have made it meanwhile
                safetensors_mmap.write(path, make())
                note = {"key": key, "sha256": digest.sha256(path)}
                atomic.write_text(path.with_suffix(".json"), json.dumps(note))
                prune(folder, path)
    return path


def is_intact(path: Path, key: str) -> bool:
    """Whether an entry exists, was made from key, and has the bytes that were written."""
    try:
        beside, status = path.with_suffix(".json"), path.stat()
        sha256 = _sha256(path, status.st_ino, status.st_mtime_ns, status.st_size)
        if strict_json.read(beside) != {"key": key, "sha256": sha256}:
            return False
        os.utime(beside)  # recently used
    except (OSError, ValueError, CannotJudge):
        return False
    return True


@functools.lru_cache(maxsize=1000)
def _sha256(path: Path, inode: int, changed: int, size: int) -> str:
    """The hash of a file, which a process reads again only if it has changed."""
    return digest.sha256(path)


@functools.cache
def code() -> str:
    """A hash of everything that truths follow from, apart from their inputs: this code, and NumPy."""
    modules = [*Path(__file__).parent.glob("*.py")]
    modules += [Path(str(module.__file__)) for module in (architecture, dtypes, synthetic)]
    whole = hashlib.sha256(np.__version__.encode())
    for path in sorted(modules):
        whole.update(path.read_bytes())
    return whole.hexdigest()


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the entries of this process alone."""
    return tempfile.TemporaryDirectory(prefix="parity-truth-")


def prune(folder: Path, new: Path) -> None:
    """Remove entries other than a new one, those unused for longest first, until MOST bytes are left."""
    total = 0
    for path in sorted(folder.glob("*.safetensors"), key=_used, reverse=True):
        total += path.stat().st_size
        if total > MOST and path != new:
            for each in (path.with_suffix(".json"), path):  # a process that has mapped it keeps it
                each.unlink(missing_ok=True)


def _used(path: Path) -> float:
    """When an entry was last used, in seconds since the epoch; 0 if its note is gone."""
    try:
        return path.with_suffix(".json").stat().st_mtime
    except OSError:
        return 0.0
