"""The same tokens give the same bits again, and later calls do not overwrite earlier results.

The first call on a shape does not count: an implementation that compiles may compute it differently. The
other checks hold first calls to the noise.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NONE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.distance import differing
from gpt2_parity.reference.records import shape_of

REPEATS = 3
OTHERS = 3  # calls made while a result is kept: some implementations alternate between 2 or 3 buffers
MANY = 17  # such calls for the last case


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case.name, scope, "differing_share")
        for case in plan.cases
        for scope in ("repeated", "kept", *(["kept_in_decode"] if case.n > 1 else []))
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        n_others = MANY if shape_of(record) == plan.cases[-1] else OTHERS
        loaded.forward(record.tokens)  # a compiler may try several kernels first
        first, _ = loaded.forward(record.tokens)
        before, after = outlived(loaded, record.tokens, None, n_others)
        again = [before, loaded.forward(record.tokens)[0]]
        share = float(np.max([differing(logits, first) for logits in again]))
        yield Measurement(record.name, "repeated", "differing_share", share)
        yield Measurement(record.name, "kept", "differing_share", differing(after, before))
        if record.tokens.shape[1] > 1:
            _, past = loaded.forward(record.tokens[:, :-1])
            before, after = outlived(loaded, record.tokens[:, -1:], past, n_others)
            yield Measurement(record.name, "kept_in_decode", "differing_share", differing(after, before))


def outlived(
    loaded: Loaded, tokens: np.ndarray, past: Any, n_others: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [batch, n, n_vocab] as returned, and read again after n_others calls on other tokens."""
    held, _ = loaded.returned(tokens, past, None)  # the framework's own array
    before = loaded.host("logits", held, tokens.shape)
    for other in range(1, n_others + 1):
        loaded.forward((tokens + other) % loaded.hparams.n_vocab, past)
    return before, loaded.host("logits", held, tokens.shape)


CHECK = Check(
    name="determinism",
    establishes="the same tokens give the same bits; later calls do not overwrite earlier results",
    expected=expected,
    measure=measure,
    limits={"differing_share": NONE},
    after="causality",
    blames="determinism",
    precedence=10,
    look_at="random numbers (dropout left on?), uninitialised memory, a result buffer that is reused",
)
