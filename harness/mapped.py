"""safetensors files, memory-mapped: every process that opens one shares the same pages.

The safetensors package's NumPy door copies every tensor; weights of gigabytes that several
workers use at once must not be copied, so reading is done here. Writing is the package's.
Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, then data).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from harness.contract import CannotJudge

DTYPES = {"F64": "<f8", "F32": "<f4", "I32": "<i4", "I64": "<i8"}


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, mapped copy-on-write: nothing is read until touched, nothing written back.

    Raises CannotJudge, naming the file, where it is missing or not a well-formed safetensors file.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="c")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        if start > data.size:
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(data, start, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CannotJudge(f"{path}: not a readable safetensors file ({error})") from error


def _view(data: np.ndarray, start: int, entry: dict[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data.size - start:
        raise ValueError(f"data offsets {begin}..{end} lie outside the file")
    return data[start + begin : start + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all or nothing: to a temporary name in the same folder, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        temporary.chmod(0o644)  # the package makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file all or nothing, likewise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CannotJudge where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CannotJudge(f"{path}: cannot be read ({error.strerror})") from error
