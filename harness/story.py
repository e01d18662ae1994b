"""A failure in words: what is wrong, where, by how much, how much is allowed, why, where to look."""

from collections import defaultdict
from collections.abc import Iterable

from harness.contract import kind_of
from harness.judge import Row, collapse, introduces

LOOK_AT = {
    "embedding": "the token and position lookup: wte[token] + wpe[position], counted on from the cache",
    "layer_norm": "the layer norm: biased variance, epsilon 1e-5 inside the root, then times g plus b",
    "linear": "this product: x @ w + b with w as [n_in, n_out], and the precision it is computed in",
    "attention": "the attention: q, k, v, heads apart, 1/sqrt(head), causal mask, softmax, merged",
    "add": "this residual addition: what is added to what",
    "gelu": "the activation between mlp/c_fc and mlp/c_proj: the tanh form of GELU",
    "head": "the logits: ln_f's result times wte transposed, for every position",
    "cache": "the KV cache: what is stored, at which position, and what new positions may see of it",
    "batch": "what crosses from one row of the batch to another",
    "tokens": "the guard against ids outside 0 to n_vocab - 1, empty input and more than n_ctx tokens",
    "determinism": "random numbers (dropout left on?), uninitialised memory, a result buffer used twice",
    "taps": "what the code does differently when it is being watched",
    "generate": "the implementation's own generate loop: what it feeds back, and when",
    "weights": "how the weights are loaded",
    "precision": "the precision of products: TF32, autocast and reduced-precision flags",
}


def tell(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Paragraphs by implementation and target, one for each thing that introduces error."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    layers = set()
    for row in rows:
        if row.scope[:1] == "h" and "/" in row.scope:
            layers.add(row.scope.partition("/")[0])
        if row.verdict == "fail":
            by_run["-".join(part for part in row[:3] if part)].append(row)
    return {name: paragraphs(failed, len(layers)) for name, failed in by_run.items()}


def paragraphs(failed: list[Row], n_layer: int) -> list[str]:
    """The failures of one run, those that introduce error first, then what inherits it."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    rest = []
    for row in failed:
        if introduces(row):
            decode = " (decode)" if row.blame.endswith("(decode)") else ""
            place = row.scope.partition("/")[2] or kind_of(row.scope)
            groups[place + decode, row.diagnosis.partition(":")[0]].append(row)
        else:
            rest.append(row)
    told = [operation(group, n_layer) for group in groups.values()]
    alone: dict[str, list[Row]] = defaultdict(list)
    for row in rest:
        if row.check in ("bad_tokens", "weights", "load", "process") or not told:
            alone[row.blame or row.check].append(row)
    told += [mechanism(blame, group) for blame, group in alone.items()]
    inherited = [row for row in rest if not any(row in group for group in alone.values())]
    if inherited:
        checks = ", ".join(dict.fromkeys(row.check.replace("_", " ") for row in inherited))
        told.append(f"{len(inherited)} more failures inherit it ({checks}).")
    return told


def operation(group: list[Row], n_layer: int) -> str:
    """One operation, in one or several layers, that computes wrongly from its own input."""
    worst = max(group, key=lambda row: -1.0 if row.value is None else row.value)
    scopes = ", ".join(collapse((row.blame for row in group), n_layer))
    where = f" (case {worst.case}, {worst.detail})" if worst.detail else f" (case {worst.case})"
    if worst.value is None:
        size = f"Its result is no number or never came at {worst.scope}{where}."
    else:
        unit = "its own noise" if worst.metric.startswith("segment") else "rounding units"
        size = (
            f"At worst, {worst.scope} is off by {worst.value:.3g} {unit}{where}; "
            f"honest rounding stays below {worst.limit:g}."
        )
    why = worst.diagnosis
    if " explains it: " in why:
        why = why.partition(": ")[2]  # without the mistake's name
    why = f" Why: {why}." if why else ""
    return (
        f"{scopes} introduces an error: it is wrong even given its own input. {size}{why} "
        f"Look at {LOOK_AT[kind_of(worst.scope)]}."
    )


def mechanism(blame: str, group: list[Row]) -> str:
    """A failure that no single operation explains."""
    worst = max(group, key=lambda row: -1.0 if row.value is None else row.value)
    where = " ".join(part for part in (worst.check.replace("_", " "), worst.case, worst.scope) if part)
    if worst.value is None:
        size = worst.detail
    else:
        measured = f"{worst.value:.3g} {worst.metric.replace('_', ' ')}"
        size = f"{measured}, allowed {worst.limit:g}. {worst.detail}"
    look = f" Look at {LOOK_AT[blame]}." if blame in LOOK_AT else ""
    count = f", in {len(group)} measurements" if len(group) > 1 else ""
    return f"{blame} is at fault{count}. At worst: {where}: {size.strip().rstrip('.')}.{look}"
