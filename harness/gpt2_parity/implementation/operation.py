"""One operation of an implementation, judged given its own captured input.

The result is recomputed in float64 from the captured input, and the difference is divided by the
rounding bound at the declared precision (reference/rounding.py). If an input is not tapped, the longer
segment from the nearest captured taps is recomputed, and its error is given in its noise units.
"""

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import Op, graph
from gpt2_parity.contract.rows import Evidence
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference import noise, oracle, parallel, rounding
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.records import Record
from gpt2_parity.reference.rounding import Roundoff

BLOCK = 2_500_000  # elements of a weight converted to float64 at a time (all of 124M's c_fc)
SEGMENT_DRAWS = 3
INHERITED = {"inherited": "input_not_finite"}


def judged(taps: Collection[str], n_layer: int) -> list[tuple[Op, str]]:
    """The operations whose result is captured, each with its metric. taps: the names captured."""
    if not taps:
        return []
    known = {*taps, "logits"}
    return [
        (op, "rounding_units" if known.issuperset(op.inputs) else "segment_noise_units")
        for op in graph(n_layer)
        if op.name in known
    ]


def needed(op: Op, metric: str) -> tuple[str, ...]:
    """The taps needed to examine an operation by itself, or as the end of a segment."""
    return (op.name,) if metric.startswith("segment") else (op.name, *op.inputs)


