"""Planted faults: mistakes in a correct GPT-2, one at a time, and the verdict that each must get.

A fault is a function that replaces one of ``plain.Plain``'s or, in gradients, half_precision and cuda,
an edit of a specimen's text. Each module has one kind of mistake and adds its faults to the lists in
shelf.py.
"""

import importlib
import pkgutil

from .plain import Plain
from .shelf import BLACK_BOX, FAULTS, IN_LAYER, ON_CUDA, Fault, named, plant, source, write

for _module in pkgutil.iter_modules(__path__):  # importing a file of faults adds them to the lists
    importlib.import_module(f"{__name__}.{_module.name}")

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
