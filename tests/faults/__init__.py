"""Planted faults: mistakes in a correct GPT-2, one at a time, and what must come of each.

A fault is a function that stands for one of ``plain.Plain``'s or, in gradients, half_precision and cuda,
an edit of a specimen's text. Each module is one kind of mistake, and puts its own on the shelf.
"""

from . import (  # noqa: F401 (each fills the shelf)
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
