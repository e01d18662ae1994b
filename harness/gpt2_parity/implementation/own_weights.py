"""The weights that an implementation says it multiplies with, where they may not be the checkpoint's.

``weights(model)`` returns them as numbers, whatever they are stored as: integers times their scale, for
example. They are copied to a file, so that the harness can use them as it uses a checkpoint. A lie does
not help: each operation is recomputed with them.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.dtypes import UNIT_ROUNDOFF
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.limits import Limit
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.files.safetensors_mmap import MappedArrays
from gpt2_parity.reference.rounding import TINY

SIGNATURE = "weights(model)"
DIFFERENCE = Limit(  # see relative_difference
    0.75,
    "Of a row or column. 8 bits were measured at up to 0.04; 4 bits at up to 0.41, and 0.62 with one "
    "scale for a whole weight. A row that is lost is at 1, exchanged ones are at up to 1.4.",
)


class Effective(Mapping[str, np.ndarray]):
    """What weights(model) returned, checked: float32 or float64 arrays by checkpoint name.

    An array is copied to the host when it is looked up, so memory holds one at a time.
    """

    def __init__(self, given: Any, hparams: HParams, host: Callable[..., np.ndarray]):
        """host: Loaded.array. Raises ContractBroken unless given has exactly the checkpoint's names."""
        self.given, self.shapes, self.host = given, parameter_shapes(hparams), host
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise ContractBroken(f"{SIGNATURE} returned {kind}, the contract says arrays by name")
        for problem, names in {
            "lacks": self.shapes.keys() - given.keys(),
            "has unknown": given.keys() - self.shapes.keys(),
        }.items():
            if names:
                few = ", ".join(map(str, sorted(names, key=str)[:5]))
                raise ContractBroken(f"{SIGNATURE} {problem} {few} ({len(names)} names)")

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises ContractBroken unless it is floating, finite and of the weight's shape."""
        got = self.host(f"{SIGNATURE}[{name!r}]", self.given[name], self.shapes[name], "as in params")
        if not np.isfinite(got).all():
            raise ContractBroken(f"{SIGNATURE}[{name!r}] is not finite")
        return got.astype(np.float32) if got.dtype.itemsize < 4 else got

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def kept(weights: Mapping[str, np.ndarray]) -> MappedArrays:
    """Weights in a file, which exists as long as this process."""
    folder = Path(_temporary().name)
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    safetensors_mmap.write(path, weights)
    return MappedArrays(path)


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the weights that implementations in this process returned."""
    return tempfile.TemporaryDirectory(prefix="parity-weights-")


def differing(own: np.ndarray, checkpoint: np.ndarray, dtype: str) -> np.ndarray:
    """Which weights [...] differ by more than one rounding at the declared dtype: bool [...]."""
    room = UNIT_ROUNDOFF[dtype] * np.abs(np.asarray(checkpoint, np.float64)) + TINY[dtype]
    return np.abs(np.subtract(own, checkpoint, dtype=np.float64)) > room


def differ(own: Mapping[str, np.ndarray], checkpoint: Mapping[str, np.ndarray], dtype: str) -> bool:
    """Whether any weight differs by more than one rounding at the declared dtype."""
    return any(differing(own[name], checkpoint[name], dtype).any() for name in checkpoint)


def near(own: Mapping[str, np.ndarray], checkpoint: Mapping[str, np.ndarray]) -> bool:
    """Whether quantising the checkpoint's weights explains all differences."""
    return all(relative_difference(own[n], checkpoint[n]) <= DIFFERENCE.most for n in checkpoint)


def relative_difference(own: np.ndarray, want: np.ndarray) -> float:
    """The greatest difference of a row or a column of weights [n, m], or of an element of [n].

    Relative to its size, or to that of a typical row, column or element if that is larger: a small row
    may be lost in a coarse grid.
    """
    want = np.asarray(want, np.float64)
    gap = own - want
    if want.ndim < 2:
        return float(np.max(np.abs(gap) / sizes(np.abs(want))))
    worst = [
        np.max(np.linalg.norm(gap, axis=axis) / sizes(np.linalg.norm(want, axis=axis)))
        for axis in range(2)
    ]
    return float(np.max(worst))


def sizes(norms: np.ndarray) -> np.ndarray:
    """Norms [n], each at least the root mean square of all; never 0."""
    typical = np.sqrt(np.mean(norms * norms))
    return np.maximum(np.maximum(norms, typical), 1e-300)
