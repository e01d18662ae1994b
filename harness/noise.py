"""The noise floor: how far honest rounding alone moves the answer.

The oracle's own forward pass is evaluated at the declared precision several times, with the
summation order of every matrix product shuffled and every result rounded at random (by up to one
unit roundoff; below float32, up or down to a neighbour). What separates these draws from the
float64 truth is noise, and its size is the unit in which an implementation's distance from the
truth is judged: no tolerance is chosen.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness import oracle
from harness.contract import HParams, Tap, tap_names
from harness.numerics import kl_divergence, max_abs, rms

DTYPES = ("float64", "float32", "bfloat16", "float16")
DRAWS = 8
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,  # float32's range with float16's digits: what tensor cores make of float32
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
# bits of a float32 mantissa that the narrower type lacks; products are summed in float32 there
DROPPED_BITS = {"bfloat16": 16, "float16": 13, "tf32": 13}


def shuffled_matmul(x: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x [..., n_in] @ w [..., n_in, n_out], summed in random order."""
    order = rng.permutation(x.shape[-1])
    return np.matmul(x[..., order], w[..., order, :])


def shuffled_affine(x: np.ndarray, w: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x @ w + b with the bias as one more term of the sum, wherever the shuffle puts it."""
    order = rng.permutation(len(w) + 1)
    terms = w.take(order, axis=0, mode="clip")  # one copy of w, which may be large
    terms[order == len(w)] = b
    one = np.ones((*x.shape[:-1], 1), x.dtype)
    return np.matmul(np.concatenate([x, one], axis=-1)[..., order], terms)


def round_nearest(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values rounded to the nearest value of a narrower dtype, kept as float32."""
    return _drop(x, DROPPED_BITS[dtype], lambda bits, low: np.uint32(low // 2) + ((bits // low) & 1) - 1)


def round_stochastic(x: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Float32 values rounded up or down at random, with odds by nearness, kept as float32."""
    return _drop(
        x,
        DROPPED_BITS[dtype],
        lambda bits, low: rng.integers(0, low, bits.shape, dtype=np.uint32),
    )


def _drop(x: np.ndarray, n_bits: int, carry) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Add a carry to the bit pattern and cut the low bits off; infinities stay what they are."""
    low = np.uint32(1 << n_bits)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + carry(bits, low)) & ~(low - np.uint32(1))).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(np.float32)


class Latest:
    """A conversion of weights that remembers its latest matrix: draws side by side want the same one."""

    def __init__(self, convert: Callable[[np.ndarray], np.ndarray]):
        self.convert = convert
        self.kept: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, w: np.ndarray) -> np.ndarray:
        if w.ndim < 2:
            return self.convert(w)
        if self.kept is None or self.kept[0] is not w:
            self.kept = w, self.convert(w)
        return self.kept[1]


def arithmetic(dtype: str, rng: np.random.Generator) -> oracle.Arithmetic:
    """An honest evaluation at dtype with random summation order and random rounding."""

    def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return shuffled_matmul(x, w, rng)

    def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return shuffled_affine(x, w, b, rng)

    def settle(y: np.ndarray) -> np.ndarray:
        if dtype in DROPPED_BITS:
            return round_stochastic(y, dtype, rng)
        return np.asarray(y * (1 + UNIT_ROUNDOFF[dtype] * rng.uniform(-1, 1, y.shape)), dtype)

    return oracle.Arithmetic(lambda w: weight_at(w, dtype), settle, matmul, affine)


def weight_at(w: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 weight as dtype has it; below float32 rounded, and kept as float32."""
    return round_nearest(w, dtype) if dtype in DROPPED_BITS else np.asarray(w, dtype)


def draws(dtype: str, seed: int) -> list[oracle.Arithmetic]:
    """Honest evaluations at dtype that differ in all that is random, to be run side by side."""
    weight = Latest(lambda w: weight_at(w, dtype))
    rngs = [np.random.default_rng([seed, draw]) for draw in range(DRAWS)]
    return [arithmetic(dtype, rng)._replace(weight=weight) for rng in rngs]


def floor(greatest: float, u: float) -> tuple[float, float, float]:
    """The three measures of the logits for one rounding of the greatest logit."""
    one = u * greatest
    return one, one / np.sqrt(12), one**2 / 24  # rounding errors are uniform; KL is half a variance


def measure(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    tap: Tap,
    seed: int,
    dtypes: Sequence[str] = DTYPES,
) -> dict[str, np.ndarray]:
    """The noise of each dtype around every exact result, which goes to tap (so do the logits).

    ``noise/{dtype}/taps`` [draws, n_taps]: greatest absolute difference at each tap, in tap order;
    ``noise/{dtype}/logits`` [draws, 3]: greatest absolute and root-mean-square difference, and
    greatest KL divergence (nats) of the next-token distribution.
    Draws are compared as they come, and none is kept. None counts for less than one rounding of the
    greatest value: what happens to be exact in one order of operations (a float64 sum of float32
    weights, say) need not be in another.
    """
    names = tap_names(hparams.n_layer)
    which = [(dtype, draw) for dtype in dtypes for draw in range(DRAWS)]
    arithmetics = [oracle.EXACT, *(each for dtype in dtypes for each in draws(dtype, seed))]
    found = {f"noise/{dtype}/taps": np.zeros((DRAWS, len(names))) for dtype in dtypes}
    found |= {f"noise/{dtype}/logits": np.zeros((DRAWS, 3)) for dtype in dtypes}
    for name, i, value in oracle.stream(params, hparams, tokens, arithmetics):
        if i == 0:
            exact, greatest = value, float(np.abs(value).max())
            tap(name, exact)
            continue
        dtype, draw = which[i - 1]
        u = UNIT_ROUNDOFF[dtype]
        if name == "logits":
            strays = max_abs(value, exact), rms(value, exact), kl_divergence(value, exact)
            found[f"noise/{dtype}/logits"][draw] = np.maximum(strays, floor(greatest, u))
        else:
            stray = max(max_abs(value, exact), u * greatest)
            found[f"noise/{dtype}/taps"][draw, names.index(name)] = stray
    return found
