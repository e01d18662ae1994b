"""Diagnosis of a wrong operation: known mistakes, tried one by one in float64.

A mistake explains the implementation's result if it gives that result up to rounding.
"""

import math

import numpy as np

from gpt2_parity.mistakes.registry import MISTAKES, NEAR, Scene


def explain(scene: Scene) -> dict[str, float]:
    """The error in rounding units that is left under each mistake that applies, by its name."""
    left = {}
    for mistake in MISTAKES:
        if scene.op.kind in mistake.kinds:
            rest = [residual(scene, altered, mistake.flips) for altered in mistake.alter(scene)]
            if rest:
                left[mistake.name] = min(rest)
    return left


def residual(scene: Scene, altered: np.ndarray, flips: bool = False) -> float:
    """The error, in rounding units, that is left if altered [batch, n, width] is taken for right.

    The unit is that of the larger of the exact and the altered result. inf if the shapes differ, or if
    only one of the two is not finite. flips: see mistakes/registry.py.
    """
    if altered.shape != scene.got.shape:
        return math.inf
    with np.errstate(all="ignore"):
        growth = np.maximum(1, np.abs(altered) / np.maximum(np.abs(scene.exact), 1e-300))
        units = np.abs(scene.got - altered) / (scene.size * growth)
        # a value that is not finite is explained if the mistake gives one that is not finite either
        units = np.where(~np.isfinite(scene.got) & ~np.isfinite(altered), 0.0, units)
        before = np.median(np.abs(scene.got - scene.exact) / scene.size)
    # if the median error hardly falls, a greatest error before is no match for a median one after
    counts = np.median if flips and np.median(units) <= before / NEAR else np.max
    rest = float(counts(units))
    return rest if math.isfinite(rest) else math.inf
