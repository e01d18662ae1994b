"""A failure in words: what is wrong, where, by how much, how much is allowed, why, where to look."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from gpt2_parity.contract.architecture import kind_of
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.verdict.attribution import (
    MECHANISMS,
    UNMEASURED,
    collapse,
    introduces,
    is_looked_up,
    is_nan,
)

LOOK_AT = {
    "embedding": "the token and position lookup: wte[token] + wpe[position], counted on from the cache",
    "layer_norm": "the layer norm: biased variance, epsilon 1e-5 inside the root, then times g plus b",
    "linear": "this product: x @ w + b with w as [n_in, n_out], and the precision it is computed in",
    "attention": "the attention: q, k, v, heads apart, 1/sqrt(head), causal mask, softmax, merged",
    "add": "this residual addition: what is added to what",
    "gelu": "the activation between mlp/c_fc and mlp/c_proj: the tanh form of GELU",
    "head": "the logits: ln_f's result times wte transposed, for every position",
    "cache": "the KV cache: what is stored, at which position, and what new positions may see of it",
    "causality": "the causal mask: scores of later positions must be hidden wholly (-inf, not -5)",
    "batch": "what crosses from one row of the batch to another",
    "tokens": "the guard against ids outside 0 to n_vocab - 1, empty input and more than n_ctx tokens",
    "determinism": "random numbers (dropout left on?), uninitialised memory, a result buffer used twice",
    "taps": "what the code does differently when it is being watched",
    "sizes": "sizes mixed up, or written down where hparams has them; ten layers and more, long texts, "
    "large ids",
    "overflow": "exp of large values: the greatest score comes off first, tanh is no quotient of exps, "
    "the mask is -inf; squares in float16",
    "generate": "the implementation's own generate loop: what it feeds back, and when",
    "gradients": "the way back: the mean over all predicted tokens, both uses of wte, what is cut off",
    "embed": "how both embeddings are loaded and looked up: every row of wte and wpe in its place",
    "precision": "the precision of products: TF32, autocast and reduced-precision flags",
    "lengths": "what is done for a single token, for n_ctx of them and for the last free place",
    "logits": "the forward pass; call tap in it, and the verdict can name the operation that is wrong",
}
SEVERAL = (
    "constants (epsilon, scale): every operation is within its own rounding, but together they are not"
)


class Finding(NamedTuple):
    """One thing that is wrong, in parts; ``text`` puts them together."""

    where: str  # the operation (h*/mlp/gelu) or the mechanism (cache) at fault; "" for what inherits
    claim: str
    size: str
    why: str  # the diagnosis; "" where none was looked for
    look: str  # where to look
    worst: Row | None  # the measurement that shows it best

    @property
    def text(self) -> str:
        """The paragraph."""
        why = f"Why: {self.why}." if self.why else ""
        look = f"Look at {self.look}." if self.look else ""
        lead = f"{self.where} {self.claim}".strip()
        return " ".join(part for part in (lead, self.size, why, look) if part)


def tell(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Paragraphs by implementation and target, one for each thing that introduces error."""
    return {name: [finding.text for finding in found] for name, found in findings(rows).items()}


def findings(rows: Iterable[Row]) -> dict[str, list[Finding]]:
    """What is wrong, by implementation and target: what introduces error comes first."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    layers = set()
    for row in rows:
        if row.scope[:1] == "h" and "/" in row.scope:
            layers.add(row.scope.partition("/")[0])
        if row.verdict == "fail":
            by_run[label(row)].append(row)
    return {name: found_in(failed, len(layers)) for name, failed in by_run.items()}


def found_in(failed: list[Row], n_layer: int) -> list[Finding]:
    """The findings of one run."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    rest = []
    ends = [row for row in failed if row.check == "process"]
    lost = [row for row in failed if ends and row.detail == f"missing: {ends[0].detail}"]
    for row in failed:
        if row in lost or row in ends:
            continue
        if introduces(row):
            decode = " (decode)" if row.blame.endswith("(decode)") else ""
            place = row.scope.partition("/")[2] or kind_of(row.scope)
            place += " segment" * is_segment(row)
            groups[place + decode, row.diagnosis.partition(":")[0]].append(row)
        else:
            rest.append(row)
    told = [crash(ends[0], lost)] if ends else []
    told += [operation(group, n_layer) for group in groups.values()]
    alone: dict[str, list[Row]] = defaultdict(list)
    inherited = []
    for row in rest:
        apart = row.check in ("bad_tokens", "load") or (row.check == "weights" and is_looked_up(row))
        if apart or not told:
            alone[row.blame or row.check].append(row)
        else:
            inherited.append(row)
    told += [mechanism(blame, group) for blame, group in alone.items()]
    if inherited:
        checks = ", ".join(dict.fromkeys(row.check.replace("_", " ") for row in inherited))
        claim = f"{len(inherited)} more failures inherit it ({checks})."
        told.append(Finding("", claim, "", "", "", None))
    return told


