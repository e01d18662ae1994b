"""Decoding through the cache gives what prefill gives, token by token and in chunks.

And a cache may be continued in two ways, one after the other, without either knowing of the other.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.golden import Record
from harness.subject import CaseShape, Key, Measurement, Plan, Subject, chunk_cuts, shape_of

LONG = 64  # of a longer case only some tokens are decoded alone: token by token would take minutes
ALONE = (3, 5, 6)  # sevenths of a long case: no multiple of what kernels take at a time
TWICE = "continued_twice"


def splits(case: CaseShape) -> dict[str, list[int]]:
    """Where a case's tokens are cut, by scope; uneven on purpose."""
    if case.n < 2:
        return {}
    alone = [cut for sevenths in ALONE for cut in (case.n * sevenths // 7, case.n * sevenths // 7 + 1)]
    single = {"some_alone": alone} if case.n > LONG else {"token_by_token": list(range(1, case.n))}
    return single | {"chunks": chunk_cuts(case.n)}


def scopes(case: CaseShape) -> list[str]:
    return [*splits(case), *([TWICE] if case.n > 2 else [])]


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, scope, "noise_units") for case in plan.cases for scope in scopes(case)]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        for scope, cuts in splits(shape_of(record)).items():
            parts, past = [], None
            for tokens in np.split(record.tokens, cuts, axis=1):
                logits, past = subject.forward(tokens, past)
                parts.append(logits)
            units = subject.units(np.concatenate(parts, axis=1), subject.logits(record), record)
            yield Measurement(record.name, scope, "noise_units", units, f"cut at {cuts}"[:80])
        if TWICE in scopes(shape_of(record)):
            yield Measurement(record.name, TWICE, "noise_units", continued_twice(subject, record))


def continued_twice(subject: Subject, record: Record) -> float:
    """Noise units of the second half, whose cache was continued otherwise before its last token."""
    n = record.tokens.shape[1]
    first, middle, last = np.split(record.tokens, [n // 2, n - 1], axis=1)
    _, past = subject.forward(first)
    got, present = subject.forward(middle, past)
    subject.forward((middle + 1) % subject.hparams.n_vocab, past)
    end, _ = subject.forward(last, present)
    return subject.units(np.concatenate([got, end], axis=1), subject.logits(record)[:, n // 2 :], record)
