"""Read a TensorFlow checkpoint's index without TensorFlow: shape, location and CRC32C of each tensor.

model.ckpt.index is a table of sorted keys in LevelDB's format: data blocks, a block for metadata, a
block that indexes the data blocks, and a footer of 48 bytes. The value of the empty key is a
BundleHeaderProto, that of every other key a BundleEntryProto (tensorflow/core/protobuf/
tensor_bundle.proto). Every block and every tensor has a checksum, so a flipped byte is found, and the
damaged tensor can be named.

Checkpoints are read in the form in which OpenAI released them: one data file, little-endian,
uncompressed blocks, whole float32 tensors. Every other form is refused by its name.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from gpt2_parity.contract.interface import CannotJudge

MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of a table
FOOTER = 48  # bytes
MOST = 2**24  # bytes of an index; that of 4095 layers has 4 MB
VERSION = 1  # of the format, which the header's min_consumer may ask for
FLOAT32 = 1  # tensorflow.DataType.DT_FLOAT
DTYPES = {2: "float64", 3: "int32", 7: "string", 9: "int64", 14: "bfloat16", 19: "float16"}
COMPRESSIONS = {1: "snappy"}


class Tensor(NamedTuple):
    """The location of a tensor in model.ckpt.data, and the checksum of its bytes."""

    offset: int  # bytes
    size: int  # bytes
    crc32c: int
    shape: tuple[int, ...] | None = None  # None if only location and checksum are known


class Unsupported(Exception):
    """An intact index in a form that OpenAI's releases do not have."""


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of an index file by name without "model/"; all are float32, and none overlap.

    Raises CannotJudge, naming the file and what is wrong, unless it is an intact table of such tensors.
    """
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"more than {MOST} bytes")
        entries = dict(_entries(path.read_bytes()))
        _check_header(entries)
        _refuse_slices(entries)
        tensors = _named((key.decode(), _tensor(key.decode(), entry)) for key, entry in entries.items())
        _refuse_overlap(tensors)
    except Unsupported as error:
        raise CannotJudge(
            f"{path}: {error}. A checkpoint must have the form of OpenAI's releases: one data file, "
            "little-endian, uncompressed, whole float32 tensors"
        ) from error
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CannotJudge(
            f"{path}: not an intact checkpoint index ({error}); fetch or copy it again"
        ) from error
    return tensors


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key of a table and its value, in the order of the keys."""
    if len(table) < FOOTER or int.from_bytes(table[-8:], "little") != MAGIC:
        raise ValueError("its footer is not that of a table")
    metadata, at = _handle(table, len(table) - FOOTER)
    index, at = _handle(table, at)
    if any(table[at:-8]):
        raise ValueError("its footer has more than two handles")
    _block(table, metadata)  # a checkpoint has none, but the block has a checksum
    before = None
    for _, value in _pairs(_block(table, index)):
        block, _ = _handle(value, 0)
        for key, entry in _pairs(_block(table, block)):
            if before is not None and key <= before:
                raise ValueError(f"key {key!r} is not above the one before it, {before!r}")
            yield key, entry
            before = key


def _block(table: bytes, handle: tuple[int, int]) -> bytes:
    """A block's content.

    Raises ValueError if it does not match its checksum, and Unsupported if it is compressed.
    """
    offset, size = handle
    end = offset + size
    if end + 5 > len(table) - FOOTER:
        raise ValueError(f"the block at byte {offset} ends beyond the footer")
    (masked,) = struct.unpack_from("<I", table, end + 1)
    if google_crc32c.value(table[offset : end + 1]) != unmask(masked):
        raise ValueError(f"the block at byte {offset} does not match its CRC32C")
    if kind := table[end]:
        name = COMPRESSIONS.get(kind, f"compression number {kind}")
        raise Unsupported(f"the block at byte {offset} is compressed ({name})")
    return table[offset:end]


