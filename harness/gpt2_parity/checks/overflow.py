"""Large scores, inputs of GELU, residuals and logits come out right, whether the model has any or not.

exp overflows float32 beyond 88: where the greatest score is not subtracted first, or tanh is taken for a
quotient of exps. And in float16 squares overflow beyond 255.
"""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.auxiliary_models import LARGE, both_ways
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts


def expected(plan: Plan) -> Iterable[Key]:
    return [(case, scope, "noise_units") for case in LARGE for scope in ("prefill", "decode")]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for case in LARGE:
        with auxiliary_models.beside(loaded, case) as (other, record):
            yield from both_ways(other, chunk_cuts(record.tokens.shape[1]))


CHECK = Check(
    name="overflow",
    establishes="large attention scores, GELU inputs, residuals and logits come out right",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="sizes",
    blames="overflow",
    precedence=130,
    look_at="exp of large values: the greatest score comes off first, tanh is no quotient of exps, "
    "the mask is -inf; squares in float16",
    auxiliary=True,
)
