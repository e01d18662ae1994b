"""Diagnosis of a black box: the known mistake with which GPT-2 would give its logits.

If nothing is tapped, no operation can be blamed. Instead, the whole model is evaluated in float64 with
one mistake in every layer, and compared with the logits again. The mistake explains the error if the
difference is within the noise of that evaluation at the declared precision. (The mistake itself may be
noisy: in a table indexed by rounded values, rounding sometimes selects the neighbouring entry.)

A coarser precision of everything cannot be computed again bit by bit, because each kernel rounds in its
own places. But many of its errors come from what all round alike, such as factors and weights. So the
errors of the implementation are correlated with those of an evaluation in that precision.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.mistakes.registry import FEW, MISTAKES, NEAR, Match, Mistake, Scene, mistake, narrow
from gpt2_parity.reference import noise, oracle
from gpt2_parity.reference.distance import difference, log_softmax
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
    "int8_products_by_tensor head_shifted logits_centred log_probabilities transposed",
    "attention": "no_scale scale_without_root scale_by_n_embd no_mask mask_one_too_far "
    "mask_hides_itself mask_after_softmax order_kqv heads_interleaved heads_not_transposed "
    "float16_softmax bfloat16_softmax float16_cache scale_by_layer exp_by_bits",
}
NAMES = frozenset(" ".join(EVERYWHERE.values()).split())
ONLY_AT = {
    "transposed": "attn/c_proj"
}  # where alone a mistake is possible: other weights are not square
VARIANTS = 8  # tried of each mistake
DRAWS = 3  # of the noise
# The search is in float32, without random rounding: a large model has many weights to convert.
SINGLE = oracle.Arithmetic(weight=np.asarray, settle=lambda y: np.asarray(y, np.float32))
FALL = 2.0  # the factor by which the difference must at least fall
# Of the errors with those of the right precision, measured with PyTorch, JAX and NumPy on micro: 0.24 to
# 0.94, and 7.8 to 31 times what chance gives. No other planted fault had both, with errors as large.
CORRELATED, BEYOND_CHANCE = 0.2, 5.0
AS_LARGE = 2.0  # times: the errors may be so much larger or smaller than those of the evaluation
POSITIONS = 64  # of each record that are compared


def factors(dtype: str) -> oracle.Arithmetic:
    """The factors of all products, also in attention, rounded to dtype."""
    cast = narrow(dtype)
    return oracle.Arithmetic(
        matmul=lambda x, w: cast(x) @ cast(w), affine=lambda x, w, b: cast(x) @ cast(w) + b
    )


COARSE = {
    "whole_tf32": ("the factors of all products are rounded to TF32 (or float16)", factors("tf32")),
    "whole_bfloat16_factors": (
        "the factors of all products are rounded to bfloat16",
        factors("bfloat16"),
    ),
    "whole_bfloat16": (
        "everything is computed in bfloat16",
        oracle.Arithmetic(weight=narrow("bfloat16"), settle=narrow("bfloat16")),
    ),
    "whole_float16": (
        "everything is computed in float16",
        oracle.Arithmetic(weight=narrow("float16"), settle=narrow("float16")),
    ),
}
for _name, (_text, _) in COARSE.items():
    mistake(_name, _text)(lambda scene: iter(()))  # of no kind of operation: it is tried here alone


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
        self.leaf = ONLY_AT.get(mistake.name, "")

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
        if op.kind not in self.kinds or not op.name.endswith(self.leaf):
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
            least = np.min if self.mistake.flips else np.median
            moved.append(math.nan if drawn is None else least(by_position(drawn, exact)))
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


def typical(got: np.ndarray, want: np.ndarray) -> float:
    """The median over all positions of the greatest difference of logits [batch, n, n_vocab] there."""
    return float(np.median(by_position(got, want)))


def explain(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """How well the nearest known mistake explains the wrong logits of each record, by record name.

    A mistake has to explain all records.
    """
    found: dict[str, Match] = {}
    for search in (shifted, everywhere, coarser):
        found = search(loaded, records) or found
        if found and all(match.explains for match in found.values()):
            return found
    return {name: match._replace(explains=False) for name, match in found.items()}


def shifted(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """How well a constant for each position explains the logits of each record, if it explains all.

    The constant may be that of log probabilities, or that which leaves a mean of 0.
    """
    found = {}
    names = [shift_of(loaded.logits(each), each.noise(loaded.target.dtype)) for each in records]
    name = names[0] if len(set(names)) == 1 else "logits_shifted"
    for record in records:
        got, want = loaded.logits(record), record.logits
        gap = difference(got, want)
        gap -= np.median(gap, axis=-1, keepdims=True)
        before, after = typical(got, want), typical(want + gap, want)
        units = after / record.noise(loaded.target.dtype)
        explains = after <= before / FALL and units <= NOISE.most
        found[record.name] = Match(name, explains, before, after, "", units)
    return found if all(match.explains for match in found.values()) else {}


def shift_of(logits: np.ndarray, noise: float) -> str:
    """The mistake that shifts logits [batch, n, n_vocab] as these are; noise: one noise unit."""
    with np.errstate(all="ignore"):
        totals = logits[..., 0] - log_softmax(np.asarray(logits, np.float64))[..., 0]
    if np.all(np.abs(totals) <= NOISE.most * noise):
        return "log_probabilities"
    centred = np.abs(logits.mean(axis=-1, dtype=np.float64)) <= NOISE.most * noise
    return "logits_centred" if np.all(centred) else "logits_shifted"


def coarser(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """How well a coarser precision of the whole model explains the logits of all records, if it does."""
    wrong = [errors(loaded.logits(record), record) for record in records]
    best: dict[str, Match] = {}
    most = CORRELATED
    for name, (_, arithmetic) in COARSE.items():
        with np.errstate(all="ignore"):
            made = {r.name: at_all(loaded, r, arithmetic) for r in records}
        correlation, beyond = alike(wrong, [errors(made[r.name], r) for r in records])
        if correlation >= most and beyond >= BEYOND_CHANCE:
            most = correlation
            best = {
                r.name: left(loaded, r, made[r.name])._replace(
                    name=name, correlation=correlation, beyond_chance=beyond
                )
                for r in records
            }
    return best


def at_all(loaded: BlackBox, record: Record, arithmetic: oracle.Arithmetic) -> np.ndarray:
    """Logits [batch, n, n_vocab] of a record's tokens, all computed in an arithmetic."""
    return oracle.forward(loaded.params, loaded.hparams, record.tokens, arithmetic=arithmetic)


