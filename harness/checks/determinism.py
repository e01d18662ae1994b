"""The same tokens give the same bits again, and a result is not overwritten by later calls."""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.numerics import differing
from harness.subject import Key, Measurement, Plan, Subject

REPEATS = 3
OTHERS = 3  # calls that a result outlives: some keep two or three buffers, and use them by turns


def expected(plan: Plan) -> Iterable[Key]:
    scopes = ("repeated", "kept")
    return [(case.name, scope, "differing_share") for case in plan.cases for scope in scopes]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        first = subject.logits(record)
        held, _ = subject.returned(record.tokens, None, None)  # the framework's own array
        before = subject.host("logits", held, record.tokens.shape)
        for other in range(1, OTHERS + 1):
            subject.forward((record.tokens + other) % subject.hparams.n_vocab)
        after = subject.host("logits", held, record.tokens.shape)
        again = [before, *(subject.forward(record.tokens)[0] for _ in range(REPEATS - 2))]
        share = float(np.max([differing(logits, first) for logits in again]))
        yield Measurement(record.name, "repeated", "differing_share", share)
        yield Measurement(record.name, "kept", "differing_share", differing(after, before))
