"""A black box is wrong: with which known mistake would GPT-2 give its logits?

Where nothing is tapped, no operation can be blamed. What is left is to evaluate the whole model in
float64 with one mistake, made in every layer, and to compare again. The mistake explains the error if
the logits agree with that evaluation as an honest implementation's agree with the truth: within what
rounding at the declared precision does to it. (A table indexed by rounded values, say, is itself noisy:
rounding now and then sends a value to the neighbouring entry.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.mistakes.registry import MISTAKES, Match, Mistake, Scene
from gpt2_parity.reference import noise, oracle
from gpt2_parity.reference.distance import difference
from gpt2_parity.reference.records import Record

# Mistakes that, once made, are made everywhere, and that follow from an operation's input and weights
# alone: what could only be recognised from a captured result is of no use here.
EVERYWHERE = {
    "gelu": "erf_gelu sigmoid_gelu relu silu gelu_skipped gelu_without_half gelu_cubic_missing "
    "gelu_cubic_0.44715 gelu_cubic_0.0447 gelu_root_0.8 gelu_root_0.7979 gelu_float16_table",
    "layer norm": "epsilon_1e-06 epsilon_1e-12 epsilon_1e-08 epsilon_0.001 epsilon_0.0001 epsilon_0 "
    "epsilon_outside_root variance_ddof_1 rms_norm",
    "embedding": "no_positions positions_from_1 embedding_scaled positions_all_0 tokens_shifted",
    "products": "no_bias tf32_inputs bfloat16_inputs float16_inputs bfloat16_weights float16_weights "
    "int8_weights head_shifted",
    "attention": "no_scale scale_without_root scale_by_n_embd no_mask mask_one_too_far "
    "mask_hides_itself mask_after_softmax order_kqv heads_interleaved heads_not_transposed "
    "float16_softmax bfloat16_softmax float16_cache",
}
NAMES = frozenset(" ".join(EVERYWHERE.values()).split())
VARIANTS = 3  # of one mistake that are tried
DRAWS = 3
# Sorting out is done in float32, without random rounding: a large model has many weights to convert
SINGLE = oracle.Arithmetic(weight=np.asarray, settle=lambda y: np.asarray(y, np.float32))
FALL = 2.0  # at least so many times smaller must the difference become


class BlackBox(Protocol):
    """As much of an implementation (implementation/loaded.py) as is needed here."""

    params: Mapping[str, np.ndarray]
    hparams: HParams
    target: Target

    def logits(self, record: Record) -> np.ndarray:
        """Its logits [batch, n, n_vocab] of a record's tokens."""


class NoVariant(Exception):
    """A mistake cannot be made in as many ways. (Not StopIteration: it may not leave a generator.)"""


class Hypothesis:
    """GPT-2 with one mistake in every operation of some kinds."""

    def __init__(self, loaded: BlackBox, mistake: Mistake, kinds: tuple[str, ...], variant: int):
        self.params, self.hparams = loaded.params, loaded.hparams
        self.mistake, self.kinds, self.variant = mistake, kinds, variant

    def logits(
        self, tokens: np.ndarray, arithmetic: oracle.Arithmetic = oracle.EXACT
    ) -> np.ndarray | None:
        """[batch, n, n_vocab], in float64 or as arithmetic has it; None if there is no such variant."""
        with np.errstate(all="ignore"):
            try:
                return oracle.forward(
                    self.params, self.hparams, tokens, arithmetic=arithmetic, apply=self.apply
                )
            except NoVariant:
                return None

    def apply(
        self,
        op: Op,
        inputs: list[np.ndarray],
        params: Mapping[str, np.ndarray],
        hparams: HParams,
        tokens: np.ndarray,
        arithmetic: oracle.Arithmetic,
    ) -> np.ndarray:
        """One operation, with the mistake if it can be made here."""
        if op.kind not in self.kinds:
            return oracle.apply(op, inputs, params, hparams, tokens, arithmetic)
        inputs = [np.asarray(x, np.float64) for x in inputs]
        exact = oracle.apply(op, inputs, params, hparams, tokens)
        scene = Scene(op, inputs, exact, exact, np.ones_like(exact), {}, params, hparams, tokens)
        altered = next(islice(self.mistake.alter(scene), self.variant, None), None)
        if altered is None:
            raise NoVariant
        return arithmetic.settle(altered)

    def noise(self, tokens: np.ndarray, exact: np.ndarray, dtype: str) -> float:
        """How far rounding at dtype moves these logits: the greatest of the draws."""
        moved = []
        for draw in range(DRAWS):
            drawn = self.logits(tokens, noise.arithmetic(dtype, np.random.default_rng([0, draw])))
            moved.append(math.nan if drawn is None else typical(drawn, exact))
        return float(np.max(moved))


def typical(got: np.ndarray, want: np.ndarray) -> float:
    """The greatest difference of logits at a position, of the middle one of all positions.

    Where a mistake rounds, a value near the middle between two neighbours may go either way, and what
    comes of it at one position must not speak for all.
    """
    return float(np.median(np.max(np.abs(difference(got, want)), axis=-1)))


def explain(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """The known mistake that comes nearest to the wrong logits of these records, by the record's name.

    The mistake is found on the shortest record of more than one token, and then has to hold on each.
    """
    first = min(records, key=lambda record: (record.tokens.shape[1] == 1, record.tokens.size))
    left = dict(tried(loaded, first))
    least = min(left.values(), default=math.inf)
    # the first on the shelf, where several are as good: particular ones stand before general ones
    nearest = next((found for found in left if left[found] <= 1.2 * least), None)
    if nearest is None:
        return {}
    return {record.name: match(loaded, record, nearest) for record in records}


def tried(loaded: BlackBox, record: Record) -> Iterator[tuple[Hypothesis, float]]:
    """Every hypothesis, and the difference of the logits that is left under it."""
    got = loaded.logits(record)
    for mistake in (mistake for mistake in MISTAKES if mistake.name in NAMES):
        # the head may be spared what befalls the linear layers
        for kinds in dict.fromkeys([mistake.kinds, mistake.kinds[:1]]):
            for variant in range(VARIANTS):
                hypothesis = Hypothesis(loaded, mistake, kinds, variant)
                logits = hypothesis.logits(record.tokens, SINGLE)
                if logits is None:
                    break
                left = typical(got, logits)
                yield hypothesis, left if math.isfinite(left) else math.inf


def match(loaded: BlackBox, record: Record, nearest: Hypothesis) -> Match:
    """How well the hypothesis explains the logits of one record."""
    got, logits = loaded.logits(record), nearest.logits(record.tokens)
    if logits is None:  # it applied to another record, so this cannot be; but nothing is assumed
        return Match("", False, math.nan, math.nan)
    before, after = typical(got, record.logits), typical(got, logits)
    if not after <= before / FALL:
        return Match(nearest.mistake.name, False, before, after)
    units = after / nearest.noise(record.tokens, logits, loaded.target.dtype)
    return Match(nearest.mistake.name, units <= NOISE.most, before, after, units)
