"""Looking changes nothing: logits with taps on are the logits with taps off."""

from collections.abc import Iterable, Iterator

from harness.subject import Key, Measurement, Plan, Subject


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, "on_and_off", "noise_units") for case in plan.cases]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        units = subject.units(subject.prefill(record).logits, subject.logits(record), record)
        yield Measurement(record.name, "on_and_off", "noise_units", units)
