"""End to end: the error of the logits compared with the noise floor."""

from collections.abc import Sequence
from typing import NamedTuple

from gpt2_parity.contract.rows import Row
from gpt2_parity.report import plots
from gpt2_parity.report.cells import Cell, number, severity, shade
from gpt2_parity.report.verdicts import TargetSection


class Noise(NamedTuple):
    """Error of the logits compared with the noise floor: a figure, and the same as a table."""

    figure: str
    cases: list[str]
    rows: list[tuple[str, list[Cell]]]


def noise(found: Sequence[TargetSection]) -> Noise | None:
    """Greatest difference of logits in noise units, by case and target."""
    wanted = ("logits", "noise_units")
    by_case = [
        (target, {row.case: row for row in target.rows if (row.check, row.metric) == wanted})
        for target in found
    ]
    by_case = [(target, rows) for target, rows in by_case if rows]
    if not by_case:
        return None
    cases = list(dict.fromkeys(case for _, rows in by_case for case in rows))
    limit = next(row.limit for _, rows in by_case for row in rows.values()) or 1.0
    lines, table = [], []
    for target, rows in by_case:
        own = [rows.get(case) for case in cases]
        bad = [row is not None and row.verdict == "fail" for row in own]
        lines.append(plots.Line(target.style, [row.value if row else None for row in own], bad))
        table.append((target.label, [noise_cell(row) for row in own]))
    caption = f"Error of the logits in noise units by case; the noise floor is 1, the limit {limit:g}"
    return Noise(plots.against_noise("noise", cases, lines, limit, caption), cases, table)


def noise_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell("", "none")
    text = number(row.value) if row.value is not None else "no number"
    return Cell(f"✘ {text}" if row.verdict == "fail" else text, shade(severity(row)))
