"""What is right for the texts of a trial: float64 logits, and a noise unit for each position.

A unit is the greatest difference at that position over a few evaluations in which every operation errs
at random by up to its rounding bound (reference/rounding.py): what the local check allows in one
rounding unit. Where a token's logits are ill-conditioned, only they get a large unit. By causality a
text's truth holds for its beginnings, so only the longest texts are computed.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.dtypes import UNIT_ROUNDOFF
from gpt2_parity.reference import oracle, rounding
from gpt2_parity.reference.rounding import Roundoff

DRAWS = 3
TOGETHER = 2_000_000  # elements of logits that are drawn in one evaluation
LARGEST = {"float16": 2.0**12}  # values beyond which a dtype may lawfully overflow on the way


class Truth(NamedTuple):
    """The truth of one text."""

    tokens: np.ndarray  # int32 [batch, n]
    logits: np.ndarray  # float64 [batch, n, n_vocab]
    unit: np.ndarray  # float64 [batch, n]
    ranges: Mapping[str, tuple[float, float]]  # least and greatest value that operations saw

    def of(self, tokens: np.ndarray) -> "Truth | None":
        """The truth of another text, if it is the beginning of this one, in the first rows."""
        batch, n = tokens.shape
        if batch > len(self.tokens) or n > self.tokens.shape[1]:
            return None
        if not np.array_equal(self.tokens[:batch, :n], tokens):
            return None
        return Truth(tokens, self.logits[:batch, :n], self.unit[:batch, :n], self.ranges)


def truths(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    texts: Iterable[np.ndarray],
    dtype: str,
    made: list[Truth] | None = None,
) -> list[Truth]:
    """The truth of each text int32 [batch, n], in their order. made: those known, to which it adds."""
    asked = list(texts)
    made = [] if made is None else made
    found: dict[int, Truth] = {}
    for i in sorted(range(len(asked)), key=lambda i: -asked[i].size):
        known = next((each for t in made if (each := t.of(asked[i])) is not None), None)
        if known is None:
            known = truth(params, hparams, asked[i], dtype)
            made.append(known)
        found[i] = known
    return [found[i] for i in range(len(asked))]


def truth(params: Mapping[str, np.ndarray], hparams: HParams, tokens: np.ndarray, dtype: str) -> Truth:
    """The truth of tokens int32 [batch, n] at a dtype."""
    taps: dict[str, np.ndarray] = {}
    exact = oracle.forward(params, hparams, tokens, taps.__setitem__)
    stray = UNIT_ROUNDOFF[dtype] * np.abs(exact).max(axis=-1)
    n_together = max(1, min(DRAWS, TOGETHER // exact.size))
    erring = Erring(dtype, np.random.default_rng(0))
    for _ in range(math.ceil(DRAWS / n_together)):
        many = np.concatenate([tokens] * n_together)
        drawn = oracle.forward(erring.weights(params), hparams, many, apply=erring.apply)
        gap = np.abs(drawn.reshape(n_together, *exact.shape) - exact).max(axis=-1)
        np.maximum(stray, gap.max(axis=0), out=stray)
    return Truth(tokens, exact, stray, ranges(taps, exact, hparams))


class Erring:
    """Evaluations in which each operation errs at random within its rounding bound at a dtype.

    Half of an error is common to a position and scales its result, as a rounded variance does.
    """

    def __init__(self, dtype: str, rng: np.random.Generator):
        self.dtype, self.rng = dtype, rng
        self.roundoff = Roundoff.of(dtype)

    def weights(self, params: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The weights as the dtype holds them."""
        return rounding.weights_at(params, self.dtype)

    def apply(
        self,
        op: Op,
        inputs: list[np.ndarray],
        params: Mapping[str, np.ndarray],
        hparams: HParams,
        tokens: np.ndarray,
        arithmetic: oracle.Arithmetic,
    ) -> np.ndarray:
        """The result [batch, n, width] of one operation, with its error; as oracle.apply."""
        result = oracle.apply(op, inputs, params, hparams, tokens)
        size = rounding.bound(op, inputs, result, params, hparams, self.roundoff)
        own = self.rng.uniform(-1, 1, result.shape)
        own += self.rng.uniform(-1, 1, (*result.shape[:-1], 1)) * np.sign(result)
        result += size * own
        return result


def ranges(
    taps: Mapping[str, np.ndarray], logits: np.ndarray, hparams: HParams
) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of what operations depend on."""
    layers = range(hparams.n_layer)
    seen = {
        "GELU inputs": [taps[f"h{i}/mlp/c_fc"] for i in layers],
        "residuals": [np.abs(taps[f"h{i}"]) for i in layers],
        "variances": [
            taps[name].var(axis=-1)
            for i in layers
            for name in ("embed" if i == 0 else f"h{i - 1}", f"h{i}/resid_mid")
        ],
        "attention scores": [scores(taps[f"h{i}/attn/c_attn"], hparams.n_head) for i in layers],
        "logits": [logits],
    }
    return {
        name: (min(float(x.min()) for x in some), max(float(x.max()) for x in some))
        for name, some in seen.items()
    }


def scores(qkv: np.ndarray, n_head: int) -> np.ndarray:
    """The scores of the last query, [batch, n_head, n]: enough to see how large scores are."""
    q, k, _ = oracle.split_heads(qkv, n_head)
    return (q[:, :, -1:] @ k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])


def outside(truth: Truth, dtype: str) -> bool:
    """Whether a dtype may lawfully overflow on this text."""
    most = LARGEST.get(dtype, math.inf)
    return any(
        max(-low, high) > most for name, (low, high) in truth.ranges.items() if name != "variances"
    )
