"""Limits: what a limit is, and the two that many checks share.

A noise unit is the median, over the draws of reference/noise.py, of the error that honest rounding
causes in the same quantity at the declared precision. It scales with the model, the layer, outliers and
the dtype, so one limit serves all of them. A limit that only one check uses is in that check's file.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from gpt2_parity.contract.architecture import kind_of
from gpt2_parity.contract.dtypes import DROPPED_BITS


class Limit(NamedTuple):
    """A measured value may be at most ``most``."""

    most: float
    reason: str


class LimitByKind(NamedTuple):
    """Limits that depend on the kind of operation, and on whether the dtype is below float32."""

    wide: Mapping[str, Limit]  # float32 and float64, by kind
    narrow: Mapping[str, Limit]

    def of(self, kind: str, dtype: str) -> Limit:
        """The limit for a kind of operation at a declared dtype."""
        return (self.narrow if dtype in DROPPED_BITS else self.wide)[kind]


NOISE = Limit(
    8.0,
    "An honest implementation is one more draw of the noise, so it is at about 1; other kernels and "
    "summation orders were measured at up to 3. The smallest planted fault is far above 8.",
)
REPORTED = Limit(math.inf, "Reported, not judged: whoever uses the model has to weigh it.")
NONE = Limit(0.0, "The number of violations: a single one is a disagreement.")


def limit_of(
    limits: Mapping[str, Limit | LimitByKind], scope: str, metric: str, dtype: str
) -> Limit | None:
    """The limit of a scope and metric at a declared dtype, from a check's limits; None if it has none.

    ``metric`` may end in "_decode": decode has the limits of prefill.
    """
    limit = limits.get(metric.removesuffix("_decode"))
    return limit.of(kind_of(scope), dtype) if isinstance(limit, LimitByKind) else limit


def near_tie(noise: float) -> float:
    """The difference of two logits below which honest rounding may exchange their order.

    noise: one noise unit of the logits. Each of the two logits may be off by its limit, in opposite
    directions.
    """
    return 2 * NOISE.most * noise
