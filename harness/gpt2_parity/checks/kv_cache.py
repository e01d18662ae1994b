"""Decode through the cache agrees with prefill, token by token and in chunks.

A cache may also be continued in two ways, or by single tokens in three, in turns. None of these may
affect the others, nor may other calls in between.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_parity.contract.check import Check, Implied
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import IN_PLACE, CaseShape, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts
from gpt2_parity.reference.records import Record, shape_of

LONG = 64  # in a longer case only some tokens are decoded alone: all of them would take minutes
SEVENTHS = (3, 5, 6)  # of a long case: positions that are no multiples of a kernel's block
FEW = (0, 1, 3, 6, 10, 18)  # cuts from there on: chunks of 1, 2, 3, 4 and 8 tokens
TWICE = "continued_twice"
THREE_WAYS = "continued_in_three_ways"


def splits(case: CaseShape) -> dict[str, list[int]]:
    """The positions at which a case's tokens are cut, by scope; uneven on purpose."""
    if case.n < 2:
        return {}
    single = {"some_alone": alone(case.n)} if case.n > LONG else {"token_by_token": [*range(1, case.n)]}
    return single | {"chunks": chunk_cuts(case.n)}


def alone(n: int) -> list[int]:
    """Cuts of n tokens that leave some alone: at SEVENTHS, and where pages and blocks begin."""
    pages = {2**i + j for i in range(n.bit_length()) for j in (0, 1)}
    few = {n * part // 7 + j for part in SEVENTHS for j in FEW}
    return sorted(cut for cut in pages | few if cut < n)


def branches(case: CaseShape, plan: Plan) -> bool:
    """Whether a cache of this case is continued in several ways."""
    return case.n > 2 and plan.cache != IN_PLACE


def scopes(case: CaseShape, plan: Plan) -> list[str]:
    return [*splits(case), *([TWICE, THREE_WAYS] if branches(case, plan) else [])]


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, scope, "noise_units") for case in plan.cases for scope in scopes(case, plan)]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        for scope, cuts in splits(shape_of(record)).items():
            got = loaded.in_chunks(record.tokens, cuts)
            units = loaded.units(got, loaded.logits(record), record)
            yield Measurement(record.name, scope, "noise_units", units, {"cut_at": cuts[:20]})
        if branches(shape_of(record), plan):
            yield continued_twice(loaded, record)
            yield Measurement(record.name, THREE_WAYS, "noise_units", three_ways(loaded, record))


def continued_twice(loaded: Loaded, record: Record) -> Measurement:
    """The error of two continuations of one cache, in noise units, with other calls in between."""
    n, n_vocab = record.tokens.shape[1], loaded.hparams.n_vocab
    first, middle, last = np.split(record.tokens, [n // 2, n - 1], axis=1)
    other = (middle + 1) % n_vocab
    _, past = loaded.forward(first)
    loaded.forward((first + 1) % n_vocab)  # a buffer that all prefills share now has other keys
    got, present = loaded.forward(middle, past)
    instead, _ = loaded.forward(other, past)
    end, _ = loaded.forward(last, present)
    whole, _ = loaded.forward(np.concatenate([first, other], axis=1))
    one = loaded.units(np.concatenate([got, end], axis=1), loaded.logits(record)[:, n // 2 :], record)
    two = loaded.units(instead, whole[:, n // 2 :], record)
    worst = float(np.maximum(one, two))  # NaN stays NaN
    evidence: Evidence = {}
    if worst > NOISE.most:
        overwritten = loaded.forward(np.concatenate([first, other, last], axis=1))[0]
        appended = loaded.forward(np.concatenate([first, middle, other], axis=1))[0]
        as_if = ((end, overwritten), (instead, appended))  # what a cache written in place would give
        if any(alike(loaded, *each, record) for each in as_if):
            evidence = {"in_place": True}
    return Measurement(record.name, TWICE, "noise_units", worst, evidence)


def alike(loaded: Loaded, got: np.ndarray, whole: np.ndarray, record: Record) -> bool:
    """Whether logits [batch, n, n_vocab] are the last ones of whole, within the noise."""
    n = got.shape[1]
    return whole.shape[1] >= n and loaded.units(got, whole[:, -n:], record) <= NOISE.most


def three_ways(loaded: Loaded, record: Record) -> float:
    """The error, in noise units, of three continuations of one cache by its own token and one more.

    A search continues with single tokens, which may have a code path of their own.
    """
    n, n_vocab = record.tokens.shape[1], loaded.hparams.n_vocab
    first, middle, last = np.split(record.tokens, [n - 2, n - 1], axis=1)
    _, past = loaded.forward(first)
    for other in (1, 2, 3):  # implementations may alternate between buffers for prefill
        loaded.forward((first + other) % n_vocab)
    tokens = [(middle + way) % n_vocab for way in range(3)]
    begun = [loaded.forward(token, past) for token in tokens]
    ended = [loaded.forward(last, present)[0] for _, present in begun]
    units = []
    for token, (logits, _), end in zip(tokens, begun, ended, strict=True):
        whole, _ = loaded.forward(np.concatenate([first, token, last], axis=1))
        got = np.concatenate([logits, end], axis=1)
        units.append(loaded.units(got, whole[:, n - 2 :], record))
    return float(np.max(units))  # NaN stays NaN


CHECK = Check(
    name="kv_cache",
    establishes="decode, token by token and in chunks, agrees with prefill; caches may branch",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="weights",
    blames="cache",
    precedence=60,
    look_at="the KV cache: what is stored, at which position, and what new positions may see of it",
    implied_by=(Implied(("logits",), "as large"),),
)
