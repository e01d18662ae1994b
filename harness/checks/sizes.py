"""A model of other sizes is computed rightly, too, and the first one stays as it was beside it.

The model under test may have as many heads as layers, and then nothing else could tell whether an
implementation mixes them up, or has a size written down that it ought to be given.
"""

from collections.abc import Iterable, Iterator

from harness import second_model
from harness.second_model import CASE
from harness.subject import Key, Measurement, Plan, Subject, chunk_cuts

METRIC = "noise_units"


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, scope, METRIC) for scope in ("prefill", "decode", "first_model_besides")]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    last = subject.records[-1]
    subject.logits(last)  # while it is the only model
    with second_model.beside(subject) as (other, record):
        units = other.units(other.logits(record), record.logits, record)
        yield Measurement(CASE, "prefill", METRIC, units)
        got = other.in_chunks(record.tokens, chunk_cuts(record.tokens.shape[1]))
        units = other.units(got, record.logits, record)
        yield Measurement(CASE, "decode", METRIC, units)
        units = subject.units(subject.forward(last.tokens)[0], subject.logits(last), last)
        yield Measurement(CASE, "first_model_besides", METRIC, units)
