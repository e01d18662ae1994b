"""The prompt and the greedy text of a case, token by token: the error of the logits, and the margin.

The figures are evidence of the checks logits (prompt) and greedy (the new tokens, teacher-forced), in
noise units; they belong to the first row of a case.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.report.cells import Cell, number, shade

TIE = 2 * NOISE.most  # noise units: a smaller margin is a near-tie
# where the figures of a token come from -> the error that rounding explains, in noise units
PARTS = {("logits", "logits", "noise_units"): NOISE.most}
PARTS |= {("greedy", "teacher_forced", "wrong_tokens"): TIE}  # a margin is of two logits


class Strip(NamedTuple):
    """The tokens of one case as one target computed them: prompt, then new tokens."""

    label: str
    prompt: list[Cell]
    new: list[Cell]


def strips(rows: Iterable[Row]) -> dict[str, list[Strip]]:
    """By case, a strip for each target that has figures for the case's tokens."""
    found: dict[str, dict[str, Strip]] = defaultdict(dict)
    for row in rows:
        part = row.check, row.scope, row.metric
        if part not in PARTS or not (cells := token_cells(row.evidence.get("by_token"), PARTS[part])):
            continue
        strip = found[row.case].setdefault(label(row), Strip(label(row), [], []))
        (strip.prompt if row.check == "logits" else strip.new).extend(cells)
    return {case: list(by_target.values()) for case, by_target in found.items()}


def token_cells(figures: Any, limit: float) -> list[Cell]:
    """The tokens with the shades of their errors and margins; none if these are not such figures."""
    try:
        each = zip(figures["tokens"], figures["errors"], figures["margins"], strict=True)
        return [token_cell(str(token), float(e), float(m), limit) for token, e, m in each]
    except (KeyError, TypeError, ValueError):  # no figures, or another check's by that name
        return []


def token_cell(token: str, error: float, margin: float, limit: float) -> Cell:
    """One token. Its error may be NaN; a failure is not readable without its figures then."""
    tooltip = f"error {number(error)}, margin {number(margin)} noise units"
    classes = f"{shade(error / limit)} {'m0' if margin <= TIE else 'm1' if margin <= 10 * TIE else 'm2'}"
    return Cell(token.replace("\n", "↵"), classes, tooltip)
