"""What is published about OpenAI's files: golden/official.json."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import strict_json
from gpt2_parity.model import catalogue, checkpoint, synthetic, tf_index

FACTS = catalogue.GOLDEN / "official.json"


class PublishedFile(msgspec.Struct, frozen=True):
    """What is published about one file; None for what is not published."""

    bytes: int | None = None
    sha256: str | None = None


class PublishedSize(msgspec.Struct, frozen=True):
    """What is published about one checkpoint."""

    files: dict[str, PublishedFile]
    # by name: offset and size in bytes, and CRC32C in hexadecimal; empty if they are not published
    tensors: dict[str, tuple[int, int, Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}\Z")]]] = {}


class Publications(msgspec.Struct, frozen=True):
    """The whole of golden/official.json."""

    format: Literal[1]
    base_url: str  # files are at base_url/SIZE/FILE
    sizes: dict[str, PublishedSize]
    model_py: str = ""  # SHA-256 of src/model.py


class Release(msgspec.Struct, frozen=True):
    """A checkpoint as it was published."""

    name: str
    files: dict[str, PublishedFile]
    tensors: dict[str, tf_index.Tensor]  # may be empty: then only the index gives checksums
    hparams: HParams | None = None


def read(path: Path = FACTS) -> Publications:
    """golden/official.json. Raises CannotJudge, naming the entry, if it is malformed."""
    try:
        return strict_json.convert(strict_json.read(path), Publications)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable as what is published ({error}); restore it") from error


def release(size: str, path: Path = FACTS) -> Release:
    """What is published about a size. Raises CannotJudge unless that covers exactly the seven files."""
    published = read(path).sizes.get(size)
    if published is None or published.files.keys() != set(checkpoint.FILES):
        raise CannotJudge(f"{path}: says nothing usable about {size!r}; restore it")
    tensors = {
        name: tf_index.Tensor(offset, length, int(crc, 16))
        for name, (offset, length, crc) in published.tensors.items()
    }
    files = {name: published.files[name] for name in checkpoint.FILES}
    return Release(size, files, tensors, synthetic.OFFICIAL.get(size))
