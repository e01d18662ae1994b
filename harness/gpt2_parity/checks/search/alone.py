"""Arrays for a file that shows the failure of a trial without this package.

The truth and the allowed error are fixed beforehand, so that a plain comparison judges:

    logits      as the search judges them: so many noise units of each position
    a tap       the operation's own limit, and so many times what the rounding before it does to it
    ids         the likeliest ids, up to the first near-tie; what comes after it is free
    gradients   the loss and each gradient, in their noise units
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt2_parity.checks.search.judge import GRADIENT_UNITS, PLAIN, UNITS
from gpt2_parity.checks.search.trial import REFUSED, Trial, paths
from gpt2_parity.checks.search.truth import Erring, truth
from gpt2_parity.contract.architecture import graph
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import NO_CACHE
from gpt2_parity.implementation.extremes import weights
from gpt2_parity.reference import gradient, oracle, rounding
from gpt2_parity.reference.rounding import Roundoff

DRAWS = 8  # of a tap's noise, whose every element must be drawn large at least once

Arrays = dict[str, np.ndarray]
Right = Iterator[tuple[str, np.ndarray, np.ndarray]]  # name, truth, allowed error


def arrays(trial: Trial, shown: Mapping[str, Any], dtype: str) -> Arrays:
    """Weights float32 by checkpoint name; the tokens int32 [batch, n] of each call as "tokens/0" and so
    on; the float64 "truth/NAME" and "allowed/NAME" of what is compared, whose shapes broadcast.

    shown: what Search.shown_by said. Tokens are those so far if the implementation has no cache.
    """
    made: Arrays = dict(weights(trial.hparams, trial.extremes, trial.seed, dtype))
    whole = shown["cache"] == NO_CACHE
    for i, tokens in enumerate(calls(trial, whole)[: shown["step"] + 1]):
        made[f"tokens/{i}"] = tokens
    for name, exact, allowed in right(trial, shown, dtype):
        made[f"truth/{name}"] = np.asarray(exact, np.float64)
        made[f"allowed/{name}"] = np.asarray(allowed, np.float64)
    return made


def calls(trial: Trial, whole: bool) -> list[np.ndarray]:
    """The tokens int32 [batch, n] of each call; whole: with those in its cache."""
    tokens = trial.tokens()
    made = []
    for i, (step, way) in enumerate(zip(trial.steps, paths(trial.steps), strict=True)):
        given = np.concatenate([tokens[j] for j in way], axis=1) if whole else tokens[i].copy()
        if step.kind == REFUSED:
            given[-1, -1] = trial.hparams.n_vocab
        made.append(given)
    return made


def right(trial: Trial, shown: Mapping[str, Any], dtype: str) -> Right:
    """What is right for the step that shows the failure."""
    i, compare = int(shown["step"]), str(shown["compare"])
    params = weights(trial.hparams, trial.extremes, trial.seed, dtype)
    tokens, n = calls(trial, whole=True)[i], trial.steps[i].n
    if compare == "logits":
        known = truth(params, trial.hparams, tokens, dtype)
        yield compare, known.logits[:, -n:], PLAIN[UNITS].most * known.unit[:, -n:, None]
    elif compare == "ids":
        yield compare, *ids(params, trial, tokens, trial.steps[i].n_new, dtype)
    elif compare == "gradients":
        for name, exact, unit in gradient.measure(params, trial.hparams, tokens, dtype, seed=0):
            yield name, exact, np.asarray(PLAIN[GRADIENT_UNITS].most * unit)
    elif compare:
        exact, allowed = tap(params, trial, compare, tokens, dtype)
        yield compare, exact[:, -n:], allowed[:, -n:]


def ids(
    params: Mapping[str, np.ndarray], trial: Trial, tokens: np.ndarray, n_new: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest ids [batch, n_new] after tokens [batch, n], and 0; from a near-tie on, infinity."""
    n = tokens.shape[1]
    for _ in range(n_new):
        likeliest = oracle.forward(params, trial.hparams, tokens)[:, -1:].argmax(axis=-1)
        tokens = np.concatenate([tokens, likeliest.astype(np.int32)], axis=1)
    known = truth(params, trial.hparams, tokens[:, :-1], dtype)
    first, second = np.sort(known.logits[:, n - 1 :], axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    tied = first - second <= 2 * NOISE.most * known.unit[:, n - 1 :]
    free = np.logical_or.accumulate(tied, axis=1)
    return tokens[:, n:], np.where(free, math.inf, 0.0)


def tap(
    params: Mapping[str, np.ndarray], trial: Trial, name: str, tokens: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """The result of an operation for tokens [batch, n] and its allowed error, each [batch, n, width]."""
    hparams, erring = trial.hparams, Erring(dtype, np.random.default_rng(0))
    op = next(op for op in graph(hparams.n_layer) if op.name == name)
    exact: Arrays = {}
    exact["logits"] = oracle.forward(params, hparams, tokens, exact.__setitem__)
    inputs = [exact[each] for each in op.inputs]
    bound = rounding.bound(op, inputs, exact[name], params, hparams, Roundoff.of(dtype))
    moved = np.zeros_like(exact[name])
    for _ in range(DRAWS):
        drawn: Arrays = {}
        held = erring.weights(params)
        drawn["logits"] = oracle.forward(held, hparams, tokens, drawn.__setitem__, apply=erring.apply)
        np.maximum(moved, np.abs(drawn[name] - exact[name]), out=moved)
    most = rounding.LIMITS.of(op.kind, dtype).most
    return exact[name], most * bound + PLAIN[UNITS].most * moved
