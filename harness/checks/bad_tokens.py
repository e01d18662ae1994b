"""Tokens that cannot be are refused: left alone, JAX clamps them and NumPy wraps them silently.

And refused so that work goes on: on CUDA a bad id that reaches a kernel raises as well, but takes the
process with it, and every later question would seem to be refused too.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from harness.contract import HParams
from harness.subject import Key, Measurement, Plan, Subject

CASE = "bad_tokens"


def bad(hparams: HParams) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    """By scope: valid tokens to put into the cache first (or None), and the tokens to refuse."""

    def row(*ids: int) -> np.ndarray:
        return np.array([ids], np.int32)

    def beside(*ids: int) -> np.ndarray:
        return np.array([[0] * len(ids), ids], np.int32)

    full = np.zeros((1, hparams.n_ctx), np.int32)
    return {
        "too_large": (None, row(0, hparams.n_vocab)),
        "far_too_large": (None, row(2**31 - 1, 0)),
        "negative": (None, row(0, -1)),
        "empty": (None, np.zeros((1, 0), np.int32)),
        "too_long": (None, np.zeros((1, hparams.n_ctx + 1), np.int32)),
        "too_long_for_cache": (full, row(0)),
        "too_large_in_decode": (row(0), row(hparams.n_vocab)),
        "too_large_in_second_row": (None, beside(0, hparams.n_vocab)),
        "negative_in_second_row": (None, beside(0, -1)),
        "negative_in_decode": (row(0), row(-1)),
        "across_the_end_of_the_cache": (full[:, 1:], row(0, 0)),
    }


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, scope, "accepted") for scope in bad(plan.hparams)]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for scope, (before, tokens) in bad(subject.hparams).items():
        past = None if before is None else subject.forward(before)[1]
        try:
            logits, _ = subject.returned(tokens, past, None)
            subject.impl.numpy(logits)  # an asynchronous device may object only here
        except Exception as error:  # the contract allows any
            refusal = error
        else:
            yield Measurement(CASE, scope, "accepted", 1, f"{told(tokens)} were accepted")
            continue
        if broken := subject.broken():
            after = f"after {told(tokens)} were refused, good tokens fail: {broken}"
            yield Measurement(CASE, scope, "accepted", 1, after)
            return  # whatever else would be asked would be refused
        yield Measurement(CASE, scope, "accepted", 0, f"refused: {refusal}"[:200])


def told(tokens: np.ndarray) -> str:
    """The ids themselves, where they are few."""
    return f"tokens {tokens.tolist()}" if tokens.size < 5 else f"tokens of shape {tokens.shape}"
