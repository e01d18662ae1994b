"""Causality: what later tokens may not change."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded


def cuts(n: int) -> list[int]:
    """First positions of the futures that get changed: the second half, and the last token."""
    return sorted({n // 2, n - 1} - {0})


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case.name, f"changed_from_{cut}", "noise_units") for case in plan.cases for cut in cuts(case.n)
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        for cut in cuts(record.tokens.shape[1]):
            tokens = record.tokens.copy()
            tokens[:, cut:] = (tokens[:, cut:] + 1) % loaded.hparams.n_vocab
            past = loaded.forward(tokens)[0][:, :cut]
            units = loaded.units(past, loaded.logits(record)[:, :cut], record)
            yield Measurement(record.name, f"changed_from_{cut}", "noise_units", units)


CHECK = Check(
    name="causality",
    establishes="future tokens change nothing in the past",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="batch",
    blames="causality",  # of prefill: no cache can fail it
    precedence=40,
    look_at="the causal mask: scores of later positions must be hidden wholly (-inf, not -5)",
)
