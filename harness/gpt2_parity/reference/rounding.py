"""Rounding bounds: how large honest rounding can make the error of one operation.

For each kind of operation there is a bound on the elementwise error of its result, given its own input,
at the declared precision. The error divided by the bound is a pure number, in *rounding units*, that
means the same for every layer, width, outlier and dtype. It is the unit of the local check.

u is the unit roundoff of the declared dtype, a that of sums. Below float32, a is float32's: hardware
multiplies in half precision and adds in float32. y is the exact result.

    linear, head  u |y| + a sqrt(n_in) (||x w||_2 + |y| + |b|). n_in rounding errors of random sign
                  add up like sqrt(n_in) times the typical partial sum, which is ||x w||_2 where terms
                  cancel and |y| where they do not (Higham & Mary 2019, SIAM J. Sci. Comput. 41(5)).
                  This is tighter by up to sqrt(n_in) than |x| |w|, so it shows one weight of thousands
                  that is off by 1 %. Below float32 a linear layer has u |y - b| more: an implementation
                  may round the product, add the bias and round again.
    layer_norm    u (|y| + |b| + |g| / s (|x| + mean|x|) + |y - b| mean(x^2) / s^2), s^2 = var + epsilon:
                  for the centred difference, its scaling, and a variance in one pass or two.
    attention     the relative error of each probability is that of exp, whose argument is off by
                  2 u |score| + a |q||k|; it is carried through the average over values.
    gelu          u (|y| + |x| / 2 (1 + |z| sech^2 z)), z the argument of tanh: for the rounding of z,
                  of tanh near -1, where 1 + tanh cancels, and of the product.
    add           u (|y| + |branch| + |b|): one rounding, or two if the branch is rounded only for the
                  tap, or if its bias b is added to the residual separately.
    embedding     u |y|: one rounding.

Sources: N. J. Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), chapters 2 to 4.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.dtypes import UNIT_ROUNDOFF
from gpt2_parity.contract.limits import Limit, LimitByKind
from gpt2_parity.reference import oracle
from gpt2_parity.reference.distance import difference, paired

# The error near zero that underflow, or flushing to zero, may cause in a dtype.
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}

HUGE = 1e14  # above it, squares and products might overflow float32

# Limits in rounding units, by kind of operation. An error of n terms stays below lambda sqrt(n) u with
# probability 1 - 2 exp(-lambda^2 / 2) per element (Higham & Mary 2019). Over 1e8 elements lambda is 6.
# In practice it is 1 to 2: errors are half an ulp rather than one, and sums are blocked.
WIDE = {
    "embedding": Limit(
        2.0, "One rounding of one sum is at most 1 by definition; fused kernels were measured at 1."
    ),
    "add": Limit(
        2.0,
        "One rounding of a sum is at most 1; two, if a branch's bias is added separately, were at 1.96.",
    ),
    "layer_norm": Limit(
        8.0,
        "Honest kernels (one-pass, two-pass, Welford) were at up to 4.3; epsilon 1e-6 is in the 100s.",
    ),
    "linear": Limit(
        4.0, "Honest kernels were at up to 2.3, summing one by one; BLAS at 1.7. TF32 is in the 1000s."
    ),
    "head": Limit(4.0, "A product like the others; honest kernels were at up to 1.7."),
    "attention": Limit(
        4.0,
        "Honest kernels (fused or not) were at up to 0.4; a softmax temperature of 1.0005 is at 400.",
    ),
    "gelu": Limit(
        16.0,
        "Vectorised tanh is only good to a few ulp of 1, and 1 + tanh cancels: XLA and TensorFlow were "
        "at 5. The exact erf form is in the 1000s.",
    ),
}
# Below float32, kernels compute in float32 and round once, or round after every step. Either way the
# inaccuracy of float32's tanh, exp and rsqrt, which the limits above allow for, does not grow with u: it
# is negligible beside one rounding.
NARROW = WIDE | {
    "layer_norm": Limit(
        3.0,
        "Rounded once, honest kernels were at up to 0.4; rounded after every step, at 1.4. A variance "
        "divided by n - 1 is below that in bfloat16 (0.6 on micro) and stays invisible.",
    ),
    "attention": Limit(
        1.0,
        "Honest kernels, fused or rounded after every step, were at up to 0.3; a softmax temperature of "
        "1.05 is at 3.",
    ),
    "gelu": Limit(
        3.0,
        "Over all finite values of both dtypes, the worst is 0.6 if rounded once, and 1.2 if rounded "
        "after every step, in six ways to write it. x sigmoid(1.702 x) is at 4.3. Erf is at 1.0: it "
        "stays invisible.",
    ),
}
LIMITS = LimitByKind(WIDE, NARROW)  # in rounding units


class Roundoff(NamedTuple):
    """The errors of rounding at a declared dtype."""

    u: float  # unit roundoff of a stored result
    a: float  # unit roundoff of each step of a sum
    tiny: float  # error near zero

    @classmethod
    def of(cls, dtype: str) -> "Roundoff":
        u = UNIT_ROUNDOFF[dtype]
        return cls(u, min(u, UNIT_ROUNDOFF["float32"]), TINY[dtype])


# Which weights an implementation may round to a declared dtype below float32: all; the matrices, while
# biases, norms and positions stay float32 (mixed precision); all but wte, which is the tied head and
# often stays float32; or none.
HELD = ("all", "matrices", "all but wte", "none")


def ways(dtype: str) -> tuple[str, ...]:
    """The values of HELD that are honest at a declared dtype; first "all", as declared."""
    return HELD if dtype in dtypes.DROPPED_BITS else HELD[:1]


def weights_at(
    params: Mapping[str, np.ndarray], dtype: str, held: str = "all"
) -> Mapping[str, np.ndarray]:
    """The weights as an implementation that declares dtype may hold them, each with its shape.

    held, one of HELD, says which are rounded to nearest; float32 and float64 leave them unchanged.
    """
    return Rounded(params, dtype, held) if dtype in dtypes.DROPPED_BITS and held != "none" else params


class Rounded(Mapping[str, np.ndarray]):
    """A view of weights that rounds each one on access and keeps no copy."""

    def __init__(self, params: Mapping[str, np.ndarray], dtype: str, held: str = "all"):
        self.params, self.dtype, self.held = params, dtype, held

    def __getitem__(self, name: str) -> np.ndarray:
        matrix = name == "wte" or name.endswith("/w")
        if (self.held == "matrices" and not matrix) or (self.held == "all but wte" and name == "wte"):
            return self.params[name]
        return dtypes.round_nearest(self.params[name], self.dtype)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)


def bound(
    op: Op,
    inputs: list[np.ndarray],
    result: np.ndarray,
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    roundoff: Roundoff,
) -> np.ndarray:
    """The elementwise rounding bound of an operation, in the shape of its result [batch, n, width].

    inputs: each [batch, n, width]; result: the exact result. The bound is in the unit of the result.
    """
    u, _, tiny = roundoff
    match op.kind:
        case "linear":
            w, b = params[f"{op.name}/w"], params[f"{op.name}/b"]
            size = product(inputs[0], w, b, result, roundoff)
            if u > roundoff.a:  # below float32 the product may be rounded before the bias is added
                size += u * np.abs(result - b)
        case "head":
            size = product(inputs[0], params["wte"].T, 0.0, result, roundoff)
        case "layer_norm":
            size = u * layer_norm(inputs[0], result, params[f"{op.name}/g"], params[f"{op.name}/b"])
        case "attention":
            size = attention(inputs[0], result, hparams.n_head, roundoff)
        case "gelu":
            size = u * gelu(inputs[0], result)
        case "add":
            bias = params[f"{op.inputs[1]}/b"]  # of the branch's last product
            size = u * (np.abs(result) + np.abs(inputs[1]) + np.abs(bias))
        case _:  # embedding
            size = u * np.abs(result)
    size += tiny
    return size


def light(x: np.ndarray) -> np.ndarray:
    """x [...] in float32, or in float64 if its squares might overflow: enough digits for a bound."""
    return np.asarray(x, np.float32 if max(x.max(), -x.min()) < HUGE else np.float64)


def product(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | float, result: np.ndarray, roundoff: Roundoff
) -> np.ndarray:
    """The bound [..., n_out] of result [..., n_out] = x [..., n_in] @ w [n_in, n_out] + b [n_out]."""
    u, a, _ = roundoff
    share = a * math.sqrt(len(w))
    x = light(x)
    w = np.asarray(w, x.dtype)
    norm = (x * x) @ (w * w)
    np.sqrt(norm, out=norm)
    norm += np.abs(b)
    norm *= share
    size = np.abs(result)
    size *= u + share
    size += norm
    return size


def layer_norm(x: np.ndarray, result: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The bound [batch, n, n_embd] of a layer norm, without the factor u.

    x and result [batch, n, n_embd]; g and b [n_embd].
    """
    x = light(x)
    size = np.abs(x)
    mean_size = size.mean(axis=-1, keepdims=True)
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    s2 = np.var(x, axis=-1, keepdims=True) + oracle.EPSILON
    centring = np.abs(g) / np.sqrt(s2) * (size + mean_size)
    scaling = np.abs(result - b) * (mean_square / s2)
    return np.abs(result) + np.abs(b) + centring + scaling


