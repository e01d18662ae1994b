"""The checks, one a file. A check measures; judge.py judges.

Each module has

    expected(plan) -> (case, scope, metric) of everything that it will measure, fixed beforehand
    measure(loaded, plan) -> the measurements

and its docstring's first line says what it establishes. A measurement that was expected and did
not come is a failure, whatever the reason.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from gpt2_parity.checks import (
    activations,
    bad_tokens,
    batch,
    causality,
    determinism,
    gradients,
    greedy,
    kv_cache,
    lengths,
    local,
    logits,
    overflow,
    precision,
    sizes,
    taps,
    weights,
)
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded


class Check(Protocol):
    """What a module in this folder offers."""

    __doc__: str | None

    def expected(self, plan: Plan) -> Iterable[Key]: ...

    def measure(self, loaded: Loaded, plan: Plan) -> Iterator[Measurement]: ...


_MODULES = (
    logits,
    activations,
    local,
    precision,
    weights,
    kv_cache,
    batch,
    causality,
    determinism,
    lengths,
    taps,
    greedy,  # from here on there is a second model, besides
    sizes,
    overflow,
    gradients,
    bad_tokens,
)
# In order of execution: what is most telling first.
CHECKS: dict[str, Check] = {
    module.__name__.rpartition(".")[2]: cast(Check, module) for module in _MODULES
}
