"""What a known mistake is, and the list of them.

A mistake is an operation done wrongly in one named way, from the implementation's own captured input.
The files beside this one register theirs as they are imported: particular mistakes before general ones.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.reference import oracle

Params = Mapping[str, np.ndarray]
FEW = 3  # positions below which a fit says nothing: at one, any error is a multiple of whatever is there


class Scene(NamedTuple):
    """A blamed operation and what was captured around it, all float64."""

    op: Op
    inputs: list[np.ndarray]
    got: np.ndarray
    exact: np.ndarray
    size: np.ndarray  # the rounding bound
    taps: Mapping[str, np.ndarray]
    params: Params
    hparams: HParams
    tokens: np.ndarray
    cuts: tuple[int, ...] = ()  # where the tokens were cut into chunks, for decode

    def weight(self, leaf: str, scope: str = "") -> np.ndarray:
        return np.asarray(self.params[f"{scope or self.op.name}/{leaf}"], np.float64)

    def again(self, inputs: list[np.ndarray], name: str = "") -> np.ndarray:
        """The operation on other inputs, or with another scope's weights."""
        op = self.op._replace(name=name or self.op.name)
        return oracle.apply(op, inputs, self.params, self.hparams, self.tokens)


class Mistake(NamedTuple):
    """A named mistake: alter yields the result that it would give, in each of its variants.

    flips: the mistake rounds something that was not captured, and a value near the middle between two
    neighbours may have gone the other way; then the middle error counts, if the mistake makes it
    smaller, not the greatest.
    """

    name: str
    text: str
    kinds: tuple[str, ...]
    alter: Callable[[Scene], Iterator[np.ndarray]]
    flips: bool


class Match(NamedTuple):
    """How well the nearest known mistake explains an error."""

    name: str  # of the mistake; empty where none applies
    explains: bool
    before: float  # the error, and what is left of it if the mistake is assumed
    after: float
    noise_units: float | None = None  # of what is left; only where a whole model was evaluated

    def on(self, found: Measurement) -> Measurement:
        """A measurement with this match in its evidence, and with the mistake if that explains it."""
        facts = {"before": self.before, "after": self.after}
        if self.noise_units is not None:
            facts["noise_units"] = self.noise_units
        if self.explains:
            return found._replace(mistake=self.name, evidence={**found.evidence, "explained": facts})
        nearest = {"mistake": self.name, **facts} if self.name else {}
        return found._replace(evidence={**found.evidence, "nearest": nearest})


MISTAKES: list[Mistake] = []


def text_of(name: str) -> str:
    """What a mistake's name means, in words; the name itself where it is not known here."""
    return next((found.text for found in MISTAKES if found.name == name), name)


def mistake(
    name: str, text: str, *kinds: str, flips: bool = False
) -> Callable[..., Callable[[Scene], Iterator[np.ndarray]]]:
    """Register a generator of altered results."""

    def add(alter: Callable[[Scene], Iterator[np.ndarray]]) -> Callable[[Scene], Iterator[np.ndarray]]:
        MISTAKES.append(Mistake(name, text, kinds, alter, flips))
        return alter

    return add


def simple(
    name: str, text: str, kind: str, alter: Callable[[Scene], np.ndarray], flips: bool = False
) -> None:
    """A mistake with a single variant."""
    mistake(name, text, kind, flips=flips)(lambda scene: iter([alter(scene)]))


def narrow(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding to nearest in a narrower format, kept as float64."""
    return lambda x: np.asarray(dtypes.round_nearest(np.asarray(x, np.float32), dtype), np.float64)
