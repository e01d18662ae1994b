"""Planted faults: mistakes in a correct GPT-2, one at a time, and the verdict that each must get.

A fault is a function that replaces one of ``plain.Plain``'s or, in gradients, half_precision and cuda,
an edit of a specimen's text. Each module has one kind of mistake and adds its faults to the lists in
shelf.py.
"""

from . import (  # noqa: F401 (importing them fills the lists)
    activation,
    attention,
    batch,
    cache,
    cache_buffers,
    cuda,
    embedding,
    generate,
    gradients,
    half_precision,
    layer_norm,
    lengths,
    one_layer,
    precision,
    products,
    refusals,
    results,
    state,
    structure,
    taps,
    weights,
)
from .plain import Plain
from .shelf import BLACK_BOX, FAULTS, IN_LAYER, ON_CUDA, Fault, named, plant, source, write

__all__ = [
    "BLACK_BOX",
    "FAULTS",
    "IN_LAYER",
    "ON_CUDA",
    "Fault",
    "Plain",
    "named",
    "plant",
    "source",
    "write",
]
