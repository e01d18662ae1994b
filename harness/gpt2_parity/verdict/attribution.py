"""Find the operation or mechanism that introduces an error, apart from the failures that inherit it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from gpt2_parity.checks.registry import CHECKS, by_precedence
from gpt2_parity.contract.architecture import kind_of
from gpt2_parity.contract.check import Implied
from gpt2_parity.contract.rows import Row
from gpt2_parity.mistakes.registry import broken_by

LOCAL = ("local", "search")  # checks that judge each operation given its own input
DECODE = " (decode)"  # after a scope that is right in prefill
AS_LARGE = 4  # times: two results that are each off by x differ by up to 2 x; the rest is margin


def blame(rows: list[Row]) -> list[Row]:
    """The rows of one target, with the field blame filled in for each failure.

    An operation that fails the local check introduces an error, and every other failure inherits it. If
    no operation fails, the first failing mechanism is at fault, such as decode disagreeing with prefill.
    The exception is a black box whose logits are explained by a known mistake in every layer: then
    "logits" is at fault. Accepting bad tokens and computing too coarsely are always faults of their own;
    so are causality and batch if the known mistake of an operation is that positions or rows mix in it.
    Rows that were lost when the process ended blame only the process.
    """
    failed = [row for row in rows if row.verdict == "fail" and row.status != "lost"]
    at_fault = introduced(failed)
    faulty = list(dict.fromkeys(blamed(row, rows) for row in at_fault))
    faulty = faulty or mechanism(rows, failed)
    inherited = ", ".join(collapse(faulty, n_layer(rows)))
    own, which = broken(failed), {id(row) for row in at_fault}

    def mark(row: Row) -> Row:
        if row.verdict != "fail":
            return row
        if row.status == "lost":
            return row._replace(blame="process")
        if id(row) in which:
            return row._replace(blame=blamed(row, rows))
        apart = CHECKS[row.check].blames if row.check in own else ""
        return row._replace(blame=own_blame(row) or apart or inherited)

    return [mark(row) for row in rows]


def introduced(failed: Iterable[Row]) -> list[Row]:
    """The failures that introduce an error; those of a search only if no listed case shows any."""
    found = [row for row in failed if introduces(row)]
    listed = [row for row in found if row.check == "local"]
    return listed or found


def broken(failed: Sequence[Row]) -> set[str]:
    """The checks whose failures are no consequence of an operation's wrong values.

    A known mistake says so. If none is known, causality is: an operation that reads one position cannot
    pass on anything of later ones, so only attention could be at fault for it.
    """
    own = broken_by({row.mistake for row in failed if row.mistake})
    wrong = [row for row in failed if introduces(row)]
    if wrong and not any(row.mistake or may_attend(row) for row in wrong):
        own.add("causality")
    return own


def may_attend(row: Row) -> bool:
    """Whether the operation of a local failure is attention, or a segment, which may contain it."""
    return row.metric.startswith("segment") or kind_of(row.scope) == "attention"


def n_layer(rows: Iterable[Row]) -> int:
    """The number of layers that appear in the rows."""
    return len({layer[0] for row in rows if (layer := re.match(r"h\d+(?=/)", row.scope))})


def introduces(row: Row) -> bool:
    """Whether a row is a failure of its own operation: measured, or its tap is missing."""
    if row.check not in LOCAL or not row.scope or "inherited" in row.evidence:
        return False
    if row.check == "search" and row.metric != "rounding_units":
        return False
    return row.status not in ("error", "lost") and row.evidence.get("reason") != "input_not_tapped"


def blamed(row: Row, rows: list[Row]) -> str:
    """The scope of a local failure, with DECODE appended if the same operation is right in prefill."""
    if not row.metric.endswith("_decode"):
        return row.scope
    prefill = (row.check, row.scope, row.metric.removesuffix("_decode"))
    wrong = any((r.check, r.scope, r.metric) == prefill and r.verdict == "fail" for r in rows)
    return row.scope if wrong else row.scope + DECODE


def own_blame(row: Row) -> str:
    """What a failure is blamed on whatever else fails; "" if it can be inherited."""
    check = CHECKS.get(row.check)
    own = check.own_blame.get(row.metric) if check else None
    if own is None or (own.needs_value and row.value is None):
        return ""
    return own.blame or row.scope


def mechanism(rows: list[Row], failed: list[Row]) -> list[str]:
    """The first failing mechanism that does not follow from another one, as a list of one or none."""
    failed = [row for row in failed if row.check in CHECKS and CHECKS[row.check].blames]
    failed = without_auxiliary(rows, failed)
    # a missing measurement is evidence only if nothing else failed
    came = [row for row in failed if row.scope and row.status not in ("missing", "error")]
    broken = {row.check for row in came or failed}
    logits = [row for row in came if row.check == "logits"]
    if "logits" in broken and (not came or any(row.status == "nan" for row in logits)):
        return ["logits"]  # nothing works, or NaN (which differs from itself) fails every later check
    if any(row.check == "logits" and row.mistake for row in failed):
        return ["logits"]  # a black box whose mistake is known: the rest follows from it
    broken -= {name for name in broken if follows(name, rows, came, failed)}
    first = next((check for check in by_precedence() if check.name in broken), None)
    if first is None:
        return []
    scope = next((row.scope for row in came or failed if row.check == first.name), "")
    return [first.blames_by_scope.get(scope, first.blames)]


def without_auxiliary(rows: list[Row], failed: list[Row]) -> list[Row]:
    """Failures; if the check sizes fails, without those on auxiliary models, which follow from it."""
    if not any(row.check == "sizes" for row in failed):
        return failed
    own = {row.case for row in rows if row.check == "logits"}
    return [row for row in failed if row.case in own or not CHECKS[row.check].auxiliary]


def follows(name: str, rows: list[Row], came: list[Row], failed: list[Row]) -> bool:
    """Whether a failing check follows from another one, by its declaration implied_by."""
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
    """Whether the errors are no larger than coarse arithmetic in another order explains.

    Cases with several batch rows do not count: they also show leaks from one row to another.
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
    """Scopes with equal leaves merged: h*/mlp/gelu for all layers, h{1,2}/mlp/gelu for some."""
    leaves: dict[str, list[str]] = defaultdict(list)
    for scope in dict.fromkeys(scopes):
        layer = re.match(r"h(\d+)(?=[/ ]|$)", scope)
        leaves[scope[layer.end() :] if layer else scope].append(layer[1] if layer else "")
    return [
        leaf if not numbers[0] else f"h{_layers(numbers, layers)}{leaf}"
        for leaf, numbers in leaves.items()
    ]


def _layers(numbers: list[str], layers: int) -> str:
    if len(numbers) == 1:
        return numbers[0]
    return "*" if len(numbers) == layers else "{" + ",".join(sorted(numbers, key=int)) + "}"
