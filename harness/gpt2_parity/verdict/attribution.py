"""Which operation or mechanism introduces an error, apart from all that inherits it."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

from gpt2_parity.checks import batch
from gpt2_parity.contract.plan import Key
from gpt2_parity.contract.rows import Row
from gpt2_parity.implementation import auxiliary_models

UNMEASURED = "missing: promised, but never tapped or measured"


def untapped(check: str, key: Key, tapped: Collection[str]) -> str:
    """Why an operation was not examined where nothing broke off: its tap is lacking, or an input's."""
    if check == "local" and key[1] in {*tapped, "logits"}:
        return "an input of it was not tapped"
    return UNMEASURED.removeprefix("missing: ")


NAN = "NaN"  # what the detail of such a measurement begins with

# Where no operation is at fault by itself, the failing check names the mechanism that is.
MECHANISMS = {
    "determinism": "determinism",
    "taps": "taps",
    "weights": "embed",
    "causality": "causality",  # of prefill, as most of batch is: no cache can fail it
    "batch": "batch",
    "kv_cache": "cache",
    "lengths": "lengths",
    "greedy": "generate",
    "logits": "logits",
    "activations": "activations",
    "gradients": "gradients",
    "sizes": "sizes",
    "overflow": "overflow",
    "bad_tokens": "tokens",
}


def blame(rows: list[Row], lost: str = "") -> list[Row]:
    """The rows of one target, failures marked with what introduces the error.

    lost: the detail of rows that the end of the process took along; they are no evidence against
    anything but the process.

    An operation that fails the local check introduces error, and every other failure inherits it. If
    there is none, the first failing mechanism is at fault: decode disagreeing with prefill, and so on,
    unless a mistake made in every layer explains the logits of a black box.
    Accepting bad tokens and computing too coarsely are faults of their own, whatever else is wrong.
    """
    failed = [row for row in rows if row.verdict == "fail" and not (lost and row.detail == lost)]
    faulty = list(dict.fromkeys(blamed(row, rows) for row in failed if introduces(row)))
    faulty = faulty or mechanism(rows, failed)
    layers = {row.scope.partition("/")[0] for row in rows if row.scope[:1] == "h" and "/" in row.scope}
    inherited = ", ".join(collapse(faulty, len(layers)))

    def mark(row: Row) -> Row:
        if row.verdict != "fail":
            return row
        if lost and row.detail == lost:
            return row._replace(blame="process")
        own = {"weights": row.scope or "embed"} if is_looked_up(row) else {}
        if row.value is not None:  # of a product of NaN there is no precision to find fault with
            own |= {"precision": row.scope}
            own |= {"bad_tokens": "tokens"} if row.metric == "accepted" else {}
        if introduces(row):
            own["local"] = blamed(row, rows)
        return row._replace(blame=own.get(row.check, inherited))

    return [mark(row) for row in rows]


def mechanism(rows: list[Row], failed: list[Row]) -> list[str]:
    """The first failing mechanism that does not follow from another one, where there is any."""
    failed = [row for row in failed if row.check in MECHANISMS]
    if any(row.check == "sizes" for row in failed):  # then generate and gradients of such models follow
        others = auxiliary_models.OTHERS
        failed = [row for row in failed if row.check == "sizes" or row.case not in others]
    # what never came is evidence against no mechanism, where there is any other
    came = [row for row in failed if row.scope and not row.detail.startswith("missing: ")]
    broken = {row.check for row in came or failed}
    logits = [row for row in came if row.check == "logits"]
    if logits and not any(row.check == "weights" and is_looked_up(row) for row in came):
        broken -= {"weights"}  # seen in logits only, which are wrong on the usual tokens as well
    if "logits" in broken and (not came or any(is_nan(row) for row in logits)):
        return ["logits"]  # nothing works, or NaN, which differs from itself, is in all that follows
    if any(row.check == "logits" and " explains it: " in row.diagnosis for row in failed):
        return ["logits"]  # a black box whose mistake is known: the rest comes of that
    broken -= follows(rows, came, failed) | no_worse_than_alone(rows, came)
    found = next(([what] for check, what in MECHANISMS.items() if check in broken), [])
    return [wrong_first(came or failed)] if found == ["generate"] else found


