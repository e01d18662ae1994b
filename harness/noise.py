"""The noise floor: how far honest rounding alone moves the answer.

The oracle's own forward pass is evaluated at the declared precision several times, with the
summation order of every matrix product shuffled and every result rounded at random (by up to one
unit roundoff; below float32, up or down to a neighbour). What separates these draws from the
float64 truth is noise, and its size is the unit in which an implementation's distance from the
truth is judged: no tolerance is chosen.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from harness import oracle
from harness.contract import HParams, tap_names
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
    one = np.ones((*x.shape[:-1], 1), x.dtype)
    return shuffled_matmul(np.concatenate([x, one], axis=-1), np.concatenate([w, b[None]]), rng)


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


def arithmetic(dtype: str, rng: np.random.Generator) -> oracle.Arithmetic:
    """An honest evaluation at dtype with random summation order and random rounding."""

    def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return shuffled_matmul(x, w, rng)

    def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return shuffled_affine(x, w, b, rng)

    if dtype not in DROPPED_BITS:
        cast, u = np.dtype(dtype).type, UNIT_ROUNDOFF[dtype]
        return oracle.Arithmetic(
            weight=lambda w: np.asarray(w, cast),
            settle=lambda y: np.asarray(y * (1 + u * rng.uniform(-1, 1, y.shape)), cast),
            matmul=matmul,
            affine=affine,
        )
    return oracle.Arithmetic(
        weight=lambda w: round_nearest(w, dtype),
        settle=lambda y: round_stochastic(y, dtype, rng),
        matmul=matmul,
        affine=affine,
    )


def floor(logits: np.ndarray, u: float) -> tuple[float, float, float]:
    """The three measures of the logits for one rounding of the greatest logit."""
    one = u * float(np.abs(logits).max())
    return one, one / np.sqrt(12), one**2 / 24  # rounding errors are uniform; KL is half a variance


def measure(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    taps: Mapping[str, np.ndarray],
    logits: np.ndarray,
    seed: int,
    dtypes: Sequence[str] = DTYPES,
) -> dict[str, np.ndarray]:
    """The noise of each dtype around the exact taps and logits, as arrays to be stored.

    ``noise/{dtype}/taps`` [draws, n_taps]: greatest absolute difference at each tap, in tap order;
    ``noise/{dtype}/logits`` [draws, 3]: greatest absolute and root-mean-square difference, and
    greatest KL divergence (nats) of the next-token distribution.
    No draw counts for less than one rounding of the greatest value: what happens to be exact in
    one order of operations (a float64 sum of float32 weights, say) need not be in another.
    """
    names = tap_names(hparams.n_layer)
    greatest = np.array([np.abs(taps[name]).max() for name in names])
    found = {}
    for dtype in dtypes:
        u = UNIT_ROUNDOFF[dtype]
        at_taps, at_logits = np.zeros((DRAWS, len(names))), np.zeros((DRAWS, 3))
        for draw in range(DRAWS):
            rng = np.random.default_rng([seed, draw])
            row = at_taps[draw]

            def tap(name: str, value: np.ndarray, row: np.ndarray = row) -> None:
                row[names.index(name)] = max_abs(value, taps[name])

            drawn = oracle.forward(params, hparams, tokens, tap, arithmetic(dtype, rng))
            at_logits[draw] = max_abs(drawn, logits), rms(drawn, logits), kl_divergence(drawn, logits)
        found[f"noise/{dtype}/taps"] = np.maximum(at_taps, u * greatest)
        found[f"noise/{dtype}/logits"] = np.maximum(at_logits, floor(logits, u))
    return found
