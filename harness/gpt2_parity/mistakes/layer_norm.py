"""Mistakes in the layer norm."""

import numpy as np

from gpt2_parity.mistakes.registry import Scene, simple
from gpt2_parity.reference import oracle


def norm(
    scene: Scene,
    epsilon: float = oracle.EPSILON,
    ddof: int = 0,
    centre: bool = True,
    inside: bool = True,
    axis: int = -1,
) -> np.ndarray:
    """(x - mean) / s [batch, n, n_embd], before scaling and shifting, with one step done differently.

    inside: epsilon is added to the variance, not to its root. axis: which one is normalised.
    """
    x = scene.inputs[0]
    mean = x.mean(axis=axis, keepdims=True) if centre else 0.0
    variance = (
        np.var(x, axis=axis, keepdims=True, ddof=ddof)
        if centre
        else np.mean(x * x, axis=axis, keepdims=True)
    )
    s = np.sqrt(variance + epsilon) if inside else np.sqrt(variance) + epsilon
    return (x - mean) / s


def affine(scene: Scene, value: np.ndarray) -> np.ndarray:
    """value [batch, n, n_embd] scaled by g and shifted by b."""
    return value * scene.weight("g") + scene.weight("b")


for _epsilon in (1e-6, 1e-12, 1e-8, 1e-3, 1e-4, 0.0):
    simple(
        f"epsilon_{_epsilon:g}",
        f"epsilon is {_epsilon:g}, not 1e-5",
        "layer_norm",
        lambda s, e=_epsilon: affine(s, norm(s, epsilon=e)),  # type: ignore[misc]
    )
simple(
    "epsilon_outside_root",
    "epsilon is added to the standard deviation, not to the variance",
    "layer_norm",
    lambda s: affine(s, norm(s, inside=False)),
)
simple(
    "variance_ddof_1",
    "the variance is divided by n_embd - 1 (unbiased), not by n_embd",
    "layer_norm",
    lambda s: affine(s, norm(s, ddof=1)),
)
simple(
    "rms_norm",
    "the mean is not subtracted (RMS norm)",
    "layer_norm",
    lambda s: affine(s, norm(s, centre=False)),
)
simple("norm_without_bias", "b is not added", "layer_norm", lambda s: norm(s) * s.weight("g"))
simple("norm_without_gain", "g is not applied", "layer_norm", lambda s: norm(s) + s.weight("b"))
simple("norm_bare", "neither g nor b is applied", "layer_norm", norm)
simple(
    "norm_gain_plus_1",
    "1 + g is applied, not g",
    "layer_norm",
    lambda s: norm(s) * (1 + s.weight("g")) + s.weight("b"),
)
simple(
    "norm_gain_bias_swapped",
    "g and b are exchanged",
    "layer_norm",
    lambda s: norm(s) * s.weight("b") + s.weight("g"),
)
simple(
    "norm_over_positions",
    "mean and variance are over positions, not over channels",
    "layer_norm",
    lambda s: affine(s, norm(s, axis=1)),
)
simple(
    "norm_over_batch",
    "mean and variance are over the batch, not over channels",
    "layer_norm",
    lambda s: affine(s, norm(s, axis=0)),
)
simple("norm_skipped", "the input is passed on unnormalised", "layer_norm", lambda s: s.inputs[0])