def left(loaded: BlackBox, record: Record, logits: np.ndarray) -> Match:
    """A match with the typical difference from the record's logits, and from those of a hypothesis."""
    got = loaded.logits(record)
    return Match("", True, typical(got, record.logits), typical(got, logits))


def errors(logits: np.ndarray, record: Record) -> np.ndarray:
    """Errors of logits [batch, n, n_vocab] at some positions, less their mean: [positions, n_vocab]."""
    gap = difference(logits, record.logits).reshape(-1, logits.shape[-1])
    gap = gap[np.unique(np.linspace(0, len(gap) - 1, min(POSITIONS, len(gap))).astype(int))]
    return gap - gap.mean(axis=-1, keepdims=True)


def alike(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean correlation of errors at each position, and the same as a multiple of what chance gives.

    Both are lists of [positions, n_vocab]. Chance is measured with the positions of one shifted against
    those of the other. (0, 0) if the typical error of one is more than AS_LARGE times that of the other.
    """
    one, other = np.concatenate(got), np.concatenate(expected)
    sizes = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (one, other)]
    ratio = np.median(sizes[0]) / max(float(np.median(sizes[1])), 1e-300)
    n = len(one)
    if n < FEW or not np.isfinite(other).all() or not 1 / AS_LARGE <= ratio <= AS_LARGE:
        return 0.0, 0.0
    cosines = (one / np.maximum(sizes[0], 1e-300)) @ (other / np.maximum(sizes[1], 1e-300)).T
    at = np.arange(n)
    mean, *shifted_by = (float(cosines[at, (at + shift) % n].mean()) for shift in range(n))
    return mean, mean / max(math.sqrt(np.mean(np.square(shifted_by))), 1e-300)


def everywhere(loaded: BlackBox, records: Sequence[Record]) -> dict[str, Match]:
    """How well the nearest mistake, made in every layer, explains the logits of each record.

    The mistake is chosen on the shortest record of more than one token, then tried on every record.
    """
    first = min(records, key=lambda record: (record.tokens.shape[1] == 1, record.tokens.size))
    left = dict(tried(loaded, first))
    least = min(left.values(), default=math.inf)
    # the first registered, if several are as good: specific ones come before general ones
    nearest = next((hypothesis for hypothesis in left if left[hypothesis] <= 1.2 * least), None)
    if nearest is None:
        return {}
    found = {record.name: match(loaded, record, nearest) for record in records}
    if nearest.mistake.flips and any(each.explains for each in found.values()):
        # a value that was rounded the other way moves the scale that all positions share
        near = all(each.after <= each.before / NEAR for each in found.values())
        found = {name: each._replace(explains=each.explains or near) for name, each in found.items()}
    return found


def tried(loaded: BlackBox, record: Record) -> Iterator[tuple[Hypothesis, float]]:
    """Every hypothesis, and what is left under it of the error of the logits; inf for NaN."""
    got = loaded.logits(record)
    for known in (known for known in MISTAKES if known.name in NAMES):
        # a mistake of the linear layers may or may not be in the head too, and in the embedding
        for kinds in (known.kinds[:n] for n in range(len(known.kinds), 0, -1)):
            for variant in range(VARIANTS):
                hypothesis = Hypothesis(loaded, known, kinds, variant)
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
    before = typical(got, record.logits)
    after = nearest.left(got, logits, record.logits)
    if not after <= before / FALL:
        return Match(nearest.mistake.name, False, before, after)
    units = after / nearest.noise(record.tokens, logits, loaded.target.dtype)
    return Match(nearest.mistake.name, units <= NOISE.most, before, after, nearest.leaf, units)