def follows(rows: list[Row], came: list[Row], failed: list[Row]) -> set[str]:
    """The checks that fail only because another one does."""
    found: set[str] = set()
    wrong = {row.case for row in failed if row.check == "logits"}
    if wrong >= {row.case for row in rows if row.check == "logits"}:
        found |= {"lengths", "greedy"}  # where all logits are wrong
    longest = {row.case for row in rows if row.check == "lengths"}
    if any(row.check in ("logits", "activations") and row.case not in longest for row in came):
        found |= {"lengths"}  # it is not the length that makes them wrong
    through_the_cache = all(r.scope == batch.IN_CHUNKS for r in came if r.check == "batch")
    if through_the_cache and any(row.check == "kv_cache" for row in came or failed):
        found |= {"batch"}  # rows are right side by side until they go through the cache
    return found


AS_MUCH = 4  # times: two results, each as wrong as that, differ by twice as much, and some more


def no_worse_than_alone(rows: list[Row], came: list[Row]) -> set[str]:
    """Of batch and kv_cache, which differ no more than the logits of single rows are wrong already.

    Coarse arithmetic rounds otherwise wherever it is done in another order.
    """
    several = {row.case for row in rows if row.check == "batch" and row.scope.startswith("row")}
    alone = [
        row.value or 0.0
        for row in came
        if row.check == "logits" and row.metric == "noise_units" and row.case not in several
    ]
    differ = {
        check: [row.value for row in came if row.check == check] for check in ("batch", "kv_cache")
    }
    most = AS_MUCH * max(alone, default=0.0)
    return {
        check
        for check, values in differ.items()
        if values and all(value is not None and value <= most for value in values)
    }


def is_looked_up(row: Row) -> bool:
    """Not through the logits of a black box, to which everything adds."""
    return row.metric != "noise_units"


def is_nan(row: Row) -> bool:
    return row.detail.startswith(NAN)


def wrong_first(failed: list[Row]) -> str:
    """Where greedy decoding goes wrong first: in prefill, through the cache, or in a loop of its own."""
    scope = next(row.scope for row in failed if row.check == "greedy")
    return {"teacher_forced": "logits", "free_running": "cache"}.get(scope, "generate")


def introduces(row: Row) -> bool:
    """A local failure that stands for its own operation: measured, or its tap never came."""
    if row.check != "local" or not row.scope or row.diagnosis.startswith("inherited"):
        return False
    return row.value is not None or not row.detail.startswith("missing: ") or row.detail == UNMEASURED


def blamed(row: Row, rows: list[Row]) -> str:
    """The scope of a local failure; "(decode)" where the same operation is right in prefill."""
    if not row.metric.endswith("_decode"):
        return row.scope
    prefill = (row.check, row.scope, row.metric.removesuffix("_decode"))
    wrong = any((r.check, r.scope, r.metric) == prefill and r.verdict == "fail" for r in rows)
    return row.scope if wrong else f"{row.scope} (decode)"


def collapse(scopes: Iterable[str], n_layer: int) -> list[str]:
    """The same leaf in several layers as one: h*/mlp/gelu for all of them, h{1,2}/mlp/gelu for some."""
    leaves: dict[str, list[str]] = defaultdict(list)
    for scope in dict.fromkeys(scopes):
        layer = re.match(r"h(\d+)(?=[/ ]|$)", scope)
        leaves[scope[layer.end() :] if layer else scope].append(layer[1] if layer else "")
    return [
        leaf if not found[0] else f"h{_layers(found, n_layer)}{leaf}" for leaf, found in leaves.items()
    ]


def _layers(found: list[str], n_layer: int) -> str:
    if len(found) == 1:
        return found[0]
    return "*" if len(found) == n_layer else "{" + ",".join(sorted(found, key=int)) + "}"
