"""Every operation is right, given its own input: errors in rounding units of that operation.

The result of each operation is recomputed in float64 from the implementation's own captured input, and
the difference is divided by the rounding bound at the declared precision (reference/rounding.py). An
operation that only inherits an error is right given its wrong input, so an operation that fails here
introduces the error. Prefill is examined, and decode through the cache.

If an input is not tapped, the longer segment from the nearest captured taps is recomputed, and its error
is given in noise units of that segment. Failures are diagnosed in this check.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import Op, graph
from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import Limit
from gpt2_parity.contract.plan import NO_CACHE, CaseShape, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts
from gpt2_parity.mistakes import matching
from gpt2_parity.mistakes.registry import FEW, Match, Scene
from gpt2_parity.reference import noise, oracle, parallel, rounding
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.records import Record, shape_of
from gpt2_parity.reference.rounding import Roundoff

LONG = 64  # a longer case is examined in prefill only
BLOCK = 2_500_000  # elements of a weight converted to float64 at a time (all of 124M's c_fc)
SEGMENT_DRAWS = 3
INHERITED = {"inherited": "input_not_finite"}
FALL = 3.0  # the factor by which a mistake that explains an error must at least reduce it
EXAMPLES = 4  # failures of one operation, over all layers, that are diagnosed; the rest share the result


class LocalResult(NamedTuple):
    """One measured operation, and what is left of its error under each known mistake."""

    case: str
    op: Op
    metric: str
    value: float
    evidence: Evidence
    most: float  # the limit of the value
    left: dict[str, float]  # by mistake, in rounding units
    positions: int  # in all rows of the batch together

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.case, self.op.name, self.metric, self.value, self.evidence)


def modes(case: CaseShape, plan: Plan) -> dict[str, list[int]]:
    """The ways to run a case, by suffix of the metric: the cuts of the tokens, none for prefill.

    Without a cache, attention in decode reads keys that it has computed anew, not those tapped before.
    """
    decodes = 2 <= case.n <= LONG and plan.cache != NO_CACHE
    return {"": []} | ({"_decode": chunk_cuts(case.n)} if decodes else {})


def judged(plan: Plan) -> list[tuple[Op, str]]:
    """The operations whose result is captured, each with its metric."""
    if not plan.taps:
        return []
    known = {*plan.taps, "logits"}
    return [
        (op, "rounding_units" if known.issuperset(op.inputs) else "segment_noise_units")
        for op in graph(plan.hparams.n_layer)
        if op.name in known
    ]


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case.name, op.name, metric + mode)
        for case in plan.cases
        for mode in modes(case, plan)
        for op, metric in judged(plan)
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    failures: list[LocalResult] = []  # yielded last: failures of one kind share a diagnosis
    diagnosed: dict[str, int] = defaultdict(int)
    for record in loaded.records:
        for mode, cuts in modes(shape_of(record), plan).items() if plan.taps else ():
            run = loaded.decode(record, cuts) if cuts else loaded.prefill(record)
            captured = run.taps | {"logits": run.logits}
            scenes = [
                Examined(loaded, record, captured, op, metric + mode, tuple(cuts))
                for op, metric in judged(plan)
                if all(name in captured for name in needed(op, metric))
            ]
            anew = bool(cuts) and loaded.tokens_are_the_cache(run, record.tokens)
            for scene, worst in zip(scenes, examine(scenes), strict=True):
                finding = scene.finding(*worst, diagnosed)
                if anew and scene.op.kind == "attention":
                    finding.evidence["cache_is_tokens"] = True
                if finding.value <= finding.most:
                    yield finding.measurement
                else:
                    failures.append(finding)
    yield from conclude(failures)


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

    def finding(self, value: float, evidence: Evidence, diagnosed: dict[str, int]) -> LocalResult:
        """The finding for its greatest error, in units; the first EXAMPLES failures are diagnosed."""
        most = rounding.LIMITS.of(self.op.kind, self.loaded.target.dtype).most
        if self.judged_alone() and value > most / 2 and (others := self.others()):
            tried = zip(others, examine(others), strict=True)
            other, worst = min(tried, key=lambda each: rounding.rank(each[1]))
            if worst[0] <= min(most, value):
                return other.finding(*worst, diagnosed)
        if self.judged_alone() and value <= most and self.inherits_nan():
            value, evidence = math.nan, dict(INHERITED)
        left = {}
        kind = (self.op.name.partition("/")[2] or self.op.kind) + self.metric
        if self.judged_alone() and value > most and diagnosed[kind] < EXAMPLES:
            diagnosed[kind] += 1
            left = matching.explain(self.scene())
        positions = self.record.tokens.size
        return LocalResult(
            self.record.name, self.op, self.metric, value, evidence, most, left, positions
        )

    def others(self) -> list["Examined"]:
        """The same operation, by other honest ways to compute it at the declared dtype."""
        if (self.held, self.cast) != ("all", False) or self.op.kind in ("attention", "gelu", "add"):
            return []
        held = rounding.ways(self.loaded.target.dtype)[1:]
        other = [self._replace(held=each) for each in held]
        if held and self.op.kind in ("linear", "head"):  # the tap may be of the input before it is cast
            other += [self._replace(held=each, cast=True) for each in ("all", "matrices")]
        return other

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

    def scene(self) -> Scene:
        """The operation and what was captured around it, for the diagnosis."""
        inputs, params = self.inputs(), self.params()
        exact, size = self.exact(inputs, params)
        taps = {
            name: np.asarray(value, np.float64)
            for name, value in self.captured.items()
            if value.shape == (inputs or [exact])[0].shape
        }
        return Scene(
            self.op,
            inputs,
            np.asarray(self.captured[self.op.name], np.float64),
            exact,
            size,
            taps,
            params,
            self.loaded.hparams,
            self.record.tokens,
            self.cuts,
        )

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


def conclude(findings: list[LocalResult]) -> Iterator[Measurement]:
    """Failures, with the mistake that explains all failures of an operation, over all layers and cases.

    If none does, each layer is asked for the mistake that explains all failures there.
    """
    for group in grouped(findings, place_of):
        whole = agree(group)
        for part in [group] if whole.explains else grouped(group, lambda finding: finding.op.name):
            agreed = whole if whole.explains else agree(part)
            yield from (conclusion(finding, agreed) for finding in part)


def grouped(
    findings: list[LocalResult], key: Callable[[LocalResult], str]
) -> Iterable[list[LocalResult]]:
    groups: dict[str, list[LocalResult]] = defaultdict(list)
    for finding in findings:
        groups[key(finding)].append(finding)
    return groups.values()


def place_of(finding: LocalResult) -> str:
    """The group of a finding: its operation, over all layers; prefill and decode are separate."""
    leaf = finding.op.name.partition("/")[2] or finding.op.kind
    return f"{leaf} {finding.metric}"


def agree(group: list[LocalResult]) -> Match:
    """The mistake that leaves the least error over all findings, and whether it explains each of them.

    If several are as good, the first registered wins: specific ones come before general ones.
    """
    tried = [finding for finding in group if finding.left]
    telling = [finding for finding in tried if finding.positions >= FEW] or tried
    if not telling:
        return Match("", False, math.nan, math.nan)
    names = [name for name in telling[0].left if all(name in finding.left for finding in telling)]
    worst = {name: max(finding.left[name] for finding in telling) for name in names}
    least = min(worst.values(), default=math.inf)
    name = next((name for name in names if worst[name] <= 1.2 * least + 0.1), "")
    all_of_them = bool(name) and all(explains(finding, finding.left[name]) for finding in telling)
    return Match(name, all_of_them, max(finding.value for finding in telling), least)


def conclusion(finding: LocalResult, agreed: Match) -> Measurement:
    """A failure with the mistake that its group agrees on. What inherits NaN has none."""
    if not finding.value > finding.most:
        return finding.measurement
    after = finding.left.get(agreed.name, agreed.after) if agreed.explains else agreed.after
    return agreed._replace(before=finding.value, after=after).on(finding.measurement)


def explains(finding: LocalResult, after: float) -> bool:
    """Whether the error falls to rounding level, or nearly so from orders of magnitude above it."""
    most, before = finding.most, finding.value
    return (after <= most and after <= before / FALL) or (after <= 8 * most and after <= before / 100)


LOOK_AT = {
    "embedding": "the token and position lookup: wte[token] + wpe[position], and how positions continue "
    "from the cache",
    "layer_norm": "the layer norm: biased variance, epsilon 1e-5 inside the root, then times g plus b",
    "linear": "this product: x @ w + b with w as [n_in, n_out], and the precision it is computed in",
    "attention": "the attention: the split into q, k, v and heads, 1/sqrt(head), causal mask, softmax, "
    "merge",
    "add": "this residual addition: which two results it adds",
    "gelu": "the activation between mlp/c_fc and mlp/c_proj: the tanh form of GELU",
    "head": "the logits: ln_f's result times wte transposed, for every position",
}
CHECK = Check(
    name="local",
    establishes="every operation is right given its own input, in prefill and in decode",
    expected=expected,
    measure=measure,
    limits={
        "rounding_units": rounding.LIMITS,
        "segment_noise_units": Limit(
            8.0,
            "Noise units of the segment, from three draws: as for logits, honest runs are at about 1.",
        ),
    },
    after="activations",
    look_at_by_kind=LOOK_AT,
)
