"""Compare logits with taps on and off."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, "on_and_off", "noise_units") for case in plan.cases]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        units = loaded.units(loaded.prefill(record).logits, loaded.logits(record), record)
        yield Measurement(record.name, "on_and_off", "noise_units", units)


CHECK = Check(
    name="taps",
    establishes="the logits are the same with and without taps",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="lengths",
    blames="taps",
    precedence=20,
    look_at="what forward does differently when tap is given",
)
