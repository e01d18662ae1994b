"""Decoding through the cache gives what prefill gives, token by token and in chunks."""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.subject import CaseShape, Key, Measurement, Plan, Subject, chunk_cuts, shape_of

LONG = 64  # a longer case is decoded in chunks only: token by token would take minutes


def splits(case: CaseShape) -> dict[str, list[int]]:
    """Where a case's tokens are cut, by scope; uneven on purpose."""
    if case.n < 2:
        return {}
    single = {} if case.n > LONG else {"token_by_token": list(range(1, case.n))}
    return single | {"chunks": chunk_cuts(case.n)}


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, scope, "noise_units") for case in plan.cases for scope in splits(case)]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        for scope, cuts in splits(shape_of(record)).items():
            parts, past = [], None
            for tokens in np.split(record.tokens, cuts, axis=1):
                logits, past = subject.forward(tokens, past)
                parts.append(logits)
            units = subject.units(np.concatenate(parts, axis=1), subject.logits(record), record)
            yield Measurement(record.name, scope, "noise_units", units, f"cut at {cuts}"[:80])
