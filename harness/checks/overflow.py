"""Large attention scores and large inputs of GELU come out right, whether the model has any or not.

exp overflows float32 beyond 88: where the greatest score is not subtracted first, or tanh is taken for a
quotient of exps.
"""

from collections.abc import Iterable, Iterator

from harness import second_model
from harness.second_model import CASE, LARGE
from harness.subject import Key, Measurement, Plan, Subject

METRIC = "noise_units"


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, scope, METRIC) for scope in LARGE]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for scope in LARGE:
        with second_model.beside(subject, large=scope) as (other, record):
            units = other.units(other.logits(record), record.logits, record)
            yield Measurement(CASE, scope, METRIC, units)
