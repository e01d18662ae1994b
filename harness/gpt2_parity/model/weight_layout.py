"""The weights as an implementation wants them to lie in memory: ORDER = "C", the default, or "F".

Their shapes are the contract's in either order. With "F" each w [n_in, n_out] lies as [n_out, n_in], as
a product with one vector reads it fastest, and as libraries keep it that would copy it otherwise. A
model's file has the checkpoint's own order, "C"; the other is a second file beside it, made when first
asked for, and held against the first before it is used.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import safetensors_mmap

ORDERS = ("C", "F")


def of(impl: Any) -> str:
    """An implementation's ORDER. Raises CannotJudge for one that there is not."""
    order = getattr(impl, "ORDER", ORDERS[0])
    if order not in ORDERS:
        raise CannotJudge(f"ORDER is {order!r:.50}; weights are given in order {' or '.join(ORDERS)}")
    return str(order)


def params_for(impl: Any, weights: Path, known: bool = False) -> dict[str, np.ndarray]:
    """What load() is given: a mapping of its own. known: that the second file is right was seen before.

    Raises CannotJudge where the weights cannot be read, and for an ORDER that there is not.
    """
    order, params = of(impl), safetensors_mmap.read(weights)
    return params if order == "C" else params | turned(weights, known)


def turned(weights: Path, known: bool) -> dict[str, np.ndarray]:
    """Every w [n_in, n_out] in order "F": mapped, or in memory where the second file cannot be kept."""
    path = weights.with_suffix(".turned.safetensors")
    stored = {name: w for name, w in safetensors_mmap.read(weights).items() if name.endswith("/w")}
    try:
        if not known and not holds(path, weights, set(stored)):
            safetensors_mmap.write(path, {name: w.T for name, w in stored.items()})
        return {name: w.T for name, w in safetensors_mmap.read(path).items()}
    except CannotJudge:  # nobody may write there, or the disk is full
        return {name: np.asfortranarray(w) for name, w in stored.items()}


def holds(path: Path, weights: Path, names: set[str]) -> bool:
    """Whether the second file has the very weights of the first."""
    try:
        found, source = safetensors_mmap.Glances(path), safetensors_mmap.Glances(weights)
    except CannotJudge:  # not there, or cut off
        return False
    return found.keys() == names and all(same(found[name], source[name]) for name in names)


def same(turned: np.ndarray, w: np.ndarray) -> bool:
    """Whether turned is w [n_in, n_out], float32 both, as [n_out, n_in], bit by bit."""
    alike = turned.dtype == w.dtype and turned.shape == w.shape[::-1]
    return alike and np.array_equal(turned.view(np.int32).T, w.view(np.int32))
