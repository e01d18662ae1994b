"""Tolerances: what a limit is, and the two that many checks share.

A noise unit is the median, over the draws of reference/noise.py, of what honest rounding at the declared
precision does to the same quantity. It scales with the model, the layer, the outliers and the dtype by
itself, which is why one limit serves all of them. A limit that one check alone uses stands in its file.
"""

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
    "An honest implementation is one more draw of the noise, so it measures about 1; other kernels "
    "and summation orders have been seen to reach 3. The smallest planted fault is far above 8.",
)
NONE = Limit(0.0, "A count of violations: the first one is a disagreement.")


def limit_of(
    limits: Mapping[str, Limit | LimitByKind], scope: str, metric: str, dtype: str
) -> Limit | None:
    """The limit of a measurement by a check's limits; None where the check declares none.

    ``metric`` may end in "_decode": what is measured through the cache has the limits of prefill.
    """
    found = limits.get(metric.removesuffix("_decode"))
    return found.of(kind_of(scope), dtype) if isinstance(found, LimitByKind) else found


def near_tie(noise: float) -> float:
    """The margin between two logits below which honest rounding may reorder them.

    noise: one noise unit of the logits. Each of the two may be off by what logits are allowed, in
    opposite directions.
    """
    return 2 * NOISE.most * noise