def unmask(masked: int) -> int:
    """The CRC32C of a stored one: LevelDB rotates it and adds a constant before it stores it."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. A key is stored as its difference from the key before it."""
    (n_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end, at, key = len(block) - 4 - 4 * n_restarts, 0, b""
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes has {n_restarts} restart points")
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        size, at = _varint(block, at)
        if shared > len(key) or at + fresh + size > end:
            raise ValueError("an entry ends beyond its block")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + size
        yield key, block[at - size : at]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """The offset and size stored at a position, and the position after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number stored at a position, 7 bits in each byte, and the position after it.

    Raises ValueError unless it has at most 10 bytes and none too many, as every writer stores it.
    """
    value = 0
    for i in range(10):
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            if i and not byte:
                raise ValueError(f"the number at byte {at} has a byte too many")
            return value, at + i + 1
    raise ValueError(f"the number at byte {at} has more than 64 bits")


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
                if at > len(message):
                    raise ValueError(f"field {tag >> 3} ends beyond its message")
            case 5:
                (value,), at = struct.unpack_from("<I", message, at), at + 4
            case wire:
                raise ValueError(f"field {tag >> 3} has wire type {wire}")
        yield tag >> 3, value


class _Message:
    """The fields of a protocol buffer by number; the last one counts where a field comes again."""

    def __init__(self, message: bytes):
        self.fields = dict(_fields(message))

    def number(self, field: int) -> int:
        """A number; 0 if it is absent."""
        value = self.fields.get(field, 0)
        if not isinstance(value, int):
            raise ValueError(f"field {field} is not a number")
        return value

    def message(self, field: int) -> bytes:
        """A message within the message; empty if it is absent."""
        value = self.fields.get(field, b"")
        if not isinstance(value, bytes):
            raise ValueError(f"field {field} is not a message")
        return value


def _check_header(entries: dict[bytes, bytes]) -> None:
    """Take the header out of entries. BundleHeaderProto: num_shards 1, endianness 2, version 3."""
    if b"" not in entries:
        raise ValueError("it has no header")
    header = _Message(entries.pop(b""))
    if (n := header.number(1)) != 1:
        raise Unsupported(f"the checkpoint has {n} data files (shards)")
    if header.number(2):
        raise Unsupported("the checkpoint is big-endian")
    if (wanted := _Message(header.message(3)).number(2)) > VERSION:  # VersionDef: min_consumer 2
        raise Unsupported(f"the checkpoint needs a reader of format {wanted}")


def _refuse_slices(entries: dict[bytes, bytes]) -> None:
    """Raise Unsupported if a variable is stored in slices: each slice would be an entry, too."""
    for key, entry in entries.items():
        if any(field == 7 for field, _ in _fields(entry)):
            raise Unsupported(f"variable {key.decode()} is stored in slices (partitioned)")


def _tensor(name: str, entry: bytes) -> Tensor:
    """BundleEntryProto: dtype 1, shape 2, shard_id 3, offset 4, size 5, crc32c 6 (masked), slices 7."""
    found = _Message(entry)
    if (dtype := found.number(1)) != FLOAT32:
        named = DTYPES.get(dtype, f"of dtype number {dtype}")
        raise Unsupported(f"variable {name} is {named}, expected float32")
    if shard := found.number(3):
        raise Unsupported(f"variable {name} is in data file number {shard}, not in the first (shards)")
    dims = (dim for field, dim in _fields(found.message(2)) if field == 2)
    shape = tuple(_dimension(dim) for dim in dims)
    tensor = Tensor(found.number(4), found.number(5), unmask(found.number(6)), shape)
    if tensor.size != 4 * math.prod(shape):
        raise ValueError(f"variable {name}: {tensor.size} bytes are not float32 {shape}")
    return tensor


def _dimension(dim: int | bytes) -> int:
    """The length of an axis, from TensorShapeProto.Dim: size 1."""
    if not isinstance(dim, bytes):
        raise ValueError("an axis of a shape is not a message")
    return _Message(dim).number(1)


def _named(found: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by name without "model/". Raises ValueError if two have the same name then."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in found:
        name = key.removeprefix("model/")
        if name in tensors:
            raise ValueError(f"variable {name} comes with and without model/")
        tensors[name] = tensor
    return tensors


def _refuse_overlap(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if two tensors share bytes of the data file."""
    end, last = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][:2]):
        if tensor.offset < end:
            raise ValueError(f"variable model/{name} begins within variable model/{last}")
        end, last = tensor.offset + tensor.size, name
