"""The weights as an implementation wants them to lie in memory: ORDER = "C", the default, or "F".

Their shapes are the contract's in either order. With "F" each w [n_in, n_out] lies as [n_out, n_in], as
a product with one vector reads it fastest, and as libraries keep it that would copy it otherwise. A
model's file has the checkpoint's own order, "C"; the other is a second file beside it, made when first
asked for, and held against the first whenever it is opened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import mapped
from harness.contract import CannotJudge

ORDERS = ("C", "F")


def params_for(impl: Any, weights: Path, known: bool = False) -> dict[str, np.ndarray]:
    """What load() is given: a mapping of its own. known: that the second file is right was seen before.

    Raises CannotJudge where a file cannot be read, or the second one not be written.
    """
    params = mapped.read(weights)
    if getattr(impl, "ORDER", "C") == "F":
        turned = weights.with_suffix(".turned.safetensors")
        if not known:
            make_sure(turned, weights)
        params |= {name: w.T for name, w in mapped.read(turned).items()}
    return params


def make_sure(turned: Path, weights: Path) -> None:
    """Write the second file unless it holds the very weights of the first."""
    source = mapped.Glances(weights)
    products = [name for name in source if name.endswith("/w")]
    try:
        found: Mapping[str, np.ndarray] = mapped.Glances(turned)
    except CannotJudge:  # not there, or cut off
        found = {}
    if found.keys() != set(products) or not all(same(found[name].T, source[name]) for name in products):
        mapped.write(turned, {name: source[name].T for name in products})


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float32 arrays are equal, bit by bit."""
    return bool(np.array_equal(a.T.view(np.int32).T, b.view(np.int32)))
