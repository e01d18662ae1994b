"""Every limit of the verdict, each with its reason. Nothing is judged by a number from elsewhere.

A noise unit is the median, over the draws of noise.py, of what honest rounding at the declared
precision does to the same quantity. It scales with the model, the layer, the outliers and the
dtype by itself, which is why one limit serves all of them.
"""

from typing import NamedTuple


class Limit(NamedTuple):
    """A measured value may be at most ``most``."""

    most: float
    reason: str


NOISE = Limit(
    8.0,
    "An honest implementation is one more draw of the noise, so it measures about 1; other kernels "
    "and summation orders have been seen to reach 3. The smallest planted fault is far above 8.",
)
RMS = Limit(
    6.0,
    "The root mean square averages over all logits, so it varies less from draw to draw than the "
    "greatest difference, and its limit can be tighter.",
)
KL = Limit(
    64.0,
    "KL grows with the square of the difference: 8 noise units of logits are 64 of KL.",
)
NONE = Limit(0.0, "A count of violations: the first one is a disagreement.")

# (check, metric) -> limit. A metric that is not here cannot be judged, and that is an error.
LIMITS: dict[tuple[str, str], Limit] = {
    ("logits", "noise_units"): NOISE,
    ("logits", "rms_noise_units"): RMS,
    ("logits", "kl_noise_units"): KL,
    ("logits", "top5_wrong"): NONE,
    ("activations", "noise_units"): NOISE,
    ("greedy", "wrong_tokens"): NONE,
    ("kv_cache", "noise_units"): NOISE,
    ("batch", "noise_units"): NOISE,
    ("causality", "noise_units"): NOISE,
    ("determinism", "differing_share"): NONE,
    ("lengths", "noise_units"): NOISE,
    ("taps", "noise_units"): NOISE,
    ("bad_tokens", "accepted"): NONE,
}


def near_tie(noise: float) -> float:
    """The margin between two logits below which honest rounding may reorder them.

    Each of the two may be off by what logits are allowed, in opposite directions.
    """
    return 2 * NOISE.most * noise
