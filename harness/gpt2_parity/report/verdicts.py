"""Which implementations are right: each target, the headline of the run, and the matrix of checks."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gpt2_parity.contract.rows import Row, exit_code, label
from gpt2_parity.report import results
from gpt2_parity.report.cells import Cell, anchor, severity, shaded, times
from gpt2_parity.report.operations import Heat, heat
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.attribution import introduced, introduces

STATES = {  # state -> sign, text; in the order in which the page shows them
    "wrong": ("✘", "wrong"),
    "crashed": ("✘", "crashed"),
    "open": ("?", "no verdict"),
    "skipped": ("-", "skipped"),
    "right": ("✔", "right"),
}
VERBS = {"wrong": ("is ", "are "), "crashed": ("", ""), "open": ("has ", "have ")}
VERBS |= {"skipped": ("was ", "were ")}  # before the text of a state, in singular and plural


class TargetSection(NamedTuple):
    """One implementation on one target: everything that the page shows about it."""

    label: str
    style: int  # of its lines and bars
    state: str
    counts: str
    share: str  # the share of its limit that the worst measurement used, and where
    findings: list[explain.Finding]
    heat: Heat | None
    failures: list[tuple[str, str, str]]  # permalink, where, what
    more: int  # failures that are not listed
    rows: list[Row]


def targets(rows: Sequence[Row]) -> list[TargetSection]:
    """All implementations on all targets, in the order of the rows."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row)
    findings = explain.findings(rows)
    found = []
    for style, (who, own) in enumerate(by_label.items()):
        failed = [row for row in own if row.verdict == "fail"]
        failed.sort(key=lambda row: (introduces(row), severity(row)), reverse=True)
        listed = [
            (anchor(row), explain.location(row), explain.measured_and_seen(row))
            for row in failed[: results.MOST]
        ]
        more = len(failed) - len(listed)
        found.append(
            TargetSection(
                who, style, state_of(own), results.headline(own), share(own),
                findings.get(who, []), heat(own), listed, more, own,
            )
        )  # fmt: skip
    return found


def state_of(rows: list[Row]) -> str:
    """right, wrong, crashed, skipped, or open (the rows decide nothing)."""
    if any(row.verdict == "fail" and row.check in ("process", "load") for row in rows):
        return "crashed"
    if {row.verdict for row in rows} == {"skipped"}:
        return "skipped"
    return ("right", "wrong", "open")[exit_code(rows)]


def headline(states: Mapping[str, str]) -> str:
    """The verdict on the whole run as a sentence, from the state of each implementation."""
    total = len(states)
    if not total:
        return "Nothing was judged"
    counts = Counter(states.values())
    if counts["right"] == total:
        return {1: "It is right", 2: "Both are right"}.get(total, f"All {total} are right")
    parts: list[str] = []
    for state in STATES:
        if state != "right" and (n := counts[state]):
            one, several = VERBS[state]
            who = "It" if total == 1 else f"{n} of {total}" if not parts else str(n)
            parts.append(f"{who} {several if n > 1 else one}{STATES[state][1]}")
    return ", ".join(parts)


def worst(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The worst state of each name, the worst names first."""
    order = list(STATES)
    found: dict[str, str] = {}
    for name, state in pairs:
        found[name] = min(found.get(name, state), state, key=order.index)
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[1])))


def share(rows: list[Row]) -> str:
    """The worst measurement: the share of its limit that it used, its check, case and scope."""
    judged = [row for row in rows if row.verdict in ("pass", "fail")]
    if not judged:
        return explain.detail(rows[0])
    ends = [row for row in judged if row.check in ("process", "load")]
    causes = introduced(row for row in judged if row.verdict == "fail")
    row = max(ends or causes or judged, key=severity)
    check, case = row.check.replace("_", " "), row.case if row.case != row.check else ""
    if math.isinf(severity(row)):
        return f"{check}: {explain.detail(row)}"
    return f"{times(severity(row))}: {' '.join(filter(None, (check, case, row.scope)))}"


def matrix(found: Sequence[TargetSection]) -> list[tuple[TargetSection, list[Cell]]]:
    """Targets x checks, with the same cells as report.md."""
    names = results.columns(row for target in found for row in target.rows)
    cells = results.grid(row for target in found for row in target.rows)
    return [(target, [shaded(cells[target.label].get(name, "")) for name in names]) for target in found]
