"""The local errors of every operation in every layer, as a heat map and as figures."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gpt2_parity.contract.architecture import graph
from gpt2_parity.contract.rows import Row
from gpt2_parity.report import plots
from gpt2_parity.report.cells import Cell, number, severity, shade, times
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.attribution import DECODE


class Heat(NamedTuple):
    """The heat map of one target: a row for each layer, a column for each operation of a block."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    worst: str


def leaves() -> list[str]:
    """The names of a block's operations without the layer; "" is the block's output."""
    return [op.name.partition("/")[2] for op in graph(1) if op.name.startswith("h0")]


def split(scope: str) -> tuple[int | None, str]:
    """Layer and operation of a scope: (3, "mlp/gelu"), or (None, "ln_f") outside the blocks."""
    match = re.fullmatch(r"h(\d+)(?:/(.+))?", scope)
    return (int(match[1]), match[2] or "") if match else (None, scope)


Worst = dict[tuple[int | None, str], Row]


def worst_local(rows: Iterable[Row]) -> Worst:
    """The worst local measurement of each operation over all cases, prefill and decode."""
    worst: Worst = {}
    for row in rows:
        if row.check == "local" and row.scope:
            key = split(row.scope)
            if key not in worst or severity(row) > severity(worst[key]):
                worst[key] = row
    return worst


def heat(rows: list[Row]) -> Heat | None:
    """The heat map of one target; None if no operation was measured."""
    worst = worst_local(rows)
    measured = [row for row in worst.values() if row.value is not None]
    if not measured:
        return None
    n_layer = 1 + max((layer for layer, _ in worst if layer is not None), default=-1)
    names = leaves()
    table: list[tuple[str, list[Cell]]] = [("embed", [heat_cell(worst.get((None, "embed")))])]
    for i in range(n_layer):
        table.append((f"h{i}", [heat_cell(worst.get((i, name))) for name in names]))
    table += [(name, [heat_cell(worst.get((None, name)))]) for name in ("ln_f", "logits")]
    top = max(worst.values(), key=severity)
    return Heat([name or "output" for name in names], table, f"{times(severity(top))} at {top.scope}")


def heat_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell("·", "none", "no tap: not measured")
    if row.value is None:
        text = "✘ NaN" if row.status == "nan" else "✘ none"
        return Cell(text, "bad3", explain.detail(row)[:200])
    failed = row.verdict == "fail"
    text = number(row.value, 3 if failed and row.value < 100 else 2)
    text += " n" * row.metric.startswith("segment")  # n: in units of its own noise
    if not failed:
        return Cell(text, shade(severity(row)))
    decode = DECODE * explain.in_decode_only(row)
    sign = "" if "inherited" in row.evidence else "✘ "
    tooltip = f"{explain.measured(row)}, case {row.case}"
    return Cell(f"{sign}{text}{decode}", shade(severity(row)), tooltip)


class Panel(NamedTuple):
    """One operation in all layers: the error of every target in rounding units."""

    name: str
    figure: str
    caption: str
    bad: bool


def panels(found: Sequence[tuple[int, list[Row]]]) -> list[Panel]:
    """A figure for each operation of a block, and one for those outside the blocks.

    found: for each target, the style of its line and its rows.
    """
    worst = [(style, units) for style, rows in found if (units := units_only(rows))]
    if not worst:
        return []
    layers = {layer for _, rows in worst for layer, _ in rows if layer is not None}
    values = [min(row.value, plots.FURTHEST) for _, rows in worst for row in rows.values() if row.value]
    limits = [row.limit for _, rows in worst for row in rows.values() if row.limit]
    low = 10.0 ** max(-3, math.floor(math.log10(min([0.9, *values]))))
    high = 10.0 ** math.ceil(math.log10(3 * max([*values, *limits])))
    span = (low, high)
    positions: dict[str, list[tuple[int | None, str]]] = {
        name: [(i, name) for i in range(max(layers, default=-1) + 1)] for name in leaves()
    }
    positions["outside the blocks"] = [(None, name) for name in ("embed", "ln_f", "logits")]
    drawn = [panel(name, keys, worst, span, i) for i, (name, keys) in enumerate(positions.items())]
    return [panel for panel in drawn if panel]


def units_only(rows: list[Row]) -> Worst:
    """The worst local errors in rounding units; segments, which have other units, are left out."""
    return worst_local(row for row in rows if row.metric.startswith("rounding_units"))


def panel(
    name: str,
    keys: list[tuple[int | None, str]],
    worst: list[tuple[int, Worst]],  # by style
    span: tuple[float, float],
    index: int,
) -> Panel | None:
    present = [row for _, rows in worst for key in keys if (row := rows.get(key))]
    if not present:
        return None
    known = [next((rows[key].limit for _, rows in worst if key in rows), None) for key in keys]
    limits = [limit or present[0].limit or 1.0 for limit in known]
    inside = keys[0][0] is not None
    lines = []
    for style, rows in worst:
        own = [rows.get(key) for key in keys]
        bad = [row is not None and row.verdict == "fail" for row in own]
        lines.append(plots.Line(style, [row.value if row else None for row in own], bad))
    top = max(present, key=severity)
    if top.value is None:
        caption = f"no number at {top.scope}: missing or not finite; limit {number(top.limit)}"
    else:
        caption = f"at most {number(top.value)} at {top.scope}, limit {number(top.limit)}"
    labels = [str(layer) if layer is not None else leaf for layer, leaf in keys]
    title = f"{name or 'output'}: rounding units by layer; {caption}"
    figure = plots.by_layer(f"op{index}", lines, labels, limits[:1] if inside else limits, span, title)
    failed = any(row.verdict == "fail" for row in present)
    return Panel(name or "block output", figure, caption, failed)
