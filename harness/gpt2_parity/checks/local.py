"""Every operation is right, given its own input: errors in rounding units of that operation.

An operation that only inherits an error is right given its wrong input (implementation/operation.py), so
an operation that fails here introduces the error. Prefill is examined, and decode through the cache.
Failures are diagnosed in this check.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gpt2_parity.contract.architecture import Op
from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import Limit
from gpt2_parity.contract.plan import NO_CACHE, CaseShape, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts
from gpt2_parity.implementation.operation import Examined, examine, judged, needed
from gpt2_parity.mistakes import matching
from gpt2_parity.mistakes.registry import FEW, Match, Scene
from gpt2_parity.reference import rounding
from gpt2_parity.reference.records import shape_of

LONG = 64  # a longer case is examined in prefill only
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


def expected(plan: Plan) -> Iterable[Key]:
    return [
        (case.name, op.name, metric + mode)
        for case in plan.cases
        for mode in modes(case, plan)
        for op, metric in judged(plan.taps, plan.hparams.n_layer)
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
                for op, metric in judged(plan.taps, plan.hparams.n_layer)
                if all(name in captured for name in needed(op, metric))
            ]
            anew = bool(cuts) and loaded.tokens_are_the_cache(run, record.tokens)
            for scene, worst in zip(scenes, examine(scenes), strict=True):
                found = finding(scene, *worst, diagnosed)
                if anew and scene.op.kind == "attention":
                    found.evidence["cache_is_tokens"] = True
                if found.value <= found.most:
                    yield found.measurement
                else:
                    failures.append(found)
    yield from conclude(failures)


def finding(scene: Examined, value: float, evidence: Evidence, diagnosed: dict[str, int]) -> LocalResult:
    """The finding for an operation's greatest error. The first EXAMPLES failures are diagnosed."""
    scene, value, evidence = scene.settled(value, evidence)
    left = {}
    kind = (scene.op.name.partition("/")[2] or scene.op.kind) + scene.metric
    if scene.judged_alone() and value > scene.most and diagnosed[kind] < EXAMPLES:
        diagnosed[kind] += 1
        left = matching.explain(Scene(*scene.around()))
    positions = scene.record.tokens.size
    return LocalResult(
        scene.record.name, scene.op, scene.metric, value, evidence, scene.most, left, positions
    )


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
