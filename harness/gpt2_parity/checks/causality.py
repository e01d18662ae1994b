"""Causality: later tokens must not change the logits of earlier positions."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded


def cuts(n: int) -> list[int]:
    """The positions from which tokens are changed: from the middle, and the last one."""
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
    establishes="later tokens do not change the logits of earlier positions",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="batch",
    blames="causality",  # in prefill: a cache cannot fail it
    precedence=40,
    look_at="the causal mask: scores of later positions must be masked completely (-inf, not -5); "
    "and scales that are computed from all tokens of a call",
)
