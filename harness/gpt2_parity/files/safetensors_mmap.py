"""safetensors files, memory-mapped: every process that opens one shares the same pages.

The safetensors package's NumPy door copies every tensor; weights of gigabytes that several workers use
at once must not be copied, so reading is done here. So is writing: the package has to have all arrays in
memory at once, and aligns them to 8 bytes, where frameworks that would use them as they are want 64.
Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, then data).
"""

import contextlib
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import strict_json
from gpt2_parity.files.atomic import aside

DTYPES = {"F64": "<f8", "F32": "<f4", "I32": "<i4", "I64": "<i8"}
# bytes: the data begins at a multiple, and so do arrays while all before them are multiples
ALIGNED = 64
LARGE = 2**26  # bytes of a file whose place in memory matters for speed


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, mapped copy-on-write: nothing is read until touched, nothing written back.

    Raises CannotJudge, naming the file, where it is missing or not a well-formed safetensors file: its
    arrays must fill it from the header to the end, one after the other.
    """
    with _complaining(path), path.open("rb") as file:
        data = _mapping(file.fileno())
        start, header = _header(data)
        return {name: _view(name, data[start:], entry) for name, entry in header.items()}


class Glances(Mapping[str, np.ndarray]):
    """The arrays of read(), each mapped anew whenever it is asked for, and gone when it is let go.

    So memory holds what was touched of it and no more: rows of a table need not bring all the table. The
    file stays open: what takes its name meanwhile is another one.
    """

    def __init__(self, path: Path):
        with _complaining(path):
            self.descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
            self.start, self.header = _header(_mapping(self.descriptor))

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.header[name]
        return _view(name, _mapping(self.descriptor)[self.start :], entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def is_aligned(path: Path) -> bool:
    """Whether the arrays of a safetensors file begin where frameworks can use them uncopied."""
    with _complaining(path), path.open("rb") as file:
        return _header(_mapping(file.fileno()))[0] % ALIGNED == 0


@contextlib.contextmanager
def _complaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not a readable safetensors file ({error})") from error


def _mapping(descriptor: int) -> np.ndarray:
    """A whole file [bytes], copy-on-write, and mapped for as long as somebody holds a part of it."""
    return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), np.uint8)


def _header(data: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Where the arrays begin in data, a whole file [bytes], and what is said of each (or ValueError)."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > data.size:
        raise ValueError("its header is longer than the file")
    header = strict_json.loads(data[8:start].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _view(name, data[start:], entry)
    _gapless(header, data.size - start)
    return start, header


def _view(name: str, data: np.ndarray, entry: Any) -> np.ndarray:
    """The array that an entry of the header describes; data [bytes] is all that follows the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            dtype in DTYPES and all(type(n) is int and 0 <= n < 2**63 for n in [begin, end, *shape])
        ):
            pass
        case _:
            raise ValueError(f"entry {name!r} is {str(entry)[:100]}, not dtype, shape and data_offsets")
    if not begin <= end <= data.size:
        raise ValueError(f"entry {name!r}: data offsets {begin}..{end} lie outside the file")
    if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError(f"entry {name!r}: {end - begin} bytes are not {dtype} {shape}")
    return data[begin:end].view(DTYPES[dtype]).reshape(shape)


def _gapless(header: dict[str, Any], size: int) -> None:
    """Raise ValueError unless the arrays fill size bytes, none overlapping another."""
    at = 0
    for begin, end, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        if begin != at:
            raise ValueError(f"entry {name!r} begins at {begin}, but the one before it ends at {at}")
        at = end
    if at != size:
        raise ValueError(f"its arrays end at {at} of {size} bytes")


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all or nothing: aside, then rename; of what is no copy yet, one array is copied at a time.

    Raises CannotJudge, naming path, where that fails or an array's dtype is none of DTYPES.
    """
    try:
        with aside(path) as folder:
            _save(folder / "new", arrays)
            (folder / "new").replace(path)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: cannot be written ({error})") from error


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # the wider elements first, so that each array is aligned for its own
    ordered = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header = json.dumps(_entries(ordered), separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in ordered.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if file.tell() >= LARGE:
            _forget(file)


def _forget(file: BinaryIO) -> None:
    """Have what was written to a file read from the disk again: by readahead, into larger pieces.

    A written file lies in the page cache in pieces that begin and end where the writing did. Mapped from
    those, weights are read up to a tenth more slowly.
    """
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is whole all the same
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _entries(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the header says of each array, in the order in which they are written."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries, at = {}, 0
    for name, array in arrays.items():
        if array.dtype.str not in names:
            raise ValueError(f"{name!r} is {array.dtype}; kept are {', '.join(DTYPES)}")
        where = [at, at := at + array.nbytes]
        entries[name] = {"dtype": names[array.dtype.str], "shape": array.shape, "data_offsets": where}
    return entries
