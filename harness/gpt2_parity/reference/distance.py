"""Measures of how two arrays differ.

Each raises ValueError if the shapes differ or the arrays are empty. NaN never looks like agreement: it
gives NaN, or counts as a difference.
"""

from collections.abc import Iterator

import numpy as np

PART = 2**16  # elements compared at a time


def paired(got: np.ndarray, want: np.ndarray) -> None:
    """Raise ValueError if the shapes [...] differ or the arrays are empty."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: got {got.shape}, expected {want.shape}")
    if got.size == 0:
        raise ValueError("nothing to compare: the arrays are empty")


def difference(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """got - want [...] in float64 as a new array, whatever the dtypes; no other copy is made."""
    paired(got, want)
    return np.subtract(got, want, dtype=np.float64)


def gaps(got: np.ndarray, want: np.ndarray) -> Iterator[np.ndarray]:
    """The same, flattened: parts [up to PART], which stay in the processor's cache."""
    paired(got, want)
    got, want = got.ravel(), want.ravel()
    for start in range(0, got.size, PART):
        yield difference(got[start : start + PART], want[start : start + PART])


def max_abs(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest absolute difference of two arrays [...]; NaN if any value of either is NaN."""
    return float(np.max([np.max(np.abs(gap, out=gap)) for gap in gaps(got, want)]))


def rms(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference of two arrays [...]."""
    return float(np.sqrt(sum(np.square(gap, out=gap).sum() for gap in gaps(got, want)) / got.size))


def differing(got: np.ndarray, want: np.ndarray) -> float:
    """Share (0 to 1) of the elements of two arrays [...] that are not equal; NaN equals nothing."""
    paired(got, want)
    return float(np.mean(~(got == want)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (nats) of logits [..., n_vocab] over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest over all positions of KL(want || got) in nats, of logits [batch, n, n_vocab].

    p is the distribution of want. With d = got - want minus its mean under p,
    KL = log E[exp d] = log1p E[expm1(d) - d]. No two large numbers are subtracted, so divergences far
    below 1e-16 keep their digits.
    """
    return float(np.max(divergences(got, want)))


def divergences(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """KL(want || got) in nats at each position [batch * n], of logits [batch, n, n_vocab]."""
    paired(got, want)
    n_vocab = got.shape[-1]
    # one position at a time: whole logits of a large vocabulary would pass through memory ten times
    pairs = zip(got.reshape(-1, n_vocab), want.reshape(-1, n_vocab), strict=True)
    return np.array([_divergence(g, w) for g, w in pairs])


def _divergence(got: np.ndarray, want: np.ndarray) -> float:
    """KL(want || got) in nats of two rows of logits [n_vocab]."""
    # p only weights an average, so float32 will do; exp is most of the work, six times more in float64
    p = np.exp((want - want.max()).astype(np.float32)).astype(np.float64)
    p /= p.sum()
    d = difference(got, want)
    d -= (p * d).sum()
    small = d / 6 + 0.5
    small *= d
    small *= d  # d^2 / 2 (1 + d / 3)
    excess = small if np.abs(d).max() < 1e-4 else np.where(np.abs(d) < 1e-4, small, np.expm1(d) - d)
    return float(np.log1p((p * excess).sum()))


def rounded(values: np.ndarray) -> list[float]:
    """Values [n] with three digits: they are shown and not judged."""
    return [float(f"{value:.3g}") for value in values]
