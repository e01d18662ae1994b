"""Decoding through the cache gives what prefill gives, token by token and in chunks.

And a cache may be continued in two ways, or by single tokens in three, by turns, without any of them
knowing of the others, or of what else was computed since.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.golden import Record
from harness.subject import CaseShape, Key, Measurement, Plan, Subject, chunk_cuts, shape_of

LONG = 64  # of a longer case only some tokens are decoded alone: token by token would take minutes
SEVENTHS = (3, 5, 6)  # of a long case: no multiple of what kernels take at a time
FEW = (0, 1, 3, 6, 10, 18)  # there chunks of 1, 2, 3, 4 and 8 follow one another
TWICE = "continued_twice"
THREE_WAYS = "continued_in_three_ways"


def splits(case: CaseShape) -> dict[str, list[int]]:
    """Where a case's tokens are cut, by scope; uneven on purpose."""
    if case.n < 2:
        return {}
    single = {"some_alone": alone(case.n)} if case.n > LONG else {"token_by_token": [*range(1, case.n)]}
    return single | {"chunks": chunk_cuts(case.n)}


def alone(n: int) -> list[int]:
    """Where n tokens are cut so that some are alone: there, and where pages and blocks begin."""
    pages = {2**i + j for i in range(n.bit_length()) for j in (0, 1)}
    few = {n * part // 7 + j for part in SEVENTHS for j in FEW}
    return sorted(cut for cut in pages | few if cut < n)


def scopes(case: CaseShape) -> list[str]:
    return [*splits(case), *([TWICE, THREE_WAYS] if case.n > 2 else [])]


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, scope, "noise_units") for case in plan.cases for scope in scopes(case)]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        for scope, cuts in splits(shape_of(record)).items():
            got = subject.in_chunks(record.tokens, cuts)
            units = subject.units(got, subject.logits(record), record)
            yield Measurement(record.name, scope, "noise_units", units, f"cut at {cuts}"[:80])
        if TWICE in scopes(shape_of(record)):
            yield Measurement(record.name, TWICE, "noise_units", continued_twice(subject, record))
            yield Measurement(record.name, THREE_WAYS, "noise_units", three_ways(subject, record))


def continued_twice(subject: Subject, record: Record) -> float:
    """Noise units of both ways in which one cache goes on; other calls come in between."""
    n, n_vocab = record.tokens.shape[1], subject.hparams.n_vocab
    first, middle, last = np.split(record.tokens, [n // 2, n - 1], axis=1)
    other = (middle + 1) % n_vocab
    _, past = subject.forward(first)
    subject.forward((first + 1) % n_vocab)  # a buffer that all prefills share has this one's keys now
    got, present = subject.forward(middle, past)
    instead, _ = subject.forward(other, past)
    end, _ = subject.forward(last, present)
    whole, _ = subject.forward(np.concatenate([first, other], axis=1))
    one = subject.units(np.concatenate([got, end], axis=1), subject.logits(record)[:, n // 2 :], record)
    return float(np.maximum(one, subject.units(instead, whole[:, n // 2 :], record)))  # NaN stays NaN


def three_ways(subject: Subject, record: Record) -> float:
    """Noise units of three continuations of one cache: each by a token of its own, then by one more.

    A single token is what a search continues with, and what may have a path of its own.
    """
    n, n_vocab = record.tokens.shape[1], subject.hparams.n_vocab
    first, middle, last = np.split(record.tokens, [n - 2, n - 1], axis=1)
    _, past = subject.forward(first)
    for other in (1, 2, 3):  # prefills that may have buffers by turns
        subject.forward((first + other) % n_vocab)
    tokens = [(middle + way) % n_vocab for way in range(3)]
    begun = [subject.forward(token, past) for token in tokens]
    ended = [subject.forward(last, present)[0] for _, present in begun]
    units = []
    for token, (logits, _), end in zip(tokens, begun, ended, strict=True):
        whole, _ = subject.forward(np.concatenate([first, token, last], axis=1))
        got = np.concatenate([logits, end], axis=1)
        units.append(subject.units(got, whole[:, n - 2 :], record))
    return float(np.max(units))  # NaN stays NaN
