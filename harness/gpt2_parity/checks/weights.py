"""Every row of both embeddings arrived: all n_vocab tokens and all n_ctx positions are looked up.

The other weights need no check of their own: every one of their elements takes part in each product
that local.py recomputes, and so does every element of wte in the head. But an embedding row
is seen only where its token or position occurs, so here they all occur.

What does not tap embed is held against the oracle's logits instead, where the model is small enough.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams, graph
from gpt2_parity.contract.check import Check, Implied, OwnBlame
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference import oracle, rounding
from gpt2_parity.reference.records import Record

CASE = "all_tokens"
ROWS = 4  # sequences of n_ctx tokens looked up at a time


class Enough(Exception):
    """Raised out of a tap: what comes after the embedding is not needed."""


def expected(plan: Plan) -> Iterable[Key]:
    if "embed" in plan.taps:
        return [(CASE, "embed", "rounding_units")]
    return [(CASE, "embed", "noise_units")] if affordable(plan) else []


def affordable(plan: Plan) -> bool:
    """Whether every token can go through the whole model, at every position whose noise is known."""
    whole = any(case.n == plan.hparams.n_ctx for case in plan.cases)
    return whole and plan.affords(plan.hparams.n_vocab)


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    tokens = all_tokens(loaded.hparams)
    if "embed" in plan.taps:
        yield by_tap(loaded, tokens)
    elif affordable(plan):
        yield by_logits(loaded, tokens)


def all_tokens(hparams: HParams) -> np.ndarray:
    """Every token and every position at least once: [n_rows, n_ctx]."""
    n_rows = -(-hparams.n_vocab // hparams.n_ctx)
    ids = np.arange(n_rows * hparams.n_ctx, dtype=np.int32) % hparams.n_vocab
    return ids.reshape(n_rows, -1)


def by_tap(loaded: Loaded, rows: np.ndarray) -> Measurement:
    """The greatest error of an embedding in rounding units."""
    worst: dict[str, tuple[float, Evidence]] = dict.fromkeys(
        rounding.ways(loaded.target.dtype), (-1.0, {})
    )
    for tokens in np.split(rows, range(ROWS, len(rows), ROWS)):
        got = embed(loaded, tokens)
        for held in worst:
            worst[held] = max(worst[held], error(loaded, tokens, got, held), key=rounding.rank)
    # in one way throughout: weights kept wider than declared are no error
    return Measurement(CASE, "embed", "rounding_units", *min(worst.values(), key=rounding.rank))


def by_logits(loaded: Loaded, rows: np.ndarray) -> Measurement:
    """The greatest error of logits in noise units, and the token at which they first go wrong."""
    record = next(each for each in loaded.records if each.tokens.shape[1] == rows.shape[1])
    worst = max((logits_error(loaded, tokens, record) for tokens in rows[:, None]), key=rounding.rank)
    return Measurement(CASE, "embed", "noise_units", *worst)


def logits_error(loaded: Loaded, tokens: np.ndarray, record: Record) -> tuple[float, Evidence]:
    """Of tokens [1, n]. What comes after a wrong one sees it, so the first one is named."""
    got = loaded.forward(tokens)[0]
    want = oracle.forward(loaded.params, loaded.hparams, tokens)
    units = np.abs(got - want).max(-1)[0] / record.noise(loaded.target.dtype)  # [n]
    wrong = np.flatnonzero(~(units <= NOISE.most))
    place = wrong[0] if wrong.size else np.argmax(units)
    return float(units.max()), {"token": int(tokens[0, place]), "position": int(place)}


def error(loaded: Loaded, tokens: np.ndarray, got: np.ndarray, held: str) -> tuple[float, Evidence]:
    """The greatest error of an embedding in rounding units, and where it is, for weights held so."""
    hparams, dtype = loaded.hparams, loaded.target.dtype
    op, params = graph(hparams.n_layer)[0], rounding.weights_at(loaded.params, dtype, held)
    exact = oracle.apply(op, [], params, hparams, tokens)
    size = rounding.bound(op, [], exact, params, hparams, rounding.Roundoff.of(dtype))
    units = rounding.units(got, exact, size)
    row, position, channel = (int(i) for i in np.unravel_index(np.argmax(units), units.shape))
    where = {"token": int(tokens[row, position]), "position": position, "channel": channel}
    return float(units[row, position, channel]), where


def embed(loaded: Loaded, tokens: np.ndarray) -> np.ndarray:
    """The embed tap alone, float64 [batch, n, n_embd]."""
    found: list[np.ndarray] = []

    def tap(name: str, value: Any) -> None:
        if name == "embed" and not found:  # only once, for a hook may outlive the call
            found.append(np.asarray(loaded.host(name, value, tokens.shape), np.float64))
            raise Enough

    try:
        loaded.returned(tokens, None, tap)
    except Enough:
        pass
    except Exception:  # a framework may wrap what a callback raises
        if not found:
            raise
    if not found:
        raise ContractBroken("embed is promised, but forward did not tap it")
    return found[0]


def unseen(plan: Plan) -> list[str]:
    """Without the tap, only of a model as small as micro is every row looked up."""
    return [] if "embed" in plan.taps or affordable(plan) else ["embed"]


CHECK = Check(
    name="weights",
    establishes="every row of both embeddings arrived: all tokens, all positions",
    expected=expected,
    measure=measure,
    limits={"rounding_units": rounding.LIMITS, "noise_units": NOISE},
    after="precision",
    blames="embed",
    precedence=30,
    look_at="how both embeddings are loaded and looked up: every row of wte and wpe in its place",
    own_blame={"rounding_units": OwnBlame("embed", needs_value=False)},
    # seen in logits alone, which are wrong on the usual tokens as well
    implied_by=(Implied(("logits",), metric="noise_units"),),
    unseen=unseen,
)
