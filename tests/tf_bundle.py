"""Write a checkpoint's index, right or wrong, to show what its reader accepts and refuses.

Everything has the checksum that it should have: what is wrong is what the index says.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gpt2_parity.model.tf_index import FOOTER, MAGIC, Tensor

Pairs = dict[bytes, bytes]  # values by key; the empty key is the header


def masked(crc: int) -> int:
    """A CRC32C as LevelDB stores it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(n: int) -> bytes:
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def number(field: int, n: int) -> bytes:
    return varint(field << 3) + varint(n)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(shards: int = 1, endianness: int = 0, wanted: int = 0) -> bytes:
    """BundleHeaderProto."""
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1) + number(2, wanted))


def entry(tensor: Tensor, dtype: int = 1, more: bytes = b"") -> bytes:
    """BundleEntryProto. more: further fields; a field that comes again replaces the earlier one."""
    shape = b"".join(message(2, number(1, n)) for n in tensor.shape)
    crc = varint(6 << 3 | 5) + masked(tensor.crc32c).to_bytes(4, "little")
    place = number(4, tensor.offset) + number(5, tensor.size)
    return number(1, dtype) + message(2, shape) + place + crc + more


def pairs(tensors: Mapping[str, Tensor]) -> Pairs:
    """The keys and values of an index."""
    return {b"": header()} | {b"model/" + name.encode(): entry(t) for name, t in sorted(tensors.items())}


def block(content: bytes, kind: int = 0) -> bytes:
    stored = content + bytes([kind])
    return stored + masked(google_crc32c.value(stored)).to_bytes(4, "little")


def listed(found: Mapping[bytes, bytes]) -> bytes:
    """The content of a block, without differences of keys, and with one restart point."""
    body = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in found.items()
    )
    return body + bytes(4) + (1).to_bytes(4, "little")


def index(found: Mapping[bytes, bytes], kind: int = 0) -> bytes:
    """A table with one data block. kind: what the block says about its compression."""
    return table(listed(found), kind)


def table(content: bytes, kind: int = 0, beyond: int = 0) -> bytes:
    """A table whose one data block has any content. beyond: bytes by which its handle is too long."""
    data, metadata = block(content, kind), block(listed({}))
    first = varint(0) + varint(len(content) + beyond)
    blocks = block(listed({b"\xff": first}))
    handles = varint(len(data)) + varint(len(metadata) - 5)
    handles += varint(len(data) + len(metadata)) + varint(len(blocks) - 5)
    footer = handles.ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")
    return data + metadata + blocks + footer


def write(prefix: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A checkpoint of random weights; returns the size of its data file in bytes."""
    tensors, at, rng = {}, 0, np.random.default_rng(0)
    with prefix.with_name(f"{prefix.name}.data-00000-of-00001").open("wb") as file:
        for name, shape in shapes.items():
            data = rng.standard_normal(shape, np.float32).tobytes()
            tensors[name] = Tensor(at, len(data), google_crc32c.value(data), shape)
            at += file.write(data)
    prefix.with_name(f"{prefix.name}.index").write_bytes(index(pairs(tensors)))
    return at


def change(name: str, **fields: Any) -> Callable[[dict[str, Tensor]], object]:
    """Alter what is said about one tensor."""
    return lambda tensors: tensors.update({name: tensors[name]._replace(**fields)})


def _header(**fields: int) -> Callable[[Pairs], object]:
    return lambda found: found.update({b"": header(**fields)})


def _more(fields: bytes) -> Callable[[Pairs], object]:
    return lambda found: found.update({b"model/wpe": found[b"model/wpe"] + fields})


# Forms that TensorFlow can write and OpenAI did not, with what the error must say.
FORMS: dict[str, tuple[Callable[[Pairs], object], str]] = {
    "two_shards": (_header(shards=2), "the checkpoint has 2 data files (shards)"),
    "second_shard": (_more(number(3, 1)), "variable model/wpe is in data file number 1"),
    "big_endian": (_header(endianness=1), "the checkpoint is big-endian"),
    "later_format": (_header(wanted=2), "the checkpoint needs a reader of format 2"),
    "slices": (_more(message(7, b"")), "variable model/wpe is stored in slices"),
    "float64": (_more(number(1, 2)), "variable model/wpe is float64, expected float32"),
    "text": (_more(number(1, 7)), "variable model/wpe is string, expected float32"),
    "unknown_dtype": (_more(number(1, 99)), "variable model/wpe is of dtype number 99"),
}

# Lies, with what the error must say.
LIES: dict[str, tuple[Callable[[Pairs], object], str]] = {
    "no_header": (lambda found: found.pop(b""), "it has no header"),
    "offset_is_a_message": (_more(message(4, b"12")), "field 4 is not a number"),
    "shape_is_a_number": (_more(number(2, 2**40)), "field 2 is not a message"),
    "axis_is_a_number": (_more(message(2, number(2, 5))), "an axis of a shape is not a message"),
    "negative_axis": (_more(message(2, message(2, number(1, 2**64 - 1)))), "are not float32"),
    "giant_shape": (_more(message(2, message(2, number(1, 2**62)) * 9)), "are not float32"),
    "giant_size": (_more(number(5, 2**62)), "4611686018427387904 bytes are not float32"),
    "field_cut_off": (_more(varint(7 << 3 | 2) + varint(99)), "field 7 ends beyond its message"),
    "wire_type_3": (_more(varint(9 << 3 | 3)), "field 9 has wire type 3"),
    "endless_number": (_more(b"\xff" * 99), "has more than 64 bits"),
    "number_with_a_byte_too_many": (_more(varint(4 << 3) + b"\x80\0"), "has a byte too many"),
    "name_twice": (
        lambda found: found.update({b"wte": found[b"model/wte"]}),
        "variable wte comes with and without model/",
    ),
    "name_not_utf8": (lambda found: found.update({b"\xff": found[b"model/wte"]}), "can't decode byte"),
}

# What only the whole table, or the data beside it, shows.
PLACES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "overlap": (change("wte", offset=4), "begins within variable model/"),
    "beyond_the_end": (
        change("wte", offset=2**40),
        "says that variable model/wte ends at",
    ),
    "another_crc": (change("wte", crc32c=7), "variable model/wte does not match its CRC32C"),
    "one_less": (lambda tensors: tensors.pop("ln_f/g"), "variable model/ln_f/g is missing"),
    "another_name": (
        lambda tensors: tensors.update(extra=tensors.pop("wpe")),
        "variable model/wpe is missing",
    ),
    "turned": (change("wpe", shape=(128, 256)), "variable model/wpe has shape (128, 256)"),
    "not_stored_with_a_leading_1": (
        change("h0/mlp/c_fc/w", shape=(128, 512)),
        "variable model/h0/mlp/c_fc/w has shape (128, 512), hparams say (1, 128, 512)",
    ),
}
