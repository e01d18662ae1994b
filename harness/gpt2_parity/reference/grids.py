"""Which uniform grid the elements of a weight lie on: how quantised weights are recognised.

A part of a weight that shares one scale lies on a grid if all differences of its elements are whole
multiples of one step, and no more steps lie between the least and the greatest than so many bits count:
255 for 8. It does not matter where zero is: a grid may have an offset or a zero point.

No scale is assumed: steps are tried that divide the range of a part into 1, 2, ... 255. Only some parts
are examined, and some elements of each, because a part of unquantised weights that lies on a grid by
chance is out of the question.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

STEPS = 255  # of 8 bits
PARTS, ELEMENTS = 16, 128  # examined of each weight
OFF = 1e-3  # steps by which an element may be off a grid; rounding to float32 makes 3e-5 of 255 steps
GROUPS = (128, 64, 32)
FEW = 8  # elements: fewer lie on some grid by chance


class Grid(NamedTuple):
    """A grid: how many bits count the steps of a part, and which elements are a part."""

    bits: int
    by: str  # tensor, column (an output), row (an input) or group (of so many inputs of an output)
    group: int = 0


def grid_of(w: np.ndarray, inputs: int = 0) -> Grid | None:
    """The grid of a weight [n, m], whose axis ``inputs`` is summed over; None if it is on none.

    A coarse division goes before a fine one, which a weight that fits it fits as well.
    """
    for by, group, parts in divisions(w, inputs):
        if parts.shape[1] >= FEW and (steps := steps_of(sample(parts))):
            return Grid(steps.bit_length(), by, group)
    return None


def divisions(w: np.ndarray, inputs: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Ways to divide a weight into parts of one scale: name, size of a group, [parts, elements]."""
    by_output = np.moveaxis(w, inputs, -1)  # [n_out, n_in]
    yield "tensor", 0, w.reshape(1, -1)
    yield "column", 0, by_output
    yield "row", 0, by_output.T
    for size in GROUPS:
        if by_output.shape[1] % size == 0 and by_output.shape[1] > size:
            yield "group", size, by_output.reshape(-1, size)


def sample(parts: np.ndarray) -> np.ndarray:
    """Some parts, and of each its greatest, its least, and some elements: float64 [at most PARTS, n]."""
    some = parts[evenly(len(parts), PARTS)].astype(np.float64)
    extremes = np.stack([some.min(axis=1), some.max(axis=1)], axis=1)
    return np.concatenate([extremes, some[:, evenly(some.shape[1], ELEMENTS)]], axis=1)


def evenly(n: int, most: int) -> np.ndarray:
    """At most ``most`` of n indices, evenly spread: int [at most most]."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(int))


def steps_of(parts: np.ndarray) -> int:
    """The most steps that any part [elements] of parts spans; 0 if one of them lies on no grid.

    Of all grids that fit a part, the coarsest counts. A part of equal elements fits any.
    """
    spans = np.ptp(parts, axis=1)
    most = 0
    for part, span in zip(parts, spans, strict=True):
        if span == 0:
            continue
        steps = np.arange(1, STEPS + 1)
        whole = (part - part.min()) / span * steps[:, None]  # [STEPS, elements]
        fits = np.abs(whole - np.round(whole)).max(axis=1) < OFF
        if not fits.any():
            return 0
        most = max(most, int(steps[np.argmax(fits)]))
    return most
