"""Tokens that cannot be are refused: left alone, JAX clamps them and NumPy wraps them silently.

And refused so that work goes on: on CUDA a bad id that reaches a kernel raises as well, but takes the
process with it, and every later question would seem to be refused too.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.records import Record

CASE = "bad_tokens"
AFTER = "good_tokens_afterwards"
CACHE = "refused_caches_afterwards"


class Question(NamedTuple):
    """A call that must raise: of forward, after valid tokens in the cache, if any, or of another."""

    tokens: np.ndarray
    before: np.ndarray | None = None
    function: str = "forward"
    n_new: int = 2  # of generate


def questions(plan: Plan) -> dict[str, Question]:
    """By scope."""
    hparams = plan.hparams

    def row(*ids: int) -> np.ndarray:
        return np.array([ids], np.int32)

    def beside(*ids: int) -> np.ndarray:
        return np.array([[0] * len(ids), ids], np.int32)

    full, too_long = (np.zeros((1, n), np.int32) for n in (hparams.n_ctx, hparams.n_ctx + 1))
    asked = {
        "too_large": Question(row(0, hparams.n_vocab)),
        "far_too_large": Question(row(2**31 - 1, 0)),
        "negative": Question(row(0, -1)),
        "empty": Question(np.zeros((1, 0), np.int32)),
        "too_long": Question(too_long),
        "too_long_for_cache": Question(row(0), full),
        "too_large_in_decode": Question(row(hparams.n_vocab), row(0)),
        "too_large_in_second_row": Question(beside(0, hparams.n_vocab)),
        "negative_in_second_row": Question(beside(0, -1)),
        "negative_in_decode": Question(row(-1), row(0)),
        "too_large_in_second_row_in_decode": Question(beside(hparams.n_vocab), beside(0)),
        "empty_in_decode": Question(np.zeros((1, 0), np.int32), row(0)),
        "across_the_end_of_the_cache": Question(row(0, 0), full[:, 1:]),
    }
    if plan.generates:  # of two new tokens after a full context the first has no place
        asked["too_long_in_generate"] = Question(full, function="generate")
        asked["too_long_prompt_in_generate"] = Question(too_long, function="generate", n_new=1)
    if plan.differentiates:
        asked["too_long_in_loss_and_grads"] = Question(too_long, function="loss_and_grads")
    offered = {"generate": plan.generates, "loss_and_grads": plan.differentiates}
    bad = {
        "too_large": row(0, hparams.n_vocab, 0),
        "negative": row(0, -1, 0),
        "too_large_at_the_end": row(0, 0, hparams.n_vocab),
        "negative_at_the_end": row(0, 0, -100),  # which PyTorch's loss takes for nothing to predict
        "too_large_in_second_row": beside(0, hparams.n_vocab, 0),
        "empty": np.zeros((1, 0), np.int32),
    }
    for function in (name for name, there in offered.items() if there):
        asked |= {f"{scope}_in_{function}": Question(ids, None, function) for scope, ids in bad.items()}
    return asked


def expected(plan: Plan) -> Iterable[Key]:
    asked = [(scope, "accepted") for scope in questions(plan)]
    asked += [(AFTER, "noise_units"), (CACHE, "noise_units")]
    return [(CASE, *each) for each in asked]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    if broken := loaded.broken():
        raise ContractBroken(f"good tokens fail: {broken}")  # to refuse bad ones then shows nothing
    last = loaded.records[-1]
    loaded.logits(last)  # while nothing was refused yet
    refused = []  # caches that may be continued, each with the tokens that are in it
    for scope, question in questions(plan).items():
        past = None if question.before is None else loaded.forward(question.before)[1]
        if question.before is not None and question.before.shape[1] < loaded.hparams.n_ctx:
            refused.append((question.before, past))
        try:
            ask(loaded, question, past)
        except (Exception, SystemExit) as error:  # the contract allows any
            refusal = error
        else:
            accepted = f"{told(question)} were accepted"
            yield Measurement(CASE, scope, "accepted", 1, accepted)
            continue
        if broken := loaded.broken():
            after = f"after {told(question)} were refused, good tokens fail: {broken}"
            yield Measurement(CASE, scope, "accepted", 1, after)
            return  # whatever else would be asked would be refused
        yield Measurement(CASE, scope, "accepted", 0, f"refused: {refusal}"[:200])
    units = loaded.units(loaded.forward(last.tokens)[0], loaded.logits(last), last)
    yield Measurement(CASE, AFTER, "noise_units", units)
    units = float(np.max([continued(loaded, *each, last) for each in refused]))  # NaN stays NaN
    yield Measurement(CASE, CACHE, "noise_units", units)


def continued(loaded: Loaded, before: np.ndarray, past: Any, record: Record) -> float:
    """How far a cache that was refused with a bad token goes on wrongly with a good one."""
    good = np.zeros((len(before), 1), np.int32)
    whole, _ = loaded.forward(np.concatenate([before, good], axis=1))
    return loaded.units(loaded.forward(good, past)[0], whole[:, -1:], record)


def ask(loaded: Loaded, question: Question, past: Any) -> None:
    """Make the call, and have its result on the host: an asynchronous device may object only there."""
    match question.function:
        case "generate":
            np.array(loaded.impl.generate(loaded.model, np.array(question.tokens), question.n_new))
        case "loss_and_grads":
            float(loaded.impl.loss_and_grads(loaded.model, np.array(question.tokens))[0])
        case _:
            logits, _ = loaded.returned(question.tokens, past, None)
            loaded.impl.numpy(logits)


def told(question: Question) -> str:
    """The ids themselves, where they are few, and who was given them, where it was not forward."""
    tokens = question.tokens
    ids = f"tokens {tokens.tolist()}" if tokens.size < 5 else f"tokens of shape {tokens.shape}"
    return ids if question.function == "forward" else f"{ids} in {question.function}"
