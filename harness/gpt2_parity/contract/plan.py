"""What a run must deliver: the cases, and the plan that is fixed before anything is measured."""

import math
from collections.abc import Callable
from typing import NamedTuple

from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.capability import Capability

FURTHER = 64  # tokens that generate is asked for beyond golden: caches that grow have grown by then
AFFORDABLE = 1e11  # FLOPs, a few seconds of float64: all tokens of micro take 2e9, of the 124M 1e13

Progress = Callable[[str, str, int], None]  # implementation, target or "", checks done
Key = tuple[str, str, str]  # case, scope, metric: what a check promises to measure


class CaseShape(NamedTuple):
    """As much of a record as is needed to say what will be measured on it."""

    name: str
    batch: int
    n: int
    n_new: int


class Plan(NamedTuple):
    """All that decides which measurements a run must deliver; fixed before it measures."""

    hparams: HParams
    cases: tuple[CaseShape, ...]
    taps: tuple[str, ...]  # promised, or seen on the first probe
    offers: tuple[Capability, ...] = ()  # the optional functions that the implementation has
    further: int = FURTHER

    def affords(self, n_tokens: int) -> bool:
        """Whether so many tokens may go through the model once, in a check that not every model gets."""
        n_params = sum(math.prod(shape) for shape in parameter_shapes(self.hparams).values())
        return 2.0 * n_params * n_tokens <= AFFORDABLE
