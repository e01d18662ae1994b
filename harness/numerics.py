"""How two arrays differ. Every measure refuses to compare nothing and lets NaN through as NaN.

A comparison that is empty, or between different shapes, raises: it must never look like agreement.
"""

import numpy as np


def paired(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64. Raises ValueError for different shapes or for nothing to compare."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: got {got.shape}, expected {want.shape}")
    if got.size == 0:
        raise ValueError("nothing to compare: the arrays are empty")
    return np.asarray(got, np.float64), np.asarray(want, np.float64)


def max_abs(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest absolute difference; NaN if any value of either is NaN."""
    got, want = paired(got, want)
    return float(np.max(np.abs(got - want)))


def rms(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference."""
    got, want = paired(got, want)
    return float(np.sqrt(np.mean((got - want) ** 2)))


def differing(got: np.ndarray, want: np.ndarray) -> float:
    """Share of elements whose bits are not the same value; NaN differs from everything."""
    got, want = paired(got, want)
    return float(np.mean(~(got == want)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (nats) over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest over all positions of KL(want || got) in nats, of logits [batch, n, n_vocab].

    With d the difference of logits less its mean under p, KL = log E[exp d] = log1p E[expm1(d) - d]:
    no two large numbers are subtracted, so divergences far below 1e-16 keep their digits.
    """
    got, want = paired(got, want)
    p = np.exp(log_softmax(want))
    d = got - want
    d = d - (p * d).sum(axis=-1, keepdims=True)
    excess = np.where(np.abs(d) < 1e-4, d * d / 2 * (1 + d / 3), np.expm1(d) - d)
    return float(np.max(np.log1p((p * excess).sum(axis=-1))))