def crash(end: Row, lost: list[Row]) -> Finding:
    """The worker's end, with what was lost by it; checks run in the order of the rows."""
    told = " the check " in end.detail
    during = f" during the check {lost[0].check.replace('_', ' ')}" if lost and not told else ""
    claim = f"ended before it was done: {len(lost)} measurements are lost." if lost else "failed."
    return Finding("process", claim, f"It {end.detail}{during}.", "", "", end)


def is_segment(row: Row) -> bool:
    """Judged together with all that comes between the nearest taps before it and here."""
    return row.metric.startswith("segment")


def operation(group: list[Row], n_layer: int) -> Finding:
    """One operation (or segment) in one or several layers that computes wrongly from its own input."""
    worst = max(group, key=severity)
    scopes = ", ".join(collapse((row.blame for row in group), n_layer))
    where = f" (case {worst.case}, {worst.detail})" if worst.detail else f" (case {worst.case})"
    if worst.detail == UNMEASURED:
        claim = f"is promised, by TAPS or by the first call, but was not tapped (case {worst.case})."
        return Finding(scopes, claim, "", "", "", worst)
    if worst.value is None:
        size = f"Its result is no number or never came at {worst.scope}{where}."
    else:
        unit = "its own noise" if is_segment(worst) else "rounding units"
        size = (
            f"At worst, {worst.scope} is off by {worst.value:.3g} {unit}{where}; "
            f"honest rounding stays below {worst.limit:g}."
        )
    why = worst.diagnosis
    if " explains it: " in why:
        why = why.partition(": ")[2]  # without the mistake's name
    claim = "introduces an error: it is wrong even given its own input."
    look = LOOK_AT[kind_of(worst.scope)]
    if is_segment(worst):  # its last operation need not be the one
        claim = (
            "is wrong: something between the nearest taps before it and this one introduces an error."
        )
        look = (
            "all that lies between; tap more of it, and the verdict can name the operation that is wrong"
        )
    return Finding(scopes, claim, size, why, look, worst)


def severity(row: Row) -> float:
    """NaN is worse than any number, and what never came shows least."""
    if is_nan(row):
        return math.inf
    return -1.0 if row.value is None else row.value


def mechanism(blame: str, group: list[Row]) -> Finding:
    """A failure that no single operation explains, shown by the check that it is named after."""
    telling = [row for row in group if MECHANISMS.get(row.check) == blame] or group
    worst = max(telling, key=severity)
    if worst.check == "load":
        return Finding("", f"It could not be started: {worst.detail.rstrip('.')}.", "", "", "", worst)
    where = " ".join(part for part in (worst.check.replace("_", " "), worst.case, worst.scope) if part)
    if worst.value is None:
        size = worst.detail
    else:
        measured = f"{worst.value:.3g} {worst.metric.replace('_', ' ')}"
        size = f"{measured}, allowed {worst.limit:g}. {worst.detail}"
    why = next((row.diagnosis for row in [worst, *group] if row.diagnosis), "")
    count = f", in {len(group)} measurements" if len(group) > 1 else ""
    size = f"At worst: {where}: {size.strip().rstrip('.')}."
    look = LOOK_AT.get(blame, "")
    if blame in ("logits", "activations") and any(row.check == "activations" for row in group):
        look = SEVERAL  # it is tapped, and no operation was found wrong
    return Finding(blame, f"is at fault{count}.", size, why, look, worst)
