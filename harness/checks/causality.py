"""Future tokens change nothing in the past."""

from collections.abc import Iterable, Iterator

from harness.subject import Key, Measurement, Plan, Subject


def cuts(n: int) -> list[int]:
    """First positions of the futures that get changed: the second half, and the last token."""
    return sorted({n // 2, n - 1} - {0})


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case.name, f"changed_from_{cut}", "noise_units") for case in plan.cases for cut in cuts(case.n)
    ]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        for cut in cuts(record.tokens.shape[1]):
            tokens = record.tokens.copy()
            tokens[:, cut:] = (tokens[:, cut:] + 1) % subject.hparams.n_vocab
            past = subject.forward(tokens)[0][:, :cut]
            units = subject.units(past, subject.logits(record)[:, :cut], record)
            yield Measurement(record.name, f"changed_from_{cut}", "noise_units", units)
