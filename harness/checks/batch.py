"""A row of a batch gets what it gets alone, in whichever place it stands."""

from collections.abc import Iterable, Iterator

from harness.subject import Key, Measurement, Plan, Subject


def expected(plan: Plan) -> Iterable[Key]:
    for case in plan.cases:
        if case.batch > 1:
            yield from ((case.name, f"row{i}", "noise_units") for i in range(case.batch))
            yield (case.name, "reversed", "noise_units")


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        together = subject.logits(record)
        if len(together) == 1:
            continue
        for i in range(len(together)):
            alone = subject.forward(record.tokens[i : i + 1])[0]
            units = subject.units(alone, together[i : i + 1], record)
            yield Measurement(record.name, f"row{i}", "noise_units", units)
        turned = subject.forward(record.tokens[::-1].copy())[0]
        units = subject.units(turned[::-1], together, record)
        yield Measurement(record.name, "reversed", "noise_units", units)
