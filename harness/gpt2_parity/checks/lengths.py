"""The shortest and the longest input are right: 1 token, n_ctx tokens, and the last free position.

So are lengths around the powers of two, where a kernel's last block has one token or lacks one.
"""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check, Implied
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference import rounding
from gpt2_parity.reference.records import Record


def expected(plan: Plan) -> Iterable[Key]:
    for case in plan.cases:
        if case.n == plan.hparams.n_ctx:
            scopes = ("1", "n_ctx", "n_ctx_by_decode", *(["in_between"] if case.n > 1 else []))
            yield from ((case.name, scope, "noise_units") for scope in scopes)


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        tokens, want = record.tokens, record.logits
        if tokens.shape[1] != loaded.hparams.n_ctx:
            continue
        one = loaded.forward(tokens[:, :1])[0]
        yield Measurement(record.name, "1", "noise_units", loaded.units(one, want[:, :1], record))
        units = loaded.units(loaded.logits(record), want, record)
        yield Measurement(record.name, "n_ctx", "noise_units", units)
        past = loaded.forward(tokens[:, :-1])[1]
        last = loaded.forward(tokens[:, -1:], past)[0]
        units = loaded.units(last, want[:, -1:], record)
        yield Measurement(record.name, "n_ctx_by_decode", "noise_units", units)
        if tokens.shape[1] > 1:
            yield in_between(loaded, record)


def in_between(loaded: Loaded, record: Record) -> Measurement:
    """The worst prefill of a record's first tokens, for lengths of 2^i - 1, 2^i and 2^i + 1."""
    n, measured = record.tokens.shape[1], []
    for length in sorted({2**i + j for i in range(1, n.bit_length()) for j in (-1, 0, 1)}):
        if length < n:
            got = loaded.forward(record.tokens[:, :length])[0]
            units = loaded.units(got, record.logits[:, :length], record)
            measured.append((units, {"length": length}))
    units, evidence = max(measured, key=rounding.rank)
    return Measurement(record.name, "in_between", "noise_units", units, evidence)


CHECK = Check(
    name="lengths",
    establishes="1 token, n_ctx tokens, the last free position and lengths around powers of two work",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="determinism",
    blames="lengths",
    precedence=70,
    look_at="the handling of a single token, of n_ctx tokens and of the last free position",
    implied_by=(Implied(("logits",), "everywhere"), Implied(("logits", "activations"), "elsewhere")),
)
