"""How the page shows single values: a number, a share of a limit, a shaded cell."""

import hashlib
import math
import re
from typing import NamedTuple

from markupsafe import Markup, escape

from gpt2_parity.contract.rows import Row


class Cell(NamedTuple):
    """One cell of a table: its text, the CSS class that shades it, and its tooltip."""

    text: str
    shade: str
    title: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """A number in few characters: 0.31, 5.69e3."""
    if value is None:
        return "none"
    if 100 <= abs(value) < 1000:
        return f"{value:.0f}"
    return re.sub(r"e\+?(-?)0*(\d+)", r"e\1\2", f"{value:.{digits}g}")


def anchor(row: Row) -> str:
    """A measurement's id on the page, from its name: the same in every run of that name."""
    return "m" + hashlib.sha256("\n".join(row[:8]).encode("utf-8", "replace")).hexdigest()[:8]


def quantity(value: float | None, unit: str) -> str:
    """1.23 s, 45.6 ms, 512 MB."""
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB" if value >= 1e7 else f"{value / 1e6:.2f} MB"
    if value < 0.9995e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def severity(row: Row) -> float:
    """How far beyond its limit a row is: its ratio, or infinity for a failure without a number."""
    if row.verdict == "fail" and row.ratio is None:
        return math.inf
    return row.ratio or 0.0


def times(ratio: float) -> str:
    """A share of a limit as text: "45% of the limit", "356 times the limit"."""
    if math.isinf(ratio):
        return "no number"
    return f"{ratio:.0%} of the limit" if ratio <= 1 else f"{number(ratio)} times the limit"


UNITS = {
    "rounding units": "1 is the error that rounding alone is expected to make in this operation, from "
    "its own input, at the declared precision.",
    "noise units": "1 is the error that honest rounding alone makes in the whole model at the declared "
    "precision: the median of 8 evaluations with shuffled sums and random rounding.",
}


def units(text: str) -> Markup:
    """A text, escaped, whose units have their explanation as a tooltip."""
    found = str(escape(text))
    for name, why in UNITS.items():
        found = found.replace(name, f'<abbr title="{why}">{name}</abbr>')
    return Markup(found)


def shaded(text: str) -> Cell:
    if text.startswith("FAIL"):
        return Cell(text, "bad2")
    if not text.endswith("%"):
        return Cell(text, "none")
    return Cell(text, shade(int(text[:-1]) / 100))


def shade(ratio: float) -> str:
    """The CSS class for a share of a limit: three steps within the limit, three beyond it."""
    steps = {0.1: "ok0", 0.5: "ok1", 1.0: "ok2", 10.0: "bad1", 1000.0: "bad2"}
    return next((name for most, name in steps.items() if ratio <= most), "bad3")
