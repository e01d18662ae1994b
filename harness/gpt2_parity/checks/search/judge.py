"""Measure a trial's answers: each operation that was tapped, logits, texts, gradients and refusals."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.checks.search.calls import Played, texts, whole
from gpt2_parity.checks.search.trial import GENERATE, GRADIENTS, Step
from gpt2_parity.checks.search.truth import Truth, outside, truths
from gpt2_parity.contract.limits import NOISE, NONE, Limit, LimitByKind
from gpt2_parity.contract.plan import NO_CACHE
from gpt2_parity.contract.rows import Evidence
from gpt2_parity.implementation import operation
from gpt2_parity.implementation.operation import Examined
from gpt2_parity.reference import gradient, rounding
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.records import Record

UNITS, ROUNDING, WRONG = "noise_units", "rounding_units", "wrong_tokens"
GRADIENT_UNITS = "gradient_noise_units"
PREFILL, DECODE = "prefill", "decode"
PLAIN = {
    UNITS: Limit(
        8.0,
        "A unit is what operations that each err by one rounding unit do to the logits of a position, "
        "from three draws. Honest implementations were at up to 1.4.",
    ),
    GRADIENT_UNITS: Limit(16.0, "Noise units of each gradient, as in the check gradients."),
    WRONG: NONE,
}
LIMITS: dict[str, Limit | LimitByKind] = {ROUNDING: rounding.LIMITS, **PLAIN}


class Shown(NamedTuple):
    """The worst of one kind in a trial."""

    scope: str
    metric: str
    value: float
    step: int  # that showed it
    evidence: Mapping[str, Any] = {}
    scene: Examined | None = None  # of an operation

    @property
    def wrong(self) -> bool:
        """Whether it is over its limit; NaN is."""
        return not self.value <= self.limit

    @property
    def limit(self) -> float:
        """The greatest value that is right."""
        return self.scene.most if self.scene else PLAIN[self.metric].most


class Judged(NamedTuple):
    """What a trial showed."""

    found: list[Shown]
    ranges: Mapping[str, tuple[float, float]] = {}
    outside: bool = False  # whether what the dtype lawfully cannot hold was left out


@np.errstate(all="ignore")  # loading the trial's model may have set NumPy to raise
def judge(played: Played, cache: str, made: list[Truth] | None = None) -> Judged:
    """Everything that a trial's answers show. cache: as Plan.cache; made: as in truths."""
    dtype, loaded = played.loaded.target.dtype, played.loaded
    ways, written = whole(played), texts(played)
    known = truths(loaded.params, loaded.hparams, [*ways.values(), *written.values()], dtype, made)
    if any(outside(each, dtype) for each in known):
        return Judged([], outside=True)
    found = [
        raised for i, answer in enumerate(played.answers) if (raised := error(played, i)) is not None
    ]
    for way, truth in zip(ways, known, strict=False):
        found.append(logits(played, way[-1], truth))
    for i, truth in zip(written, known[len(ways) :], strict=True):
        found.append(text(played, i, truth))
    for i, answer in enumerate(played.answers):
        if answer.gradients:
            found.append(gradients(played, i))
        if answer.accepted:
            found.append(
                Shown(scope_of(played.trial.steps[i]), UNITS, math.inf, i, {"accepted_a_bad_id": True})
            )
    if played.trial.tapped:
        found += operations(played, ways, cache)
    worst: dict[str, Shown] = {}
    for each in sorted(found, key=lambda each: rounding.rank((each.value, None))):
        worst[each.scope] = each
    merged: dict[str, tuple[float, float]] = {}
    for truth in known:
        for name, (low, high) in truth.ranges.items():
            before = merged.get(name, (low, high))
            merged[name] = min(low, before[0]), max(high, before[1])
    return Judged([*worst.values()], merged)


def scope_of(step: Step) -> str:
    """The scope of the answer of a step."""
    if step.kind in (GENERATE, GRADIENTS):
        return step.kind
    return PREFILL if step.past < 0 else DECODE


def error(played: Played, i: int) -> Shown | None:
    """A call that raised although it was valid."""
    if not (text := played.answers[i].raised):
        return None
    step = played.trial.steps[i]
    metric = {GENERATE: WRONG, GRADIENTS: GRADIENT_UNITS}.get(step.kind, UNITS)
    return Shown(scope_of(step), metric, math.inf, i, {"raised": text})


