"""What a known mistake is, and the list of all.

A mistake is an operation done wrongly in one named way, from the implementation's own captured input.
The other files of this folder register theirs when they are imported, specific mistakes before general
ones.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, Op
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.reference import oracle

Params = Mapping[str, np.ndarray]
NEAR = 10.0  # a mistake is named as the nearest if it reduces an error by at least this factor
FEW = 3  # with fewer positions a fit shows nothing: at one, any error is a multiple of any input


class Scene(NamedTuple):
    """A blamed operation and what was captured around it, all float64."""

    op: Op
    inputs: list[np.ndarray]  # captured, each [batch, n, width]
    got: np.ndarray  # the captured result [batch, n, width]
    exact: np.ndarray  # the right result from the same inputs [batch, n, width]
    size: np.ndarray  # the rounding bound [batch, n, width]
    taps: Mapping[str, np.ndarray]  # other captured activations in the shape of the first input
    params: Params  # weights by checkpoint name, each w [n_in, n_out]
    hparams: HParams
    tokens: np.ndarray  # int32 [batch, n]
    cuts: tuple[int, ...] = ()  # where the tokens were cut into chunks, for decode

    def weight(self, leaf: str, scope: str = "") -> np.ndarray:
        """A weight of the operation, or of another scope: w [n_in, n_out], g or b [width]."""
        return np.asarray(self.params[f"{scope or self.op.name}/{leaf}"], np.float64)

    def again(self, inputs: list[np.ndarray], name: str = "") -> np.ndarray:
        """The exact result [batch, n, width] on other inputs, or with the weights of another scope."""
        op = self.op._replace(name=name or self.op.name)
        return oracle.apply(op, inputs, self.params, self.hparams, self.tokens)


class Mistake(NamedTuple):
    """A named mistake: alter yields the result [batch, n, width] that each of its variants gives.

    flips: the mistake rounds something that was not captured, so a value half way between two neighbours
    may have been rounded the other way. Then the median error counts, not the greatest, if the mistake
    reduces it by a factor of NEAR.
    breaks: checks of what must hold whatever the values are. Their failures are failures of their own.
    """

    name: str
    text: str  # what it is, in plain words
    kinds: tuple[str, ...]  # of the operations that can have it
    alter: Callable[[Scene], Iterator[np.ndarray]]
    flips: bool
    breaks: tuple[str, ...]


class Match(NamedTuple):
    """How well the nearest known mistake explains an error."""

    name: str  # of the mistake; empty if none applies
    explains: bool
    before: float  # the error
    after: float  # what is left of it if the mistake is assumed, in the same unit
    at: str = ""  # the leaf that has the mistake, if only one of its kind has it
    noise_units: float | None = None  # what is left, in noise units; only if a whole model was evaluated
    correlation: float | None = (
        None  # of the errors with those of a coarser model, if that explains them
    )
    beyond_chance: float | None = None  # that correlation as a multiple of what chance gives

    def on(self, measurement: Measurement) -> Measurement:
        """The measurement with this match in its evidence, and with the mistake if that explains it."""
        facts: dict[str, Any] = {"before": self.before, "after": self.after}
        if self.at:
            facts["at"] = self.at
        if self.noise_units is not None:
            facts["noise_units"] = self.noise_units
        if self.correlation is not None:
            facts |= {"correlation": self.correlation, "beyond_chance": self.beyond_chance}
        if self.explains:
            evidence = {**measurement.evidence, "explained": facts}
            return measurement._replace(mistake=self.name, evidence=evidence)
        near = bool(self.name) and math.isfinite(self.after) and self.after <= self.before / NEAR
        nearest = {"mistake": self.name, **facts} if near else {}
        return measurement._replace(evidence={**measurement.evidence, "nearest": nearest})


MISTAKES: list[Mistake] = []


def broken_by(names: Collection[str]) -> set[str]:
    """The checks whose failures under these mistakes are failures of their own."""
    return {check for mistake in MISTAKES if mistake.name in names for check in mistake.breaks}


def text_of(name: str) -> str:
    """The text of a mistake; its name if no such mistake is registered."""
    return next((mistake.text for mistake in MISTAKES if mistake.name == name), name)


def mistake(
    name: str, text: str, *kinds: str, flips: bool = False, breaks: tuple[str, ...] = ()
) -> Callable[..., Callable[[Scene], Iterator[np.ndarray]]]:
    """A decorator that registers a generator of altered results as a mistake of kinds of operation."""

    def add(alter: Callable[[Scene], Iterator[np.ndarray]]) -> Callable[[Scene], Iterator[np.ndarray]]:
        MISTAKES.append(Mistake(name, text, kinds, alter, flips, breaks))
        return alter

    return add


def simple(
    name: str, text: str, kind: str, alter: Callable[[Scene], np.ndarray], flips: bool = False
) -> None:
    """Register a mistake with a single variant: alter gives its result."""
    mistake(name, text, kind, flips=flips)(lambda scene: iter([alter(scene)]))


def narrow(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that rounds an array [...] to nearest in a narrower dtype and keeps it as float64."""
    return lambda x: np.asarray(dtypes.round_nearest(np.asarray(x, np.float32), dtype), np.float64)
