"""The result of every operation of every layer agrees with the float64 truth at its tap."""

from collections.abc import Iterable, Iterator

from harness.numerics import max_abs
from harness.subject import Key, Measurement, Plan, Subject


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, name, "noise_units") for case in plan.cases for name in plan.taps]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        taps = subject.prefill(record).taps
        for name, value in taps.items():
            difference = max_abs(value[:, record.arrays["positions"]], record.tap(name))
            units = difference / record.noise(subject.target.dtype, name)
            detail = f"greatest difference {difference:.3g}"
            yield Measurement(record.name, name, "noise_units", units, detail)