class Examined(NamedTuple):
    """One operation in one run of a case."""

    loaded: Loaded
    record: Record
    captured: Mapping[str, np.ndarray]  # taps and logits by name, each [batch, n, width]
    op: Op
    metric: str
    cuts: tuple[int, ...] = ()
    held: str = "all"  # which weights are rounded to the declared dtype (rounding.HELD)
    cast: bool = False  # whether the input of a product is rounded to it too

    def settled(self, value: float, evidence: Evidence) -> tuple["Examined", float, Evidence]:
        """Its greatest error in units, by the honest way to compute it that explains it best.

        value, evidence: as examine returns them for the operation as declared.
        """
        if self.judged_alone() and value > self.most / 2 and (others := self.others()):
            tried = zip(others, examine(others), strict=True)
            other, worst = min(tried, key=lambda each: rounding.rank(each[1]))
            if worst[0] <= min(self.most, value):
                return other, *worst
        if self.judged_alone() and value <= self.most and self.inherits_nan():
            return self, math.nan, dict(INHERITED)
        return self, value, evidence

    def others(self) -> list["Examined"]:
        """The same operation, by other honest ways to compute it at the declared dtype."""
        if (self.held, self.cast) != ("all", False) or self.op.kind in ("attention", "gelu", "add"):
            return []
        held = rounding.ways(self.loaded.target.dtype)[1:]
        other = [self._replace(held=each) for each in held]
        if held and self.op.kind in ("linear", "head"):  # the tap may be of the input before it is cast
            other += [self._replace(held=each, cast=True) for each in ("all", "matrices")]
        return other

    @property
    def most(self) -> float:
        """The limit of its error, in rounding units."""
        return rounding.LIMITS.of(self.op.kind, self.loaded.target.dtype).most

    def judged_alone(self) -> bool:
        """Whether it is judged by its own rounding, not as the end of a segment."""
        return not self.metric.startswith("segment")

    def params(self) -> Mapping[str, np.ndarray]:
        """The weights by checkpoint name, rounded as held says."""
        return rounding.weights_at(self.loaded.params, self.loaded.target.dtype, self.held)

    def inputs(self) -> list[np.ndarray]:
        """The captured inputs, each float64 [batch, n, width]."""
        inputs = [self.captured[name] for name in self.op.inputs]
        if self.cast:
            inputs = [dtypes.round_nearest(x, self.loaded.target.dtype) for x in inputs]
        return [np.asarray(x, np.float64) for x in inputs]

    def blocks(self) -> list[slice]:
        """Slices of the columns of its result that need at most about BLOCK elements of a weight."""
        if self.op.kind not in ("linear", "head"):
            return [slice(None)]
        width = self.captured[self.op.name].shape[-1]
        step = max(1, BLOCK // self.captured[self.op.inputs[0]].shape[-1])
        return [slice(start, min(start + step, width)) for start in range(0, width, step)]

    def weights(self, columns: slice) -> Mapping[str, np.ndarray]:
        """The weights of some columns of its result, by checkpoint name."""
        params, scope = self.loaded.params, self.op.name
        if self.op.kind == "head":
            part = {"wte": params["wte"][columns]}
        elif self.op.kind == "linear":
            part = {f"{scope}/{leaf}": params[f"{scope}/{leaf}"][..., columns] for leaf in "wb"}
        else:
            return self.params()
        return rounding.weights_at(part, self.loaded.target.dtype, self.held)

    def part(self, columns: slice) -> tuple[float, Evidence]:
        """The greatest error in some columns of its result, in rounding units, and its location."""
        exact, size = self.exact(self.inputs(), self.weights(columns))
        got = self.captured[self.op.name][..., columns]
        units = rounding.units(got, exact, size)
        if self.inherits_nan():  # what NaN reaches cannot be judged; the row reports that
            units[~np.isfinite(exact)] = 0
        worst = np.unravel_index(np.argmax(units), units.shape)  # of a NaN, if there is one
        row, position, column = (int(i) for i in worst)
        at = [row, position, column + (columns.start or 0)]
        return float(units[worst]), {"at": at, "got": float(got[worst]), "right": float(exact[worst])}

    def inherits_nan(self) -> bool:
        """Whether an input is not finite: then the operation cannot be judged."""
        return not all(np.isfinite(self.captured[name]).all() for name in self.op.inputs)

    def exact(
        self, inputs: list[np.ndarray], params: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The right result for these inputs, and its rounding bound, both [batch, n, width]."""
        hparams, tokens = self.loaded.hparams, self.record.tokens
        result = oracle.apply(self.op, inputs, params, hparams, tokens)
        roundoff = Roundoff.of(self.loaded.target.dtype)
        return result, rounding.bound(self.op, inputs, result, params, hparams, roundoff)

    def around(self) -> tuple[Any, ...]:
        """The operation and what was captured around it: the fields of mistakes/registry.py's Scene."""
        inputs, params = self.inputs(), self.params()
        exact, size = self.exact(inputs, params)
        taps = {
            name: np.asarray(value, np.float64)
            for name, value in self.captured.items()
            if value.shape == (inputs or [exact])[0].shape
        }
        got = np.asarray(self.captured[self.op.name], np.float64)
        hparams, tokens = self.loaded.hparams, self.record.tokens
        return self.op, inputs, got, exact, size, taps, params, hparams, tokens, self.cuts

    def segment(self) -> tuple[float, Evidence]:
        """The error of all operations since the nearest captured taps, in units of their noise."""
        dtype = self.loaded.target.dtype
        starts: list[str] = []
        exact = self.recompute(oracle.EXACT, starts)
        drawn = [
            self.recompute(noise.arithmetic(dtype, np.random.default_rng([0, draw])), [])
            for draw in range(SEGMENT_DRAWS)
        ]
        floor = dtypes.UNIT_ROUNDOFF[dtype] * float(np.abs(exact).max())
        unit = max(floor, *(max_abs(value, exact) for value in drawn))
        value = max_abs(self.captured[self.op.name], exact) / unit
        return value, {"recomputed_from": list(dict.fromkeys(starts))}

    def recompute(self, arithmetic: oracle.Arithmetic, starts: list[str]) -> np.ndarray:
        """The result [batch, n, width] from the nearest captured taps; their names go to starts."""
        loaded, tokens = self.loaded, self.record.tokens
        wanted, way = {self.op.name}, list[Op]()
        for op in reversed(graph(loaded.hparams.n_layer)):
            if op.name in wanted:
                way.insert(0, op)
                wanted.update(set(op.inputs) - self.captured.keys())
        starts += [name for op in way for name in op.inputs if name in self.captured]
        made: dict[str, np.ndarray] = {}
        for i, op in enumerate(way):
            inputs = [arithmetic.weight({**self.captured, **made}[name]) for name in op.inputs]
            made[op.name] = oracle.apply(op, inputs, loaded.params, loaded.hparams, tokens, arithmetic)
            later = {self.op.name, *(name for other in way[i + 1 :] for name in other.inputs)}
            made = {name: value for name, value in made.items() if name in later}
        return made[self.op.name]


def examine(scenes: list[Examined]) -> list[tuple[float, Evidence]]:
    """The greatest error of each in units, and its location.

    Operations that are judged alone run side by side, in blocks. Segments run one after the other: each
    may be a whole layer and need as much memory.
    """
    alone = [scene for scene in scenes if scene.judged_alone()]
    parts = [(scene, columns) for scene in alone for columns in scene.blocks()]
    results = iter(parallel.each(lambda part: part[0].part(part[1]), parts))

    def worst(scene: Examined) -> tuple[float, Evidence]:
        if not scene.judged_alone():
            return scene.segment()
        own = list(itertools.islice(results, len(scene.blocks())))
        return max(own, key=rounding.rank)

    return [worst(scene) for scene in scenes]
