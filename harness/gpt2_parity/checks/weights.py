"""Every row of both embeddings is right: all n_vocab tokens and all n_ctx positions are looked up.

The other weights need no check of their own: each of their elements takes part in every product that
checks/local.py recomputes, as does each element of wte in the head. But an embedding row is used only if
its token or position occurs, so here they all occur.

If embed is not tapped and the model is small enough, the logits are compared with the oracle's instead.
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
ROWS = 4  # rows of n_ctx tokens looked up at a time


class Enough(Exception):
    """Raised by tap() to stop the pass early: only the embedding is needed."""


def expected(plan: Plan) -> Iterable[Key]:
    if "embed" in plan.taps:
        return [(CASE, "embed", "rounding_units")]
    return [(CASE, "embed", "noise_units")] if affordable(plan) else []


def affordable(plan: Plan) -> bool:
    """Whether the model is small enough to run all tokens, and a record has the noise at n_ctx."""
    whole = any(case.n == plan.hparams.n_ctx for case in plan.cases)
    return whole and plan.affords(plan.hparams.n_vocab)


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    tokens = all_tokens(loaded.hparams)
    if "embed" in plan.taps:
        yield by_tap(loaded, tokens)
    elif affordable(plan):
        yield by_logits(loaded, tokens)


def all_tokens(hparams: HParams) -> np.ndarray:
    """Every token and every position at least once: int32 [n_rows, n_ctx]."""
    n_rows = -(-hparams.n_vocab // hparams.n_ctx)
    ids = np.arange(n_rows * hparams.n_ctx, dtype=np.int32) % hparams.n_vocab
    return ids.reshape(n_rows, -1)


def by_tap(loaded: Loaded, rows: np.ndarray) -> Measurement:
    """The greatest error of the embed tap over all rows [n_rows, n_ctx], in rounding units."""
    worst: dict[str, tuple[float, Evidence]] = dict.fromkeys(
        rounding.ways(loaded.target.dtype), (-1.0, {})
    )
    for tokens in np.split(rows, range(ROWS, len(rows), ROWS)):
        got = embed(loaded, tokens)
        for held in worst:
            worst[held] = max(worst[held], error(loaded, tokens, got, held), key=rounding.rank)
    # one way of rounding weights for all rows; wider than declared is no error
    return Measurement(CASE, "embed", "rounding_units", *min(worst.values(), key=rounding.rank))


def by_logits(loaded: Loaded, rows: np.ndarray) -> Measurement:
    """The greatest error of the logits over all rows [n_rows, n_ctx], in noise units."""
    record = next(each for each in loaded.records if each.tokens.shape[1] == rows.shape[1])
    worst = max((logits_error(loaded, tokens, record) for tokens in rows[:, None]), key=rounding.rank)
    return Measurement(CASE, "embed", "noise_units", *worst)


def logits_error(loaded: Loaded, tokens: np.ndarray, record: Record) -> tuple[float, Evidence]:
    """The greatest error of the logits of tokens int32 [1, n] in noise units, and where it starts.

    A wrong token affects all positions after it, so the evidence names the first one beyond the limit.
    """
    got = loaded.forward(tokens)[0]
    want = oracle.forward(loaded.params, loaded.hparams, tokens)
    units = np.abs(got - want).max(-1)[0] / record.noise(loaded.target.dtype)  # [n]
    wrong = np.flatnonzero(~(units <= NOISE.most))
    position = int(wrong[0] if wrong.size else np.argmax(units))
    return float(units.max()), {"token": int(tokens[0, position]), "position": position}


def error(loaded: Loaded, tokens: np.ndarray, got: np.ndarray, held: str) -> tuple[float, Evidence]:
    """The greatest error of an embedding in rounding units, and its location.

    tokens int32 [batch, n]; got [batch, n, n_embd]; held: which weights are rounded (rounding.HELD).
    """
    hparams, dtype = loaded.hparams, loaded.target.dtype
    op, params = graph(hparams.n_layer)[0], rounding.weights_at(loaded.params, dtype, held)
    exact = oracle.apply(op, [], params, hparams, tokens)
    size = rounding.bound(op, [], exact, params, hparams, rounding.Roundoff.of(dtype))
    units = rounding.units(got, exact, size)
    row, position, channel = (int(i) for i in np.unravel_index(np.argmax(units), units.shape))
    location = {"token": int(tokens[row, position]), "position": position, "channel": channel}
    return float(units[row, position, channel]), location


def embed(loaded: Loaded, tokens: np.ndarray) -> np.ndarray:
    """The embed tap of tokens int32 [batch, n], float64 [batch, n, n_embd]; the rest may not run.

    Raises ContractBroken if forward does not tap it.
    """
    captured: list[np.ndarray] = []

    def tap(name: str, value: Any) -> None:
        if name == "embed" and not captured:  # only once: a hook may outlive the call
            captured.append(np.asarray(loaded.host(name, value, tokens.shape), np.float64))
            raise Enough

    try:
        loaded.returned(tokens, None, tap)
    except Enough:
        pass
    except Exception:  # a framework may wrap what a callback raises
        if not captured:
            raise
    if not captured:
        raise ContractBroken("embed is promised, but forward did not tap it")
    return captured[0]


def unseen(plan: Plan) -> list[str]:
    """embed, if it is not tapped and the model is too large to compare logits for every token."""
    return [] if "embed" in plan.taps or affordable(plan) else ["embed"]


CHECK = Check(
    name="weights",
    establishes="every row of both embeddings is right: all tokens, all positions",
    expected=expected,
    measure=measure,
    limits={"rounding_units": rounding.LIMITS, "noise_units": NOISE},
    after="precision",
    blames="embed",
    precedence=30,
    look_at="how both embeddings are loaded and looked up: every row of wte and wpe",
    own_blame={"rounding_units": OwnBlame("embed", needs_value=False)},
    # if it is measured in logits, which are also wrong on the usual tokens
    implied_by=(Implied(("logits",), metric="noise_units"),),
    unseen=unseen,
)
