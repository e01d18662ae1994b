"""Every measurement as a line with a permalink, and the command that makes its check again.

The page filters the lines by style sheet alone: radio buttons and :has(), no script.
"""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.report import results
from gpt2_parity.report.cells import anchor, number, severity
from gpt2_parity.report.operations import split
from gpt2_parity.report.runs import Run, merge
from gpt2_parity.report.verdicts import TargetSection
from gpt2_parity.verdict import explain

MOST = 2400  # lines of a page, failures first; results.json has every row
LEAST = results.MOST  # lines of each target at least: its listed failures are among them
SIGNS = {"fail": "✘ ", "pass": ""}


class MeasuredLine(NamedTuple):
    """One measurement."""

    anchor: str
    name: str  # case and scope
    metric: str
    value: str
    limit: str
    classes: str  # fails, and its layer: L3, or L for outside the blocks


class Part(NamedTuple):
    """The measurements of one check on one target."""

    column: int  # of the check among all on the page
    name: str
    command: str  # makes this check again, alone; "" if no command can
    lines: list[MeasuredLine]


class TargetMeasurements(NamedTuple):
    """All measurements of one target."""

    label: str
    counts: str
    bad: bool
    parts: list[Part]
    more: int  # measurements that are not listed


def measurements(found: Sequence[TargetSection], again: Mapping[str, str]) -> list[TargetMeasurements]:
    """The lines of each target by check. again: see commands."""
    checks = columns(found)
    most = max(LEAST, MOST // max(1, len(found)))
    return [listed(target, checks, again.get(target.label, ""), most) for target in found]


def columns(found: Sequence[TargetSection]) -> list[str]:
    """The checks on the page."""
    return results.columns(row for target in found for row in target.rows)


def layers(found: Sequence[TargetSection]) -> list[int]:
    """The layers that measurements on the page belong to."""
    scopes = {row.scope for target in found for row in target.rows}
    return sorted({layer for scope in scopes if (layer := split(scope)[0]) is not None})


def listed(target: TargetSection, checks: Sequence[str], again: str, most: int) -> TargetMeasurements:
    """The lines of one target: its failures, and what comes nearest to its limit."""
    rows = sorted(target.rows, key=lambda row: (row.verdict == "fail", severity(row)), reverse=True)
    by_check: dict[str, list[MeasuredLine]] = defaultdict(list)
    seen: set[str] = set()
    for row in rows[:most]:
        if (name := anchor(row)) not in seen:  # of several with one name, the worst
            seen.add(name)
            by_check[row.check].append(line(row, name))
    parts = [
        Part(i, explain.check_name(check), asked_again(again, check), by_check[check])
        for i, check in enumerate(checks)
        if check in by_check
    ]
    bad = any(row.verdict == "fail" for row in rows)
    return TargetMeasurements(target.label, target.counts, bad, parts, len(rows) - len(seen))


def line(row: Row, name: str) -> MeasuredLine:
    """One measurement as a line."""
    layer = split(row.scope)[0]
    where = " ".join(part for part in (row.case, row.scope) if part) or row.check
    value = number(row.value) if row.value is not None else row.status.replace("_", " ")
    sign = SIGNS.get(row.verdict, f"{row.verdict}: ")
    classes = "fails " * (row.verdict == "fail") + f"L{'' if layer is None else layer}"
    limit = "" if row.limit is None else f"{row.limit:g}"
    return MeasuredLine(name, where, row.metric.replace("_", " "), f"{sign}{value}", limit, classes)


def commands(runs: Sequence[Run]) -> dict[str, str]:
    """By target, as the page names it: the command line that runs it alone again; "" if none can."""
    rows = [(run.results, row) for run in runs if run.results for row in run.results.rows]
    found: dict[str, str] = {}
    for merged, (run, row) in zip(merge(runs), rows, strict=True):
        if (name := label(merged)) not in found:
            known = run.environment.get("commands", {})
            command = known.get(row.implementation, "") if isinstance(known, dict) else ""
            target = f" --target {shlex.quote(f'{row.device}-{row.dtype}')}" if row.dtype else ""
            found[name] = f"{command}{target}" if command else ""
    return found


def asked_again(command: str, check: str) -> str:
    """A target's command for one of its checks alone; for a start or a crash, for all of them."""
    return f"{command} --only {check}" if command and check in CHECKS else command
