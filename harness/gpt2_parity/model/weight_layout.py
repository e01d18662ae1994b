"""The memory order of the weights that load() receives: ORDER = "C", the default, or "F".

Shapes are those of the contract in either order. With "F" each w [n_in, n_out] is stored in memory as
[n_out, n_in]: a product with one vector reads that fastest, and some libraries would otherwise copy it.
A model's file has the checkpoint's order, "C". A second file beside it has the other order; it is made
when it is first needed, and compared with the first file before it is used.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import safetensors_mmap

ORDERS = ("C", "F")


def of(impl: Any) -> str:
    """An implementation's ORDER. Raises CannotJudge unless it is "C" or "F"."""
    order = getattr(impl, "ORDER", ORDERS[0])
    if order not in ORDERS:
        raise CannotJudge(f"ORDER is {order!r:.50}; weights are given in order {' or '.join(ORDERS)}")
    return str(order)


def params_for(impl: Any, weights: Path, known: bool = False) -> dict[str, np.ndarray]:
    """The params for load(): float32 by checkpoint name, each w [n_in, n_out], in a new mapping.

    known: the second file has been compared before. Raises CannotJudge if the weights cannot be read,
    and for an unknown ORDER.
    """
    order, params = of(impl), safetensors_mmap.read(weights)
    return params if order == "C" else params | turned(weights, known)


def turned(weights: Path, known: bool) -> dict[str, np.ndarray]:
    """Every w [n_in, n_out] in order "F": mapped, or in memory if no second file can be written."""
    path = weights.with_suffix(".turned.safetensors")
    stored = {name: w for name, w in safetensors_mmap.read(weights).items() if name.endswith("/w")}
    try:
        if not known and not matches(path, weights, set(stored)):
            safetensors_mmap.write(path, {name: w.T for name, w in stored.items()})
        return {name: w.T for name, w in safetensors_mmap.read(path).items()}
    except CannotJudge:  # the folder is not writable, or the disk is full
        return {name: np.asfortranarray(w) for name, w in stored.items()}


def matches(path: Path, weights: Path, names: set[str]) -> bool:
    """Whether the second file has exactly the named weights of the first, bit by bit."""
    try:
        found, source = safetensors_mmap.MappedArrays(path), safetensors_mmap.MappedArrays(weights)
    except CannotJudge:  # missing or truncated
        return False
    return found.keys() == names and all(same(found[name], source[name]) for name in names)


def same(turned: np.ndarray, w: np.ndarray) -> bool:
    """Whether turned [n_out, n_in] is the transpose of w [n_in, n_out], both float32, bit by bit."""
    alike = turned.dtype == w.dtype and turned.shape == w.shape[::-1]
    return alike and np.array_equal(turned.view(np.int32).T, w.view(np.int32))
