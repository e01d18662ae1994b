"""Diagnosis of a black box: the known mistake with which GPT-2 would give its logits.

If nothing is tapped, no operation can be blamed. Instead, the whole model is evaluated in float64 with
one mistake in every layer, and compared with the logits again. The mistake explains the error if the
difference is within the noise of that evaluation at the declared precision. (The mistake itself may be
noisy: in a table indexed by rounded values, rounding sometimes selects the neighbouring entry.)
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

# Mistakes that an implementation makes in every layer, and whose result follows from an operation's
# input and weights alone: without a captured result, other mistakes cannot be computed.
EVERYWHERE = {
    "gelu": "erf_gelu sigmoid_gelu relu silu gelu_skipped gelu_without_half gelu_cubic_missing "
    "gelu_cubic_0.44715 gelu_cubic_0.0447 gelu_root_0.8 gelu_root_0.7979 gelu_float16_table "
    "bias_after_gelu gelu_coarse_tanh",
    "layer norm": "epsilon_1e-06 epsilon_1e-12 epsilon_1e-08 epsilon_0.001 epsilon_0.0001 epsilon_0 "
    "epsilon_outside_root variance_ddof_1 rms_norm norm_bare norm_without_gain norm_without_bias",
    "embedding": "no_positions positions_from_1 embedding_scaled positions_all_0 tokens_shifted",
    "products": "no_bias tf32_inputs bfloat16_inputs float16_inputs bfloat16_weights float16_weights "
    "int8_weights int4_weights int8_inputs int8_products int8_inputs_by_tensor "
    "int8_products_by_tensor head_shifted logits_centred log_probabilities",
    "attention": "no_scale scale_without_root scale_by_n_embd no_mask mask_one_too_far "
    "mask_hides_itself mask_after_softmax order_kqv heads_interleaved heads_not_transposed "
    "float16_softmax bfloat16_softmax float16_cache scale_by_layer exp_by_bits",
}
NAMES = frozenset(" ".join(EVERYWHERE.values()).split())
VARIANTS = 8  # tried of each mistake
DRAWS = 3  # of the noise
# The search is in float32, without random rounding: a large model has many weights to convert.
SINGLE = oracle.Arithmetic(weight=np.asarray, settle=lambda y: np.asarray(y, np.float32))
FALL = 2.0  # the factor by which the difference must at least fall


class BlackBox(Protocol):
    """The part of implementation/loaded.py that is needed here."""

    hparams: HParams
    target: Target

    @property
    def params(self) -> Mapping[str, np.ndarray]:
        """The weights by checkpoint name."""

    def logits(self, record: Record) -> np.ndarray:
        """Its logits [batch, n, n_vocab] for the tokens of a record."""


class NoVariant(Exception):
    """A mistake has fewer variants. (StopIteration cannot be used: it may not leave a generator.)"""


class Hypothesis:
    """GPT-2 with one mistake in every operation of some kinds."""

    def __init__(self, loaded: BlackBox, mistake: Mistake, kinds: tuple[str, ...], variant: int):
        self.params, self.hparams = loaded.params, loaded.hparams
        self.mistake, self.kinds, self.variant = mistake, kinds, variant

    def logits(
        self, tokens: np.ndarray, arithmetic: oracle.Arithmetic = oracle.EXACT
    ) -> np.ndarray | None:
        """Logits [batch, n, n_vocab] for tokens int32 [batch, n]; None if there is no such variant.

        In float64, or as arithmetic rounds.
        """
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
        """The result [batch, n, width] of one operation, with the mistake if it is of one of the kinds.

        Raises NoVariant if the mistake has fewer variants.
        """
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
        """How far rounding at dtype moves the logits, the greatest of the draws, in the logits' unit.

        exact: float64 logits [batch, n, n_vocab]. The result is NaN if a draw has no such variant.
        """
        moved = []
        for draw in range(DRAWS):
            drawn = self.logits(tokens, noise.arithmetic(dtype, np.random.default_rng([0, draw])))
            typical = np.min if self.mistake.flips else np.median
            moved.append(math.nan if drawn is None else typical(by_position(drawn, exact)))
        return float(np.max(moved))

    def left(self, got: np.ndarray, logits: np.ndarray, right: np.ndarray) -> float:
        """What is left of an error if logits are taken for right: the median over all positions.

        If a mistake rounds, a value half way between two neighbours may go either way, and all later
        positions read it. Then the position counts that agrees best, of those where the error shows.
        All [batch, n, n_vocab].
        """
        errors = by_position(got, logits)
        if not self.mistake.flips:
            return float(np.median(errors))
        before = by_position(got, right)
        return float(np.min(errors[before >= np.median(before)], initial=math.inf))


def by_position(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The greatest difference at each position [batch, n] of logits [batch, n, n_vocab]."""
    return np.asarray(np.max(np.abs(difference(got, want)), axis=-1))


def explain(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """How well the nearest known mistake explains the wrong logits of each record, by record name.

    The mistake is chosen on the shortest record of more than one token, then tried on every record.
    """
    first = min(records, key=lambda record: (record.tokens.shape[1] == 1, record.tokens.size))
    left = dict(tried(loaded, first))
    least = min(left.values(), default=math.inf)
    # the first registered, if several are as good: specific ones come before general ones
    nearest = next((hypothesis for hypothesis in left if left[hypothesis] <= 1.2 * least), None)
    if nearest is None:
        return {}
    return {record.name: match(loaded, record, nearest) for record in records}


def tried(loaded: BlackBox, record: Record) -> Iterator[tuple[Hypothesis, float]]:
    """Every hypothesis, and what is left under it of the error of the logits; inf for NaN."""
    got = loaded.logits(record)
    for mistake in (mistake for mistake in MISTAKES if mistake.name in NAMES):
        # a mistake of the linear layers may or may not be in the head too, and in the embedding
        for kinds in (mistake.kinds[:n] for n in range(len(mistake.kinds), 0, -1)):
            for variant in range(VARIANTS):
                hypothesis = Hypothesis(loaded, mistake, kinds, variant)
                logits = hypothesis.logits(record.tokens, SINGLE)
                if logits is None:
                    break
                left = hypothesis.left(got, logits, record.logits)
                yield hypothesis, left if math.isfinite(left) else math.inf


def match(loaded: BlackBox, record: Record, nearest: Hypothesis) -> Match:
    """How well the hypothesis explains the logits of one record."""
    got, logits = loaded.logits(record), nearest.logits(record.tokens)
    if logits is None:  # it applied to another record, so this should not happen
        return Match("", False, math.nan, math.nan)
    before = float(np.median(by_position(got, record.logits)))
    after = nearest.left(got, logits, record.logits)
    if not after <= before / FALL:
        return Match(nearest.mistake.name, False, before, after)
    units = after / nearest.noise(record.tokens, logits, loaded.target.dtype)
    return Match(nearest.mistake.name, units <= NOISE.most, before, after, units)
