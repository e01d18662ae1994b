"""Large attention scores, GELU inputs, residuals and logits give right results.

Auxiliary models have them, so that the model under test need not. exp overflows float32 above 88: if the
greatest score is not subtracted first, or if tanh is computed as a quotient of exps. In float16, squares
overflow above 255.
"""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.auxiliary_models import LARGE, both_ways, looked_at
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case, scope, "noise_units")
        for case in looked_at(plan, LARGE)
        for scope in ("prefill", "decode")
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for case in looked_at(plan, LARGE):
        other, record = auxiliary_models.beside(loaded, case)
        yield from both_ways(other, chunk_cuts(record.tokens.shape[1]))


CHECK = Check(
    name="overflow",
    establishes="large attention scores, GELU inputs, residuals and logits give right results",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="sizes",
    blames="overflow",
    precedence=130,
    look_at="exp of large values (subtract the greatest score first, compute tanh without a quotient of "
    "exps, mask with -inf), and at squares in float16",
    auxiliary=True,
)