def logits(played: Played, i: int, truth: Truth) -> Shown:
    """The greatest error of a step's logits, in the noise units of their positions."""
    got = played.answers[i].logits
    assert got is not None
    n = got.shape[1]
    gap = np.abs(got - truth.logits[:, -n:]).max(axis=-1) / truth.unit[:, -n:]
    row, position = (int(each) for each in np.unravel_index(np.argmax(gap), gap.shape))
    at = {"row": row, "position": truth.tokens.shape[1] - n + position}
    return Shown(scope_of(played.trial.steps[i]), UNITS, float(gap[row, position]), i, at)


def text(played: Played, i: int, truth: Truth) -> Shown:
    """How many ids of generate are less likely than another, by the truth of the ids before."""
    ids, n = played.answers[i].ids, played.tokens[i].shape[1]
    assert ids is not None
    right = truth.logits[:, n - 1 :]
    valid = (ids >= 0) & (ids < right.shape[-1])
    chosen = np.take_along_axis(right, np.where(valid, ids, 0)[..., None].astype(int), axis=-1)[..., 0]
    tie = 2 * NOISE.most * truth.unit[:, n - 1 :]
    wrong = ~(valid & (chosen >= right.max(axis=-1) - tie))
    evidence: Evidence = {}
    if wrong.any():
        row, at = (int(each) for each in np.argwhere(wrong)[0])
        evidence = {"row": row, "new_token": at, "id": int(ids[row, at])}
        evidence["likeliest"] = int(right[row, at].argmax())
    return Shown(GENERATE, WRONG, float(wrong.sum()), i, evidence)


def gradients(played: Played, i: int) -> Shown:
    """The greatest error of the loss and of a gradient, in noise units; the first wrong one is named."""
    loaded, given = played.loaded, played.answers[i].gradients
    worst, evidence = (0.0, ""), Evidence()
    arguments = loaded.params, loaded.hparams, played.tokens[i], loaded.target.dtype
    for name, want, unit in gradient.measure(*arguments, seed=0):
        units = max_abs(given[name], want) / unit
        if not units <= PLAIN[GRADIENT_UNITS].most and not evidence:
            evidence = {"first_wrong_gradient": name}
        worst = max(worst, (units, name), key=rounding.rank)
    return Shown(GRADIENTS, GRADIENT_UNITS, worst[0], i, evidence | {"worst_gradient": worst[1]})


def operations(
    played: Played, ways: Mapping[tuple[int, ...], np.ndarray], cache: str
) -> Iterator[Shown]:
    """The greatest error of each operation of each layer and text, in rounding units."""
    ends = {way for way in ways if not any(len(o) > len(way) and o[: len(way)] == way for o in ways)}
    for way in ways:
        if way not in ends or (cache == NO_CACHE and len(way) > 1):
            continue
        for scene in scenes(played, way, ways[way]):
            [measured] = operation.examine([scene])
            settled, value, evidence = scene.settled(*measured)
            if "inherited" in evidence:
                continue
            leaf = leaf_of(scene.op.name)
            evidence = evidence | {"operation": scene.op.name}
            yield Shown(leaf, ROUNDING, value, step_at(played, way, evidence), evidence, settled)


def scenes(played: Played, way: tuple[int, ...], tokens: np.ndarray) -> list[Examined]:
    """The operations on a path that are captured with their inputs."""
    answers = [played.answers[i] for i in way]
    names = [name for name in answers[0].taps if all(name in each.taps for each in answers)]
    captured = {name: np.concatenate([each.taps[name] for each in answers], axis=1) for name in names}
    captured["logits"] = np.concatenate(
        [each.logits for each in answers if each.logits is not None], axis=1
    )
    greedy = np.zeros((len(tokens), 0), np.int32)
    record = Record("search", {"tokens": tokens, "greedy": greedy}, played.trial.hparams.n_layer)
    cuts = tuple(np.cumsum([played.tokens[i].shape[1] for i in way])[:-1].tolist())
    judged = operation.judged(names, played.trial.hparams.n_layer)
    return [
        Examined(played.loaded, record, captured, op, metric, cuts)
        for op, metric in judged
        if metric == ROUNDING
    ]


def step_at(played: Played, way: tuple[int, ...], evidence: Evidence) -> int:
    """The step of a path in which an operation's worst element was computed."""
    position = evidence["at"][1] if "at" in evidence else 0
    for i in way:
        position -= played.tokens[i].shape[1]
        if position < 0:
            return i
    return way[-1]


def leaf_of(name: str) -> str:
    """An operation's name in any layer: h*/mlp/gelu."""
    layer, _, leaf = name.partition("/")
    if not layer[1:].isdigit():
        return name
    return f"h*/{leaf}" if leaf else "h*"
