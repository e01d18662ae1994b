"""Invalid tokens are refused. Without a guard, JAX silently clamps them and NumPy wraps them.

The process must keep working: on CUDA, a bad id that reaches a kernel also raises, but then every later
call of the process fails, which would look like a refusal.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.check import Check, OwnBlame
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.limits import NOISE, NONE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.records import Record

CASE = "bad_tokens"
AFTER = "good_tokens_afterwards"
CACHE = "refused_caches_afterwards"


class Question(NamedTuple):
    """A call that must raise: of forward, perhaps after valid tokens, or of a capability."""

    tokens: np.ndarray  # int32 [batch, n]
    before: np.ndarray | None = None  # valid tokens for the cache, int32 [batch, n]
    capability: Capability | None = None  # None: forward
    keywords: Mapping[str, Any] = {}

    @property
    def function(self) -> str:
        return self.capability.name if self.capability else "forward"


def questions(plan: Plan) -> dict[str, Question]:
    """The calls to make, by scope."""
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
    bad = {
        "too_large": row(0, hparams.n_vocab, 0),
        "negative": row(0, -1, 0),
        "too_large_at_the_end": row(0, 0, hparams.n_vocab),
        "negative_at_the_end": row(0, 0, -100),  # which PyTorch's cross_entropy ignores
        "too_large_in_second_row": beside(0, hparams.n_vocab, 0),
        "empty": np.zeros((1, 0), np.int32),
    }
    for capability in plan.offers:
        if not capability.takes_tokens:
            continue
        for scope, (beyond, keywords) in capability.too_long.items():
            ids = np.zeros((1, hparams.n_ctx + beyond), np.int32)
            asked[f"{scope}_in_{capability.name}"] = Question(ids, None, capability, keywords)
        for scope, ids in bad.items():
            asked[f"{scope}_in_{capability.name}"] = Question(ids, None, capability)
    return asked


def expected(plan: Plan) -> Iterable[Key]:
    asked = [(scope, "accepted") for scope in questions(plan)]
    asked += [(AFTER, "noise_units"), (CACHE, "noise_units")]
    return [(CASE, *each) for each in asked]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    if broken := loaded.broken():
        raise ContractBroken(f"good tokens fail: {broken}")  # then a refusal of bad tokens shows nothing
    last = loaded.records[-1]
    loaded.logits(last)  # before anything is refused
    refused = []  # caches with room for a token, each with the tokens that are in it
    for scope, question in questions(plan).items():
        past = None if question.before is None else loaded.forward(question.before)[1]
        if question.before is not None and question.before.shape[1] < loaded.hparams.n_ctx:
            refused.append((question.before, past))
        try:
            ask(loaded, question, past)
        except (Exception, SystemExit) as error:  # the contract allows any
            refusal = error
        else:
            yield Measurement(CASE, scope, "accepted", 1, {"accepted": shown(question)})
            continue
        if broken := loaded.broken():
            evidence = {"refused": shown(question), "good_tokens_fail": broken}
            yield Measurement(CASE, scope, "accepted", 1, evidence)
            return  # every further call would raise
        yield Measurement(CASE, scope, "accepted", 0, {"refused_with": str(refusal)[:200]})
    units = loaded.units(loaded.forward(last.tokens)[0], loaded.logits(last), last)
    yield Measurement(CASE, AFTER, "noise_units", units)
    units = float(np.max([continued(loaded, *each, last) for each in refused]))  # NaN stays NaN
    yield Measurement(CASE, CACHE, "noise_units", units)


def continued(loaded: Loaded, before: np.ndarray, past: Any, record: Record) -> float:
    """The error, in noise units, of decoding a valid token with a cache that was refused with a bad one.

    before: the tokens in the cache, int32 [batch, n].
    """
    good = np.zeros((len(before), 1), np.int32)
    whole, _ = loaded.forward(np.concatenate([before, good], axis=1))
    return loaded.units(loaded.forward(good, past)[0], whole[:, -1:], record)


def ask(loaded: Loaded, question: Question, past: Any) -> None:
    """Make the call and bring its result to the host: an asynchronous device may raise only then."""
    if question.capability is not None:
        question.capability.call(loaded, question.tokens, **question.keywords)
        return
    logits, _ = loaded.returned(question.tokens, past, None)
    loaded.impl.numpy(logits)


def shown(question: Question) -> Evidence:
    """The function that was called, and its tokens if they are fewer than five, or else their shape."""
    tokens = question.tokens
    few = {"tokens": tokens.tolist()} if tokens.size < 5 else {"tokens_of_shape": list(tokens.shape)}
    return {"function": question.function, **few}


CHECK = Check(
    name="bad_tokens",
    establishes="ids out of range, no tokens and too many are refused; valid tokens work afterwards",
    expected=expected,
    measure=measure,
    limits={"accepted": NONE, "noise_units": NOISE},
    last=True,  # on CUDA a bad id that reaches a kernel ends the process
    blames="tokens",
    precedence=140,
    look_at="the guard against ids outside 0 to n_vocab - 1, empty input and more than n_ctx tokens",
    own_blame={"accepted": OwnBlame("tokens")},
)
