"""Why is an operation wrong? Known mistakes, tried one by one in float64.

If the implementation's result is what a mistake would give, up to rounding, that mistake explains it.
"""

import math

import numpy as np

from gpt2_parity.mistakes.registry import MISTAKES, Scene


def explain(scene: Scene) -> dict[str, float]:
    """Greatest error in rounding units that is left under each mistake that applies, by its name."""
    left = {}
    for found in MISTAKES:
        if scene.op.kind in found.kinds:
            rest = [residual(scene, altered, found.flips) for altered in found.alter(scene)]
            if rest:
                left[found.name] = min(rest)
    return left


def residual(scene: Scene, altered: np.ndarray, flips: bool = False) -> float:
    """What is left of the error, in rounding units of the larger of right and wrong result."""
    if altered.shape != scene.got.shape:
        return math.inf
    with np.errstate(all="ignore"):
        growth = np.maximum(1, np.abs(altered) / np.maximum(np.abs(scene.exact), 1e-300))
        units = np.abs(scene.got - altered) / (scene.size * growth)
        # NaN where the mistake gives NaN as well is explained
        units = np.where(~np.isfinite(scene.got) & ~np.isfinite(altered), 0.0, units)
        before = np.median(np.abs(scene.got - scene.exact) / scene.size)
    # where the middle error was less before, most was right, and says nothing of what is wrong
    counts = np.median if flips and np.median(units) < before else np.max
    rest = float(counts(units))
    return rest if math.isfinite(rest) else math.inf
