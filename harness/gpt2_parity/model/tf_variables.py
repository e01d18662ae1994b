"""The variables of a TensorFlow checkpoint: verified, then mapped from its data file."""

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.model import tf_index
from gpt2_parity.model.tf_index import Tensor

STEP = 2**24  # bytes that a checksum reads at a time


class Variables(Mapping[str, np.ndarray]):
    """Float32 arrays by name without "model/", each mapped again, read-only, when it is looked up.

    The pages of an array are freed once nobody refers to it, so memory holds only what is in use.
    """

    def __init__(self, descriptor: int, tensors: Mapping[str, Tensor]):
        """descriptor: of the open data file, which is closed with this object."""
        self.descriptor, self.tensors = descriptor, tensors
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        content = np.frombuffer(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
        found = content[tensor.offset : tensor.offset + tensor.size].view("<f4")
        return found if tensor.shape is None else found.reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def squeezed(self) -> "Variables":
        """The same variables, but each w [1, n_in, n_out] as [n_in, n_out]."""
        tensors = {
            name: tensor._replace(shape=tensor.shape[1:])
            if name.endswith("/w") and tensor.shape
            else tensor
            for name, tensor in self.tensors.items()
        }
        return Variables(os.dup(self.descriptor), tensors)


def read(index: Path, data: Path) -> Variables:
    """Every variable of a checkpoint, as stored (w [1, n_in, n_out]).

    Raises CannotJudge, naming the file and the variable, if the index is damaged or of another form
    than OpenAI's, or if a variable ends beyond the data file or does not match its CRC32C.
    """
    tensors = tf_index.read(index)
    try:
        variables = Variables(os.open(data, os.O_RDONLY), tensors)
        size = os.fstat(variables.descriptor).st_size
        for name, tensor in tensors.items():
            if (end := tensor.offset + tensor.size) > size:
                raise CannotJudge(
                    f"{data}: {size} bytes, but {index.name} says that variable model/{name} ends at "
                    f"{end}; fetch or copy both files again"
                )
        wrong = _damaged(variables.descriptor, tensors)
    except OSError as error:
        raise CannotJudge(f"{data}: cannot be read ({error.strerror})") from error
    if wrong:
        raise CannotJudge(
            f"{data}: variable model/{wrong[0]} does not match its CRC32C in {index.name} "
            f"({len(wrong)} in all); fetch or copy both files again"
        )
    return variables


def damaged(data: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors whose bytes do not match their CRC32C, in the order of the data file."""
    with data.open("rb") as file:
        return _damaged(file.fileno(), tensors)


def _damaged(descriptor: int, tensors: Mapping[str, Tensor]) -> list[str]:
    ordered = sorted(tensors.items(), key=lambda item: item[1].offset)
    return [name for name, tensor in ordered if _checksum(descriptor, tensor) != tensor.crc32c]


def _checksum(descriptor: int, tensor: Tensor) -> int:
    """CRC32C of a tensor's bytes, as far as the file has them. Reads STEP bytes at a time."""
    crc, end = 0, tensor.offset + tensor.size
    for start in range(tensor.offset, end, STEP):
        crc = google_crc32c.extend(crc, os.pread(descriptor, min(STEP, end - start), start))
    return crc
