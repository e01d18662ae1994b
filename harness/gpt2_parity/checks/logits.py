"""Logits of every position agree with the float64 truth.

Four measures: the greatest difference, the root mean square and the KL divergence of the next-token
distribution, each in its own noise units, and the five likeliest tokens, where an exchange counts only
if the two logits differ by more than honest rounding can explain.
"""

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE, NONE, Limit, near_tie
from gpt2_parity.contract.plan import QUANTIZED, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.mistakes import whole_model
from gpt2_parity.reference import distance, parallel
from gpt2_parity.reference.records import Record

TOP = 5
LIMITS = {
    "noise_units": NOISE,
    "rms_noise_units": Limit(
        6.0,
        "The root mean square averages over all logits, so it varies less from draw to draw than the "
        "greatest difference, and its limit can be tighter.",
    ),
    "kl_noise_units": Limit(
        64.0, "KL grows with the square of the difference: 8 noise units of logits are 64 of KL."
    ),
    "top5_wrong": NONE,
}


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, "logits", metric) for case in plan.cases for metric in LIMITS]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    unexplained: dict[str, list[Measurement]] = {}  # by case, until they are diagnosed
    for record in loaded.records:
        got, want = loaded.logits(record), record.logits
        greatest, rms, kl = record.logits_noise(loaded.target.dtype)
        divergence, difference, strays, wrong = views(got, want, near_tie(greatest))
        values = (difference / greatest, strays / rms, divergence / kl, wrong)
        evidence: Evidence = {"greatest_difference": difference}
        if not plan.taps and wider(got, loaded.target.dtype):
            evidence |= {"measured": "float64", "declared": loaded.target.dtype, "wider": True}
        measured = [
            Measurement(record.name, "logits", metric, value, evidence)
            for metric, value in zip(LIMITS, values, strict=True)
        ]
        if record.arrays["greedy"].size:  # a case that is generated from: its text is shown
            by_token = errors_by_token(loaded, record, got[0], greatest)
            more = {**measured[0].evidence, "by_token": by_token}
            measured[0] = measured[0]._replace(evidence=more)
        diagnosable = not plan.taps and np.isfinite(got).all() and not other_weights(loaded, plan)
        if diagnosable and any(map(beyond, measured)):
            unexplained[record.name] = measured
        else:
            yield from measured
    if unexplained:
        records = [record for record in loaded.records if record.name in unexplained]
        matches = whole_model.explain(loaded, records)
        for each in (each for measured in unexplained.values() for each in measured):
            yield matches[each.case].on(each) if beyond(each) and each.case in matches else each


def wider(got: np.ndarray, declared: str) -> bool:
    """Whether logits [...] have digits of float64, although the declared dtype is narrower."""
    return (
        declared != "float64"
        and got.dtype == np.float64
        and not np.array_equal(got.astype(np.float32), got)
    )


def other_weights(loaded: Loaded, plan: Plan) -> bool:
    """Whether its own weights explain why its logits are not the checkpoint's."""
    return loaded.params is not loaded.checkpoint and plan.weights != QUANTIZED


def errors_by_token(loaded: Loaded, record: Record, got: np.ndarray, unit: float) -> Evidence:
    """The error and the true margin at each position of a record's first row, as evidence.

    got: logits [n, n_vocab]; unit: one noise unit of the logits. The error is the greatest difference at
    the position, the margin that of the two likeliest tokens in the truth; both in noise units.
    """
    want = record.logits[0]
    first_two = np.partition(want, -2, axis=-1)[:, -2:]  # [n, 2]
    return {
        "tokens": [loaded.text([int(i)]) for i in record.tokens[0]],
        "errors": distance.rounded(np.abs(got - want).max(axis=-1) / unit),
        "margins": distance.rounded((first_two[:, 1] - first_two[:, 0]) / unit),
    }


def views(got: np.ndarray, want: np.ndarray, tie: float) -> list[float]:
    """KL divergence (nats), greatest difference, root mean square, and number of wrong top tokens.

    got, want: logits [batch, n, n_vocab].
    """
    four: list[Callable[[np.ndarray, np.ndarray], float]] = [  # the slowest first
        distance.kl_divergence,
        distance.max_abs,
        distance.rms,
        functools.partial(top_wrong, tie=tie),
    ]
    return parallel.each(lambda view: view(got, want), four)


def beyond(measurement: Measurement) -> bool:
    """Whether a measurement needs a diagnosis. verdict/judge.py decides whether it fails."""
    return not measurement.value <= LIMITS[measurement.metric].most


def top_wrong(got: np.ndarray, want: np.ndarray, tie: float) -> float:
    """The number of tokens in got's top five whose logit in want is more than tie below want's fifth.

    got, want: logits [batch, n, n_vocab]. NaN if got is not finite.
    """
    if not np.isfinite(got).all():
        return float("nan")
    wrong = 0
    for g, w in zip(got.reshape(-1, got.shape[-1]), want.reshape(-1, want.shape[-1]), strict=True):
        chosen, fifth = np.argpartition(g, -TOP)[-TOP:], np.partition(w, -TOP)[-TOP]
        wrong += int((w[chosen] < fifth - tie).sum())
    return float(wrong)


CHECK = Check(
    name="logits",
    establishes="the logits of every position agree with the float64 truth: maximum, RMS, KL, top 5",
    expected=expected,
    measure=measure,
    limits=LIMITS,
    blames="logits",
    precedence=90,
    look_at="the forward pass; if it calls tap, the verdict can name the operation that is wrong",
)
