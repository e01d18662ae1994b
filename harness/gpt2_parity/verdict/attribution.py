"""Which operation or mechanism introduces an error, apart from all that inherits it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from gpt2_parity.checks.registry import CHECKS, by_precedence
from gpt2_parity.contract.check import Implied
from gpt2_parity.contract.rows import Row

DECODE = " (decode)"  # after a scope that is right in prefill
AS_LARGE = 4  # times: two results, each as wrong as that, differ by twice as much, and some more


def blame(rows: list[Row]) -> list[Row]:
    """The rows of one target, each failure with what introduces its error.

    An operation that fails the local check introduces error, and every other failure inherits it. If
    there is none, the first failing mechanism is at fault: decode disagreeing with prefill, and so on,
    unless a mistake made in every layer explains the logits of a black box. Accepting bad tokens and
    computing too coarsely are faults of their own, whatever else is wrong. Rows that were lost with the
    process are evidence against nothing but the process.
    """
    failed = [row for row in rows if row.verdict == "fail" and row.status != "lost"]
    faulty = list(dict.fromkeys(blamed(row, rows) for row in failed if introduces(row)))
    faulty = faulty or mechanism(rows, failed)
    inherited = ", ".join(collapse(faulty, n_layer(rows)))

    def mark(row: Row) -> Row:
        if row.verdict != "fail":
            return row
        if row.status == "lost":
            return row._replace(blame="process")
        if introduces(row):
            return row._replace(blame=blamed(row, rows))
        return row._replace(blame=own_blame(row) or inherited)

    return [mark(row) for row in rows]


def n_layer(rows: Iterable[Row]) -> int:
    """How many layers the rows speak of."""
    scopes = {row.scope.partition("/")[0] for row in rows if row.scope[:1] == "h" and "/" in row.scope}
    return len(scopes)


def introduces(row: Row) -> bool:
    """A local failure that stands for its own operation: measured, or its tap never came."""
    if row.check != "local" or not row.scope or "inherited" in row.evidence:
        return False
    return row.status not in ("error", "lost") and row.evidence.get("reason") != "input_not_tapped"


def blamed(row: Row, rows: list[Row]) -> str:
    """The scope of a local failure, marked where the same operation is right in prefill."""
    if not row.metric.endswith("_decode"):
        return row.scope
    prefill = (row.check, row.scope, row.metric.removesuffix("_decode"))
    wrong = any((r.check, r.scope, r.metric) == prefill and r.verdict == "fail" for r in rows)
    return row.scope if wrong else row.scope + DECODE


def own_blame(row: Row) -> str:
    """What a failure is blamed on by itself; empty where it can be inherited."""
    check = CHECKS.get(row.check)
    own = check.own_blame.get(row.metric) if check else None
    if own is None or (own.needs_value and row.value is None):
        return ""
    return own.blame or row.scope


def mechanism(rows: list[Row], failed: list[Row]) -> list[str]:
    """The first failing mechanism that does not follow from another one, if there is one."""
    failed = [row for row in failed if row.check in CHECKS and CHECKS[row.check].blames]
    failed = without_auxiliary(rows, failed)
    # what never came is evidence against no mechanism, where there is any other
    came = [row for row in failed if row.scope and row.status not in ("missing", "error")]
    broken = {row.check for row in came or failed}
    logits = [row for row in came if row.check == "logits"]
    if "logits" in broken and (not came or any(row.status == "nan" for row in logits)):
        return ["logits"]  # nothing works; or NaN, which differs from itself, is in all that follows
    if any(row.check == "logits" and row.mistake for row in failed):
        return ["logits"]  # a black box whose mistake is known: the rest comes of that
    broken -= {name for name in broken if follows(name, rows, came, failed)}
    first = next((check for check in by_precedence() if check.name in broken), None)
    if first is None:
        return []
    scope = next((row.scope for row in came or failed if row.check == first.name), "")
    return [first.blames_by_scope.get(scope, first.blames)]


def without_auxiliary(rows: list[Row], failed: list[Row]) -> list[Row]:
    """Failures, less those on auxiliary models where the check of their sizes fails: they follow."""
    if not any(row.check == "sizes" for row in failed):
        return failed
    own = {row.case for row in rows if row.check == "logits"}
    return [row for row in failed if row.case in own or not CHECKS[row.check].auxiliary]


def follows(name: str, rows: list[Row], came: list[Row], failed: list[Row]) -> bool:
    """Whether a failing check follows from another one, in a way that it declares."""
    mine = [row for row in came if row.check == name]
    return any(
        all(not implied.scope or row.scope == implied.scope for row in mine)
        and all(not implied.metric or row.metric == implied.metric for row in mine)
        and WHEN[implied.when](implied, name, rows, came, failed)
        for implied in CHECKS[name].implied_by
    )


def _fails(implied: Implied, name: str, rows: list[Row], came: list[Row], failed: list[Row]) -> bool:
    return any(row.check in implied.by for row in came or failed)


def _everywhere(
    implied: Implied, name: str, rows: list[Row], came: list[Row], failed: list[Row]
) -> bool:
    wrong = {row.case for row in failed if row.check in implied.by}
    return wrong >= {row.case for row in rows if row.check in implied.by}


def _elsewhere(implied: Implied, name: str, rows: list[Row], came: list[Row], failed: list[Row]) -> bool:
    own = {row.case for row in rows if row.check == name}
    return any(row.check in implied.by and row.case not in own for row in came)


def _as_large(implied: Implied, name: str, rows: list[Row], came: list[Row], failed: list[Row]) -> bool:
    """Coarse arithmetic rounds otherwise wherever it is done in another order.

    Cases of several rows do not count: they show what crosses from one row to another as well.
    """
    several = {row.case for row in rows if row.check == "batch" and row.scope.startswith("row")}
    metrics = {row.metric for row in came if row.check == name}
    other = [row for row in came if row.check in implied.by and row.case not in several]
    most = max((row.value or 0.0 for row in other if row.metric in metrics), default=0.0)
    mine = [row.value for row in came if row.check == name]
    return bool(mine) and all(value is not None and value <= AS_LARGE * most for value in mine)


WHEN: dict[str, Callable[[Implied, str, list[Row], list[Row], list[Row]], bool]] = {
    "fails": _fails,
    "everywhere": _everywhere,
    "elsewhere": _elsewhere,
    "as large": _as_large,
}


def collapse(scopes: Iterable[str], layers: int) -> list[str]:
    """The same leaf in several layers as one: h*/mlp/gelu for all of them, h{1,2}/mlp/gelu for some."""
    leaves: dict[str, list[str]] = defaultdict(list)
    for scope in dict.fromkeys(scopes):
        layer = re.match(r"h(\d+)(?=[/ ]|$)", scope)
        leaves[scope[layer.end() :] if layer else scope].append(layer[1] if layer else "")
    return [
        leaf if not found[0] else f"h{_layers(found, layers)}{leaf}" for leaf, found in leaves.items()
    ]


def _layers(found: list[str], layers: int) -> str:
    if len(found) == 1:
        return found[0]
    return "*" if len(found) == layers else "{" + ",".join(sorted(found, key=int)) + "}"
