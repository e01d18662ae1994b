"""The plan of a run: what it must measure, fixed before anything is measured."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.capability import Capability

FURTHER = 64  # tokens that generate makes beyond the golden ones: by then, caches that grow have grown
AFFORDABLE = 1e11  # FLOPs, a few seconds in float64; all tokens of micro take 2e9, of 124M 1e13

Key = tuple[str, str, str]  # case, scope, metric: what a check promises to measure


KEPT, IN_PLACE, NO_CACHE = "kept", "in place", "none"  # what forward does with the cache it is given
CHECKPOINT, QUANTIZED = "checkpoint", "quantized"  # whose weights the model is declared to multiply with

SLOW = "slow"  # value of RELOADS: load compiles


class CaseShape(NamedTuple):
    """The name and sizes of a record, which decide what is measured on it."""

    name: str
    batch: int
    n: int
    n_new: int  # golden greedy tokens


class Asked(NamedTuple):
    """What the user asked for, as far as it decides what is measured."""

    only: tuple[str, ...] = ()  # the checks to make; empty: all
    search: float = 0.0  # seconds for the check search; 0: it is not made
    seed: int = 0  # of that search
    corpus: tuple[Mapping[str, Any], ...] = ()  # trials that it makes first: {"name", "trial"} of each

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Asked":
        """What _asdict wrote, from JSON."""
        only, corpus = tuple(data["only"]), tuple(data["corpus"])
        return cls(only, float(data["search"]), int(data["seed"]), corpus)


class Plan(NamedTuple):
    """Everything that decides which measurements a run must deliver."""

    hparams: HParams
    cases: tuple[CaseShape, ...]
    taps: tuple[str, ...]  # promised, or seen on the first probe
    offers: tuple[Capability, ...] = ()  # the optional functions that the implementation has
    further: int = FURTHER
    cache: str = KEPT
    weights: str = CHECKPOINT
    reloads: str = ""  # SLOW: only the auxiliary models that a verdict needs are loaded
    asked: Asked = Asked()

    def makes(self, check: str) -> bool:
        """Whether a check is to be made."""
        return not self.asked.only or check in self.asked.only

    def affords(self, n_tokens: int) -> bool:
        """Whether a forward pass over n_tokens costs at most AFFORDABLE; if not, checks omit it."""
        n_params = sum(math.prod(shape) for shape in parameter_shapes(self.hparams).values())
        return 2.0 * n_params * n_tokens <= AFFORDABLE
