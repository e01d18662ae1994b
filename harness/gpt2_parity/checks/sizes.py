"""Models of other sizes are right too, and the model under test stays right beside another.

The model under test may have as many heads as layers; then no other check shows that an implementation
mixes them up, or that it hard-codes a size. It may also be smaller than official models, which have more
than ten layers and more positions than a kernel's block.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.auxiliary_models import DEEP, LONG, SECOND, both_ways, looked_at
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts

BESIDES = "first_model_besides"
CUTS: dict[str, list[int]] = {DEEP: [], LONG: [1000]}  # the long model's tokens after it are decoded


def expected(plan: Plan) -> Iterable[Key]:
    asked = [(SECOND, "prefill"), (SECOND, "decode"), (SECOND, BESIDES)]
    for name in looked_at(plan, (DEEP, LONG)):
        asked += [(name, "prefill"), *([(name, "decode")] if CUTS[name] else [])]
    return [(case, scope, "noise_units") for case, scope in asked]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    last = loaded.records[-1]
    want = loaded.logits(last)  # while no other model is loaded
    other, record = auxiliary_models.beside(loaded)
    yield from both_ways(other, chunk_cuts(record.tokens.shape[1]))
    ways = (loaded.forward(last.tokens)[0], loaded.in_chunks(last.tokens, [1]))
    units = float(np.max([loaded.units(got, want, last) for got in ways]))  # NaN stays NaN
    yield Measurement(SECOND, BESIDES, "noise_units", units)
    for name in looked_at(plan, (DEEP, LONG)):
        yield from both_ways(auxiliary_models.beside(loaded, name)[0], CUTS[name])


CHECK = Check(
    name="sizes",
    establishes="small models of other sizes are right; two loaded models do not affect each other",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="greedy",  # from here on a second model is loaded
    blames="sizes",
    precedence=120,
    look_at="sizes that are mixed up or hard-coded instead of read from hparams; also at ten layers or "
    "more, long texts and large ids",
)
