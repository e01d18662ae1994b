"""The result of every operation of every layer agrees with the float64 truth at its tap."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.distance import max_abs


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, name, "noise_units") for case in plan.cases for name in plan.taps]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        taps = loaded.prefill(record).taps
        for name, value in taps.items():
            difference = max_abs(value[:, record.arrays["positions"]], record.tap(name))
            units = difference / record.noise(loaded.target.dtype, name)
            detail = f"greatest difference {difference:.3g}"
            yield Measurement(record.name, name, "noise_units", units, detail)
