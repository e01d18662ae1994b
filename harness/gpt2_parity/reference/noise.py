"""The noise floor: how far honest rounding alone moves the answer.

The oracle's own forward pass is evaluated at the declared precision several times. In each draw the
summation order of every matrix product is shuffled and every result is rounded at random (by up to one
unit roundoff; below float32, up or down to a neighbour). The distance of these draws from the float64
truth is the noise. An implementation's distance from the truth is judged in units of it: no tolerance is
chosen.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gpt2_parity.contract.architecture import HParams, tap_names
from gpt2_parity.contract.dtypes import DROPPED_BITS, DTYPES, UNIT_ROUNDOFF, round_stochastic, weight_at
from gpt2_parity.contract.interface import Tap
from gpt2_parity.reference import oracle
from gpt2_parity.reference.distance import kl_divergence, max_abs, rms

DRAWS = 8


def shuffled_matmul(x: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x [..., n, n_in] @ w [..., n_in, n_out], summed in random order."""
    order = rng.permutation(x.shape[-1])
    return np.matmul(x[..., order], w[..., order, :])


def shuffled_affine(x: np.ndarray, w: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x [..., n_in] @ w [n_in, n_out] + b [n_out], the bias being one more term of the shuffled sum."""
    order = rng.permutation(len(w) + 1)
    terms = w.take(order, axis=0, mode="clip")  # one copy of w, which may be large
    terms[order == len(w)] = b
    one = np.ones((*x.shape[:-1], 1), x.dtype)
    return np.matmul(np.concatenate([x, one], axis=-1)[..., order], terms)


class Latest:
    """A conversion of weights that keeps its latest matrix: draws that run side by side share it."""

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


def draws(dtype: str, seed: int) -> list[oracle.Arithmetic]:
    """DRAWS honest evaluations at dtype with different random numbers, to run side by side."""
    weight = Latest(lambda w: weight_at(w, dtype))
    rngs = [np.random.default_rng([seed, draw]) for draw in range(DRAWS)]
    return [arithmetic(dtype, rng)._replace(weight=weight) for rng in rngs]


def floor(greatest: float, u: float) -> tuple[float, float, float]:
    """What the three measures of the logits are if each logit is off by one rounding of the greatest.

    greatest: the largest absolute logit; u: the unit roundoff. Returns the greatest difference, the root
    mean square and the KL divergence (nats).
    """
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
    """The noise of each dtype at every operation, for tokens int32 [batch, n].

    tap(name, value) receives every exact result, float64 [batch, n, width], the logits included. Returns
    ``noise/{dtype}/taps`` [DRAWS, n_taps]: greatest absolute difference at each tap, in tap order;
    ``noise/{dtype}/logits`` [DRAWS, 3]: greatest absolute and root-mean-square difference, and
    greatest KL divergence (nats) of the next-token distribution.
    Draws are compared as they are computed; none is kept. Each counts for at least one rounding of the
    greatest value: what is exact in one order of operations (a float64 sum of float32 weights, say) may
    be inexact in another.
    """
    names = tap_names(hparams.n_layer)
    which = [(dtype, draw) for dtype in dtypes for draw in range(DRAWS)]
    arithmetics = [oracle.EXACT, *(each for dtype in dtypes for each in draws(dtype, seed))]
    measured = {f"noise/{dtype}/taps": np.zeros((DRAWS, len(names))) for dtype in dtypes}
    measured |= {f"noise/{dtype}/logits": np.zeros((DRAWS, 3)) for dtype in dtypes}
    for name, i, value in oracle.stream(params, hparams, tokens, arithmetics):
        if i == 0:
            exact, greatest = value, float(np.abs(value).max())
            tap(name, exact)
            continue
        dtype, draw = which[i - 1]
        u = UNIT_ROUNDOFF[dtype]
        if name == "logits":
            strays = max_abs(value, exact), rms(value, exact), kl_divergence(value, exact)
            measured[f"noise/{dtype}/logits"][draw] = np.maximum(strays, floor(greatest, u))
        else:
            stray = max(max_abs(value, exact), u * greatest)
            measured[f"noise/{dtype}/taps"][draw, names.index(name)] = stray
    return measured
