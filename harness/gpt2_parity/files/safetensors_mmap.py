"""safetensors files, memory-mapped: every process that opens one shares the same pages.

The NumPy interface of the safetensors package copies every tensor, and several workers must be able to
use gigabytes of weights at once without copies. So this module reads the files itself. It also writes
them: the package needs all arrays in memory at once and aligns them to 8 bytes, but frameworks use an
array without copying it only where it is aligned to 64.

Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, then data).
"""

import contextlib
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, strict_json

DTYPES = {"F64": "<f8", "F32": "<f4", "I32": "<i4", "I64": "<i8"}
# Only read, from files of others. NumPy has no bfloat16: BF16 is read as its bits, BOOL as bytes.
FOREIGN = {"F16": "<f2", "BF16": "<u2", "U8": "|u1", "BOOL": "|u1"}
READABLE = DTYPES | FOREIGN
LONGEST_HEADER = 10**8  # bytes, as in the safetensors package; a header is read into memory
# bytes. The data begins at a multiple of it, and so does each array as long as the sizes of all arrays
# before it are multiples.
ALIGNED = 64
LARGE = 2**26  # bytes: from this size on, how a file lies in the page cache matters for speed


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, mapped copy-on-write: read when first touched, and never written back.

    The arrays must follow each other without gaps from the header to the end of the file. Raises
    CannotJudge, naming the file, where it is missing or malformed.
    """
    with _naming(path), path.open("rb") as file:
        data = _mapping(file.fileno())
        start, header = _header(data)
        return {name: _view(name, data[start:], entry) for name, entry in header.items()}


class MappedArrays(Mapping[str, np.ndarray]):
    """The arrays of read(), each mapped again whenever it is looked up.

    The pages of an array are freed once nobody refers to it, so memory holds only what is in use. The
    file stays open: a new file of the same name does not change the arrays.
    """

    def __init__(self, path: Path):
        self.path = path
        with _naming(path):
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


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, text by name. Raises CannotJudge as read does."""
    with _naming(path), path.open("rb") as file:
        data = _mapping(file.fileno())
        start, _ = _header(data)
        found = strict_json.loads(data[8:start].tobytes()).get("__metadata__", {})
        if not isinstance(found, dict):
            raise ValueError("its metadata is not a JSON object")
        return found


def is_aligned(path: Path) -> bool:
    """Whether the arrays of a safetensors file begin where frameworks can use them uncopied."""
    with _naming(path), path.open("rb") as file:
        return _header(_mapping(file.fileno()))[0] % ALIGNED == 0


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise CannotJudge, naming the file, for an OSError or ValueError within."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not a readable safetensors file ({error})") from error


def _mapping(descriptor: int) -> np.ndarray:
    """A whole file [n_bytes], copy-on-write; it stays mapped while anybody holds a part of it."""
    return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), np.uint8)


def _header(data: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Where the arrays begin in a file [n_bytes], and the header's entry of each. Raises ValueError."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > data.size:
        raise ValueError("its header is longer than the file")
    if start > LONGEST_HEADER:
        raise ValueError(f"its header is longer than {LONGEST_HEADER} bytes")
    header = strict_json.loads(data[8:start].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _view(name, data[start:], entry)
    _gapless(header, data.size - start)
    return start, header


def _view(name: str, data: np.ndarray, entry: Any) -> np.ndarray:
    """The array that an entry of the header describes. data [n_bytes]: all that follows the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            dtype in READABLE and all(type(n) is int and 0 <= n < 2**63 for n in [begin, end, *shape])
        ):
            pass
        case _:
            raise ValueError(
                f"entry {name!r} is {str(entry)[:100]}, not dtype ({', '.join(READABLE)}), shape and "
                "data_offsets"
            )
    if not begin <= end <= data.size:
        raise ValueError(f"entry {name!r}: data offsets {begin}..{end} lie outside the file")
    if end - begin != math.prod(shape) * np.dtype(READABLE[dtype]).itemsize:
        raise ValueError(f"entry {name!r}: {end - begin} bytes are not {dtype} {shape}")
    return data[begin:end].view(READABLE[dtype]).reshape(shape)


def _gapless(header: dict[str, Any], size: int) -> None:
    """Raise ValueError unless the arrays fill size bytes without gaps or overlaps."""
    at = 0
    for begin, end, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        if begin != at:
            raise ValueError(f"entry {name!r} begins at {begin}, but the one before it ends at {at}")
        at = end
    if at != size:
        raise ValueError(f"its arrays end at {at} of {size} bytes")


def write(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays all or nothing. An array that is not contiguous is copied; one copy exists at a time.

    metadata: texts by name, which the file's header then has.

    Raises CannotJudge, naming path, where that fails or an array's dtype is not in DTYPES.
    """
    try:
        with atomic.replacing(path) as new:
            _save(new, arrays, metadata)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: cannot be written ({error})") from error


def _save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None) -> None:
    # arrays of wider elements first, so that each array is aligned to its own element size
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    header = json.dumps(entries | _entries(names, arrays), separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:  # looked up only now: what is mapped is freed once it is written
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
        if file.tell() >= LARGE:
            _forget(file)


def _forget(file: BinaryIO) -> None:
    """Drop a file that was just written from the page cache, so that it is read from disk again.

    Writing leaves it in the cache in pieces that begin and end where each write did; reading ahead makes
    larger pieces. Mapped from the former, weights were read up to a tenth more slowly.
    """
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # the file is whole in any case
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _entries(names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The header: an entry for each array, in the order in which the arrays are written."""
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    entries, at = {}, 0
    for name in names:
        array = arrays[name]
        if array.dtype.str not in dtypes:
            raise ValueError(f"{name!r} is {array.dtype}; supported are {', '.join(DTYPES)}")
        offsets = [at, at := at + array.nbytes]
        entries[name] = {"dtype": dtypes[array.dtype.str], "shape": array.shape, "data_offsets": offsets}
    return entries
