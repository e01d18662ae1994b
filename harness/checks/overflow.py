"""Large scores, inputs of GELU, residuals and logits come out right, whether the model has any or not.

exp overflows float32 beyond 88: where the greatest score is not subtracted first, or tanh is taken for a
quotient of exps. And in float16 squares overflow beyond 255.
"""

from collections.abc import Iterable, Iterator

from harness import other_models
from harness.other_models import LARGE, both_ways
from harness.subject import Key, Measurement, Plan, Subject, chunk_cuts


def expected(plan: Plan) -> Iterable[Key]:
    return [(case, scope, "noise_units") for case in LARGE for scope in ("prefill", "decode")]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for case in LARGE:
        with other_models.beside(subject, case) as (other, record):
            yield from both_ways(other, chunk_cuts(record.tokens.shape[1]))
