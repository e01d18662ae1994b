"""Mistakes of layer norm: its mean, its variance, its epsilon, its gain and bias."""

import functools

import numpy as np

from .plain import Plain
from .shelf import fault, put

NORMS = "h*/ln_1 h*/ln_2 ln_f?"

for _epsilon in (1e-6, 1e-12, 1e-3):
    put(
        f"epsilon_{_epsilon:g}",
        layer_norm=functools.partial(Plain.layer_norm, eps=_epsilon),
        blame="h*/ln_1 h*/ln_2? ln_f?",
        diagnosis=f"epsilon_{_epsilon:g}",
        trips="local activations",
    )


def standard(x, axis=-1):
    """Zero mean and unit variance."""
    y = x - x.mean(axis=axis, keepdims=True)
    return y / np.sqrt((y * y).mean(axis=axis, keepdims=True) + 1e-5)


@fault("epsilon_outside_root", replaces="layer_norm", blame=NORMS, diagnosis="epsilon_outside_root")
def epsilon_outside_root(x, g, b, at):
    y = x - x.mean(axis=-1, keepdims=True)
    return y / (np.sqrt((y * y).mean(axis=-1, keepdims=True)) + 1e-5) * g + b


@fault("variance_ddof_1", replaces="layer_norm", blame=NORMS, diagnosis="variance_ddof_1")
def unbiased_variance(x, g, b, at):
    y = x - x.mean(axis=-1, keepdims=True)
    variance = (y * y).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return y / np.sqrt(variance + 1e-5) * g + b


@fault("rms_norm", replaces="layer_norm", blame=NORMS, diagnosis="rms_norm")
def rms_norm(x, g, b, at):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * g + b


@fault("norm_without_bias", replaces="layer_norm", blame=NORMS, diagnosis="norm_without_bias")
def without_bias(x, g, b, at):
    return standard(x) * g


@fault("norm_without_gain", replaces="layer_norm", blame=NORMS, diagnosis="norm_without_gain")
def without_gain(x, g, b, at):
    return standard(x) + b


@fault("norm_gain_plus_1", replaces="layer_norm", blame=NORMS, diagnosis="norm_gain_plus_1")
def gain_plus_1(x, g, b, at):
    return standard(x) * (1 + g) + b


@fault("norm_gain_bias_swapped", replaces="layer_norm", blame=NORMS, diagnosis="norm_gain_bias_swapped")
def gain_and_bias_swapped(x, g, b, at):
    return standard(x) * b + g


@fault("norm_skipped", replaces="layer_norm", blame=NORMS, diagnosis="norm_skipped")
def skipped(x, g, b, at):
    return x


@fault("norm_over_batch", replaces="layer_norm", blame=NORMS, diagnosis="norm_over_batch", trips="batch")
def over_batch(x, g, b, at):
    return standard(x, axis=0) * g + b


@fault("norm_bare", replaces="layer_norm", blame=NORMS, diagnosis="norm_bare")
def bare(x, g, b, at):
    return standard(x)
