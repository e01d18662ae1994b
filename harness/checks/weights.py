"""Every row of both embeddings arrived: all n_vocab tokens and all n_ctx positions are looked up.

The other weights need no check of their own: every one of their elements takes part in each product
that local.py recomputes, and so does every element of wte in the head. But an embedding row
is seen only where its token or position occurs, so here they all occur.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from harness import bounds, oracle
from harness.contract import graph
from harness.subject import Key, Measurement, Plan, Subject, Wrong

CASE = "all_tokens"
ROWS = 4  # sequences of n_ctx tokens looked up at a time


class Enough(Exception):
    """Raised out of a tap: what comes after the embedding is not needed."""


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, "embed", "rounding_units")] if "embed" in plan.taps else []


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    if "embed" not in plan.taps:
        return
    hparams = subject.hparams
    n_rows = -(-hparams.n_vocab // hparams.n_ctx)
    ids = np.arange(n_rows * hparams.n_ctx, dtype=np.int32) % hparams.n_vocab
    worst = dict.fromkeys(bounds.ways(subject.target.dtype), (-1.0, ""))
    for tokens in np.split(ids.reshape(n_rows, -1), range(ROWS, n_rows, ROWS)):
        got = embed(subject, tokens)
        for held in worst:
            worst[held] = max(worst[held], error(subject, tokens, got, held), key=bounds.rank)
    # in one way throughout: weights kept wider than declared are no error
    yield Measurement(CASE, "embed", "rounding_units", *min(worst.values(), key=bounds.rank))


def error(subject: Subject, tokens: np.ndarray, got: np.ndarray, held: str) -> tuple[float, str]:
    """The greatest error of an embedding in rounding units, and where it is, for weights held so."""
    hparams, dtype = subject.hparams, subject.target.dtype
    op, params = graph(hparams.n_layer)[0], bounds.weights_at(subject.params, dtype, held)
    exact = oracle.apply(op, [], params, hparams, tokens)
    size = bounds.bound(op, [], exact, params, hparams, bounds.Roundoff.of(dtype))
    units = bounds.units(got, exact, size)
    place = np.unravel_index(np.argmax(units), units.shape)
    return float(units[place]), f"token {tokens[place[:2]]} at position {place[1]}, channel {place[2]}"


def embed(subject: Subject, tokens: np.ndarray) -> np.ndarray:
    """The embed tap alone, float64 [batch, n, n_embd]."""
    found: list[np.ndarray] = []

    def tap(name: str, value: Any) -> None:
        if name == "embed" and not found:  # only once, for a hook may outlive the call
            found.append(np.asarray(subject.host(name, value, tokens.shape), np.float64))
            raise Enough

    try:
        subject.returned(tokens, None, tap)
    except Enough:
        pass
    except Exception:  # a framework may wrap what a callback raises
        if not found:
            raise
    if not found:
        raise Wrong("embed is promised, but forward did not tap it")
    return found[0]
