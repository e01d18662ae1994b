"""Where it breaks: every operation of every layer, as a map and as figures."""

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
    """The map of an implementation: a row for each layer, a column for each operation of a block."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    worst: str


def leaves() -> list[str]:
    """The operations of a block by their names without the layer; "" is its output."""
    return [op.name.partition("/")[2] for op in graph(1) if op.name.startswith("h0")]


def split(scope: str) -> tuple[int | None, str]:
    """Layer and operation of a scope: (3, "mlp/gelu"); (None, "ln_f") for what is in no layer."""
    found = re.fullmatch(r"h(\d+)(?:/(.+))?", scope)
    return (int(found[1]), found[2] or "") if found else (None, scope)


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
    """The map of one target; None where no operation was looked at."""
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
        return Cell("·", "none", "no tap: not looked at")
    if row.value is None:
        text = "✘ NaN" if row.status == "nan" else "✘ none"
        return Cell(text, "bad3", explain.detail(row)[:200])
    failed = row.verdict == "fail"
    text = number(row.value, 3 if failed and row.value < 100 else 2)
    text += " n" * row.metric.startswith("segment")  # in units of its own noise
    if not failed:
        return Cell(text, shade(severity(row)))
    decode = DECODE * explain.in_decode_only(row)
    sign = "" if "inherited" in row.evidence else "✘ "
    words = f"{explain.measured(row)}, case {row.case}"
    return Cell(f"{sign}{text}{decode}", shade(severity(row)), words)


class Panel(NamedTuple):
    """One operation in all layers: every target's error in rounding units."""

    name: str
    figure: str
    words: str
    bad: bool


def panels(found: Sequence[tuple[int, list[Row]]]) -> list[Panel]:
    """A figure for each operation of a block, and one for what is outside; rows by style of line."""
    worst = [(style, units) for style, rows in found if (units := units_only(rows))]
    if not worst:
        return []
    layers = {layer for _, rows in worst for layer, _ in rows if layer is not None}
    values = [min(row.value, plots.FURTHEST) for _, rows in worst for row in rows.values() if row.value]
    limits = [row.limit for _, rows in worst for row in rows.values() if row.limit]
    low = 10.0 ** max(-3, math.floor(math.log10(min([0.9, *values]))))
    high = 10.0 ** math.ceil(math.log10(3 * max([*values, *limits])))
    span = (low, high)
    places: dict[str, list[tuple[int | None, str]]] = {
        name: [(i, name) for i in range(max(layers, default=-1) + 1)] for name in leaves()
    }
    places["outside the blocks"] = [(None, name) for name in ("embed", "ln_f", "logits")]
    drawn = [panel(name, keys, worst, span, i) for i, (name, keys) in enumerate(places.items())]
    return [panel for panel in drawn if panel]


def units_only(rows: list[Row]) -> Worst:
    """Worst local errors that are in rounding units; segments have units of their own."""
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
    found = [next((rows[key].limit for _, rows in worst if key in rows), None) for key in keys]
    limits = [limit or present[0].limit or 1.0 for limit in found]
    inside = keys[0][0] is not None
    lines = []
    for style, rows in worst:
        own = [rows.get(key) for key in keys]
        bad = [row is not None and row.verdict == "fail" for row in own]
        lines.append(plots.Line(style, [row.value if row else None for row in own], bad))
    top = max(present, key=severity)
    if top.value is None:
        words = f"no number at {top.scope}: not finite, or it never came; limit {number(top.limit)}"
    else:
        words = f"at most {number(top.value)} at {top.scope}, limit {number(top.limit)}"
    labels = [str(layer) if layer is not None else leaf for layer, leaf in keys]
    title = f"{name or 'output'}: rounding units by layer; {words}"
    figure = plots.by_layer(f"op{index}", lines, labels, limits[:1] if inside else limits, span, title)
    return Panel(name or "block output", figure, words, any(row.verdict == "fail" for row in present))
