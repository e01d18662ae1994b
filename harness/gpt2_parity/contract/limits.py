"""Every limit of the verdict, each with its reason. Nothing is judged by a number from elsewhere.

A noise unit is the median, over the draws of noise.py, of what honest rounding at the declared
precision does to the same quantity. It scales with the model, the layer, the outliers and the
dtype by itself, which is why one limit serves all of them.
"""

from typing import NamedTuple

from gpt2_parity.contract.architecture import kind_of
from gpt2_parity.contract.dtypes import DROPPED_BITS


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
GRADIENT = Limit(
    16.0,
    "Noise units, as for logits, but of many small arrays, each with the unit of eight draws: honest "
    "float32 was seen to reach 4.8, and float16 on outliers 9.3 in one of 60 seeds; faults are at 100s.",
)
NONE = Limit(0.0, "A count of violations: the first one is a disagreement.")

# Of the local check: rounding units that an operation may show, by its kind. An
# error of n terms stays below lambda sqrt(n) u with probability 1 - 2 exp(-lambda^2 / 2) per element
# (Higham & Mary 2019); over 1e8 elements lambda is 6, and errors of half an ulp rather than one,
# and of blocked rather than running sums, take it to 1 to 2 in practice.
LOCAL = {
    "embedding": Limit(
        2.0, "One rounding of one sum is at most 1 by definition; fused kernels seen: 1."
    ),
    "add": Limit(
        2.0,
        "One rounding of a sum is at most 1; a branch's bias added by itself makes it 2: seen 1.96.",
    ),
    "layer_norm": Limit(
        8.0,
        "Honest kernels (one-pass, two-pass, Welford) were seen at up to 4.3; epsilon 1e-6 is at 100s.",
    ),
    "linear": Limit(
        4.0, "Honest kernels were seen at up to 2.3, summing one by one; BLAS at 1.7; TF32 is at 1000s."
    ),
    "head": Limit(4.0, "A product like the others; honest kernels were seen at up to 1.7."),
    "attention": Limit(
        4.0, "Honest kernels (fused or not) were seen at up to 0.4; a temperature of 1.0005 is at 400."
    ),
    "gelu": Limit(
        16.0,
        "Vectorised tanh is good to a few ulp of 1 only, and 1 + tanh cancels: XLA and TensorFlow were "
        "seen at 5; the exact erf form is at 1000s.",
    ),
}
# Below float32 kernels compute in float32 and round once, or round after every step. Either way the slop
# of float32's tanh, exp and rsqrt, which the limits above have room for, does not grow with u: it is
# nothing beside one rounding.
NARROW = LOCAL | {
    "layer_norm": Limit(
        3.0,
        "Rounded once, honest kernels were seen at up to 0.4; rounded after every step, at 1.4. A "
        "variance by n - 1 is below that in bfloat16, at 0.6 on micro, and stays invisible.",
    ),
    "attention": Limit(
        1.0,
        "Honest kernels were seen at up to 0.3, fused or rounded after every step; a temperature of "
        "1.05 is at 3.",
    ),
    "gelu": Limit(
        3.0,
        "Of all finite values of both dtypes, rounded once the worst is at 0.6, after every step of six "
        "ways to write it at 1.2; x sigmoid(1.702 x) is at 4.3. Erf is at 1.0, and stays invisible.",
    ),
}
SEGMENT = Limit(
    8.0, "Noise units of the segment itself, three draws: as for logits, honest runs measure about 1."
)
REMEASURED = Limit(
    4.0,
    "Times that a record's noise may be above or below what is measured today: of OpenBLAS's kernels, "
    "Prescott's to SkylakeX's, each sums in its own order, and they were seen to give 0.44 to 2.6.",
)
BITS = Limit(
    2.0,
    "An honest product was never seen above 0.6 bits; sums in bfloat16 lose 2.5 or more, TF32 11.",
)


def local_limit(kind: str, dtype: str) -> Limit:
    """The limit of the local check for a kind of operation at a declared dtype."""
    return (NARROW if dtype in DROPPED_BITS else LOCAL)[kind]


def limit(check: str, scope: str, metric: str, dtype: str = "float32") -> Limit | None:
    """The limit of a measurement, if there is one. Only that of rounding units depends on the dtype."""
    metric = metric.removesuffix("_decode")
    if metric == "rounding_units":
        return local_limit(kind_of(scope), dtype)
    return LIMITS.get((check, metric))


# (check, metric) -> limit. A metric that is not here cannot be judged, and that is an error.
LIMITS: dict[tuple[str, str], Limit] = {
    ("logits", "noise_units"): NOISE,
    ("logits", "rms_noise_units"): RMS,
    ("logits", "kl_noise_units"): KL,
    ("logits", "top5_wrong"): NONE,
    ("activations", "noise_units"): NOISE,
    ("local", "segment_noise_units"): SEGMENT,
    ("precision", "bits_lost"): BITS,
    ("weights", "noise_units"): NOISE,
    ("greedy", "wrong_tokens"): NONE,
    ("greedy", "differing_share"): NONE,
    ("greedy", "noise_units"): NOISE,
    ("kv_cache", "noise_units"): NOISE,
    ("batch", "noise_units"): NOISE,
    ("causality", "noise_units"): NOISE,
    ("determinism", "differing_share"): NONE,
    ("lengths", "noise_units"): NOISE,
    ("taps", "noise_units"): NOISE,
    ("sizes", "noise_units"): NOISE,
    ("overflow", "noise_units"): NOISE,
    ("gradients", "noise_units"): GRADIENT,
    ("gradients", "differing_share"): NONE,
    ("bad_tokens", "accepted"): NONE,
    ("bad_tokens", "noise_units"): NOISE,
}


def near_tie(noise: float) -> float:
    """The margin between two logits below which honest rounding may reorder them.

    Each of the two may be off by what logits are allowed, in opposite directions.
    """
    return 2 * NOISE.most * noise