def attention(qkv: np.ndarray, result: np.ndarray, n_head: int, roundoff: Roundoff) -> np.ndarray:
    """The bound of attention, like result [batch, n, n_embd]; qkv [batch, n, 3 n_embd]."""
    u, a, _ = roundoff
    q, k, v = oracle.split_heads(light(qkv), n_head)
    scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]))
    # absolute error of each score: from the sum of products, and from its own rounding
    shift = a * (np.abs(q) @ np.abs(k).swapaxes(-1, -2)) + 2 * u * np.abs(scores)
    probs = oracle.softmax(oracle.causal(scores))
    # relative error of each probability: from its own score, and from the normaliser
    relative = shift + np.sum(probs * shift, axis=-1, keepdims=True) + 4 * u
    spread = (probs * (relative + a * math.sqrt(k.shape[-2]))) @ np.abs(v)
    return oracle.merge_heads(spread) + u * np.abs(result)


def gelu(x: np.ndarray, result: np.ndarray) -> np.ndarray:
    """The bound of GELU, without the factor u; x, result and bound [batch, n, 4 n_embd]."""
    x = np.abs(light(x))
    near = np.minimum(x, 30)  # beyond 30, sech^2 is 0, and a cube might overflow
    z = 0.044715 * near * near
    z += 1
    z *= near
    z *= math.sqrt(2 / math.pi)
    decay = np.exp(-2 * z)
    z *= 4 * decay
    decay += 1
    z /= decay * decay  # z sech^2 z
    z += 1
    x *= z
    size = np.abs(result)
    size += 0.5 * x
    return size


def units(got: np.ndarray, exact: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Elementwise error |got - exact| / size in rounding units, all of one shape [...].

    size: the bound. Raises ValueError if the shapes differ or the arrays are empty.
    """
    gap = difference(got, exact)
    paired(gap, size)
    np.abs(gap, out=gap)
    gap /= size
    return gap


def rank(error: tuple[float, object]) -> tuple[bool, float]:
    """A sort key for (error, evidence): NaN is worse than any number."""
    return math.isnan(error[0]), error[0]
