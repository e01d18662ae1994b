"""The median of a few samples with a confidence interval that assumes no distribution."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WANTED = 0.95


class Interval(NamedTuple):
    """A median, and an interval that encloses the true median with the given confidence."""

    median: float
    low: float
    high: float
    confidence: float  # of the interval, exactly: 0.969 for the extremes of 6 samples


def confidence(n: int, cut: int) -> float:
    """Probability that the true median lies between order statistics cut + 1 and n - cut of n samples.

    It lies outside if at most ``cut`` samples fall on one side of it; each sample falls on either side
    with probability one half.
    """
    return 1 - 2 * sum(math.comb(n, k) for k in range(cut + 1)) / 2**n


def median(samples: Sequence[float]) -> Interval:
    """The median with the narrowest symmetric interval of at least 95 %, or the extremes if none is.

    Raises ValueError for no samples.
    """
    if len(samples) == 0:
        raise ValueError("no samples: there is no median")
    ordered, n = sorted(samples), len(samples)
    cut = max((k for k in range((n - 1) // 2 + 1) if confidence(n, k) >= WANTED), default=0)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Interval(middle, ordered[cut], ordered[-1 - cut], max(0.0, confidence(n, cut)))
