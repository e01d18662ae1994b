"""Looking changes nothing: logits with taps on are the logits with taps off."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, "on_and_off", "noise_units") for case in plan.cases]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        units = loaded.units(loaded.prefill(record).logits, loaded.logits(record), record)
        yield Measurement(record.name, "on_and_off", "noise_units", units)
