"""Read a TensorFlow checkpoint's index without TensorFlow: the location and CRC32C of each tensor.

model.ckpt.index is a table of sorted keys in LevelDB's format: data blocks, then a block that
indexes them, then a footer of 48 bytes. The value of each key is a small protocol buffer, a
BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto). Every block and every tensor
has a checksum, so a flipped byte is found, and the damaged tensor can be named.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from gpt2_parity.contract.interface import CannotJudge

MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of a table
FOOTER = 48
FLOAT32 = 1  # tensorflow.DataType.DT_FLOAT


class Tensor(NamedTuple):
    """The location of a tensor in model.ckpt.data, and the checksum of its bytes."""

    offset: int  # bytes
    size: int  # bytes
    crc32c: int
    shape: tuple[int, ...] | None = None  # None if only location and checksum are known
    dtype: int = FLOAT32


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of an index file by name without "model/".

    Raises CannotJudge, naming the file, unless it is an intact table of tensors.
    """
    try:
        return dict(_entries(path.read_bytes()))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CannotJudge(f"{path}: not an intact checkpoint index ({error})") from error


def damaged(data: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors whose bytes do not match their CRC32C, in the order of the data file."""
    if not data.stat().st_size:
        return sorted(tensors)
    content = np.memmap(data, dtype=np.uint8, mode="r")
    ordered = sorted(tensors.items(), key=lambda item: item[1].offset)
    return [name for name, tensor in ordered if checksum(content, tensor) != tensor.crc32c]


def checksum(content: np.ndarray, tensor: Tensor) -> int:
    """CRC32C of a tensor's bytes in content, uint8 [n_bytes], 16 MiB at a time."""
    crc, step = 0, 1 << 24
    end = tensor.offset + tensor.size
    for start in range(tensor.offset, end, step):
        crc = google_crc32c.extend(crc, content[start : min(start + step, end)].tobytes())
    return crc


def _entries(table: bytes) -> Iterator[tuple[str, Tensor]]:
    if len(table) < FOOTER or int.from_bytes(table[-8:], "little") != MAGIC:
        raise ValueError("its footer is not that of a table")
    _, at = _handle(table, len(table) - FOOTER)  # of the metaindex, which a bundle does not use
    index, _ = _handle(table, at)
    for _, value in _pairs(_block(table, index)):
        block, _ = _handle(value, 0)
        for key, entry in _pairs(_block(table, block)):
            if key:  # the empty key is the header
                yield key.decode().removeprefix("model/"), _tensor(entry)


def _block(table: bytes, handle: tuple[int, int]) -> bytes:
    """A block's content. Raises ValueError if it is compressed or does not match its checksum."""
    offset, size = handle
    content, kind = table[offset : offset + size], table[offset + size]
    (masked,) = struct.unpack_from("<I", table, offset + size + 1)
    if google_crc32c.value(table[offset : offset + size + 1]) != unmask(masked):
        raise ValueError(f"the block at byte {offset} does not match its CRC32C")
    if kind:
        raise ValueError(f"the block at byte {offset} is compressed; blocks of a checkpoint are not")
    return content


def unmask(masked: int) -> int:
    """The CRC32C of a stored one: LevelDB rotates it and adds a constant before it stores it."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. A key is stored as its difference from the key before it."""
    (n_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end, at, key = len(block) - 4 - 4 * n_restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh + size
        yield key, block[at - size : at]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """The offset and size stored at a position, and the position after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number stored at a position, 7 bits in each byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protocol buffer: varints, 32-bit numbers, byte strings."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
            case 2:
                size, at = _varint(message, at)
                value, at = message[at : at + size], at + size
            case 5:
                (value,), at = struct.unpack_from("<I", message, at), at + 4
            case wire:
                raise ValueError(f"an entry has a field of wire type {wire}")
        yield tag >> 3, value


def _tensor(entry: bytes) -> Tensor:
    """BundleEntryProto: dtype 1, shape 2, shard 3, offset 4, size 5, crc32c 6 (masked)."""
    found = dict(_fields(entry))
    dims = [value for field, value in _fields(bytes(found.get(2, b""))) if field == 2]
    shape = tuple(int(dict(_fields(bytes(dim))).get(1, 0)) for dim in dims)
    if found.get(3):
        raise ValueError("it has more than one data file")
    return Tensor(
        offset=int(found.get(4, 0)),
        size=int(found.get(5, 0)),
        crc32c=unmask(int(found.get(6, 0))),
        shape=shape,
        dtype=int(found.get(1, 0)),
    )
