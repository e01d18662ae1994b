"""How two arrays differ. Every measure refuses to compare nothing and lets NaN through as NaN.

A comparison that is empty, or between different shapes, raises: it must never look like agreement.
"""

from collections.abc import Iterator

import numpy as np

PART = 2**16  # elements that are compared at a time


def paired(got: np.ndarray, want: np.ndarray) -> None:
    """Raise ValueError for different shapes or for nothing to compare."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: got {got.shape}, expected {want.shape}")
    if got.size == 0:
        raise ValueError("nothing to compare: the arrays are empty")


def difference(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """got - want in float64, an array of its own, whatever the dtypes; no other copy is made."""
    paired(got, want)
    return np.subtract(got, want, dtype=np.float64)


def gaps(got: np.ndarray, want: np.ndarray) -> Iterator[np.ndarray]:
    """The same flat and a part at a time, so that what is large stays in the processor's cache."""
    paired(got, want)
    got, want = got.ravel(), want.ravel()
    for start in range(0, got.size, PART):
        yield difference(got[start : start + PART], want[start : start + PART])


def max_abs(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest absolute difference; NaN if any value of either is NaN."""
    return float(np.max([np.max(np.abs(gap, out=gap)) for gap in gaps(got, want)]))


def rms(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference."""
    return float(np.sqrt(sum(np.square(gap, out=gap).sum() for gap in gaps(got, want)) / got.size))


def differing(got: np.ndarray, want: np.ndarray) -> float:
    """Share of elements whose bits are not the same value; NaN differs from everything."""
    paired(got, want)
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
    paired(got, want)
    n_vocab = got.shape[-1]
    # a few positions at a time: whole logits of a large vocabulary would go through memory ten times
    pairs = zip(got.reshape(-1, n_vocab), want.reshape(-1, n_vocab), strict=True)
    return float(np.max([_divergence(g, w) for g, w in pairs]))


def _divergence(got: np.ndarray, want: np.ndarray) -> float:
    """KL(want || got) in nats of two rows of logits [n_vocab]."""
    # p only weighs an average, to seven digits; exp is most of the work, and in float64 six times more
    p = np.exp((want - want.max()).astype(np.float32)).astype(np.float64)
    p /= p.sum()
    d = difference(got, want)
    d -= (p * d).sum()
    small = d / 6 + 0.5
    small *= d
    small *= d  # d^2 / 2 (1 + d / 3)
    excess = small if np.abs(d).max() < 1e-4 else np.where(np.abs(d) < 1e-4, small, np.expm1(d) - d)
    return float(np.log1p((p * excess).sum()))
