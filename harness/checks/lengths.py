"""The shortest and the longest input work: one token, n_ctx tokens, and the last free place."""

from collections.abc import Iterable, Iterator

from harness.subject import Key, Measurement, Plan, Subject


def expected(plan: Plan) -> Iterable[Key]:
    for case in plan.cases:
        if case.n == plan.hparams.n_ctx:
            scopes = ("1", "n_ctx", "n_ctx_by_decode")
            yield from ((case.name, scope, "noise_units") for scope in scopes)


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        tokens, want = record.tokens, record.logits
        if tokens.shape[1] != subject.hparams.n_ctx:
            continue
        one = subject.forward(tokens[:, :1])[0]
        yield Measurement(record.name, "1", "noise_units", subject.units(one, want[:, :1], record))
        units = subject.units(subject.logits(record), want, record)
        yield Measurement(record.name, "n_ctx", "noise_units", units)
        past = subject.forward(tokens[:, :-1])[1]
        last = subject.forward(tokens[:, -1:], past)[0]
        units = subject.units(last, want[:, -1:], record)
        yield Measurement(record.name, "n_ctx_by_decode", "noise_units", units)
