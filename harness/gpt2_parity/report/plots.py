"""Figures as inline SVG, drawn by matplotlib and coloured by the page's own CSS variables.

A figure has no colours of its own: matplotlib gets placeholder colours, each of which becomes a
``var(--name)``, so that the style sheet decides about light, dark and print. Shape, dash and hatch
distinguish series without colour. Text stays text, in the page's font.

matplotlib and what it needs are 100 MB, so they are optional (the extra "report"). Without them each
figure is empty; the page has the numbers of all figures in tables, too.
"""

import importlib.util
import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

if TYPE_CHECKING:  # matplotlib takes a second to import, and is optional
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Given = ParamSpec("Given")

MISSING = (
    "report.html has tables only. Its figures need matplotlib: "
    'pip install "gpt2-parity[report]", then: parity report DIR'
)
SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
COLOURS = 8
MARKERS = "osD^vPXp"
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "--", "xx", "||", "\\\\", "++", "/-")  # no dots: they take a hundred kilobytes
# placeholder colour -> CSS variable
VARIABLES = {"#010101": "--ink", "#020202": "--muted", "#030303": "--line", "#040404": "--bad"}
VARIABLES |= {"#050505": "--page"} | {f"#0606{i:02x}": f"--s{i}" for i in range(COLOURS)}
INK, MUTED, LINE, BAD, PAGE, *SERIES = VARIABLES
STYLE: Any = {  # matplotlib types the names of its settings one by one
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may contain dollar signs
    "svg.hashsalt": "gpt2-parity",  # the same figure gives the same text
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "hatch.linewidth": 0.7,
}


FURTHEST = 1e30  # end of an error axis: larger errors are drawn there; the table has their value


class Line(NamedTuple):
    """One implementation's values, one for each position on the axis; None where there is no number."""

    style: int
    values: Sequence[float | None]
    bad: Sequence[bool]  # which of them are failures


class Bar(NamedTuple):
    """One implementation's time or memory, with the interval of its median if there is one."""

    style: int
    name: str
    value: float | None
    low: float | None
    high: float | None
    best: float | None  # what the roofline allows
    caption: str


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(function: Callable[Given, str]) -> Callable[Given, str]:
    """Make a function that returns a figure draw it in our style, and return "" without matplotlib."""

    @wraps(function)
    def styled(*args: Given.args, **kwargs: Given.kwargs) -> str:
        if not can_draw():
            return ""
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return styled


def draw(width: float, height: float) -> "tuple[Figure, Axes]":
    """An empty figure of that width and height in points, with one pair of axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=2 / 72)
    figure = Figure(figsize=(width / 72, height / 72), layout=layout)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


@drawn
def by_layer(
    name: str,
    lines: Sequence[Line],
    positions: Sequence[str],
    limits: Sequence[float],
    span: tuple[float, float],
    caption: str,
) -> str:
    """Errors on a log scale at each position (a layer, or a single operation), with the limits drawn.

    positions: their labels. limits: one number for all positions, or one for each. span: the lower and
    upper end of the scale. caption: the figure's accessible name.
    """
    figure, axes = draw(300, 190)
    low, high = span
    n = len(positions)
    edges = [-0.5, n - 0.5] if len(limits) == 1 else [i + d for i in range(n) for d in (-0.5, 0.5)]
    heights = [limit for limit in limits for _ in (0, 1)]
    axes.fill_between(edges, heights, high, color=BAD, alpha=0.09, linewidth=0)
    axes.plot(edges, heights, color=BAD, linewidth=1.2, dashes=(5, 3))
    axes.annotate(
        "limit" if len(limits) > 1 else f"limit {limits[0]:g}",
        (edges[0], heights[0]), (4, 3), textcoords="offset points", color=BAD, fontsize=9,
    )  # fmt: skip
    for line in lines:
        trace(axes, line, low, high)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(-0.5, n - 0.5)
    step = max(1, math.ceil(n / 12)) if positions[0].isdigit() else 1
    axes.set_xticks(range(0, n, step), positions[::step])
    axes.grid(visible=False, axis="x")
    decades(axes.yaxis, low, high)
    return svg(figure, name, caption)


def trace(axes: "Axes", line: Line, low: float, high: float) -> None:
    """One line with its markers; a failure without a number is a cross at the upper edge."""
    values = [math.nan if v is None else min(max(v, low * 1.2), high / 1.2) for v in line.values]
    colour, marker = SERIES[line.style % COLOURS], MARKERS[line.style % len(MARKERS)]
    axes.plot(
        range(len(values)), values, color=colour, marker=marker, markersize=4.5, linewidth=1.3,
        linestyle=DASHES[line.style // len(MARKERS) % len(DASHES)], markeredgecolor=PAGE,
        markeredgewidth=0.6, markevery=max(1, math.ceil(len(values) / 12)),
    )  # fmt: skip
    step = max(1, math.ceil(len(values) / 24))
    bad = [i for i, fails in enumerate(line.bad) if fails and line.values[i] is not None][::step]
    if bad:  # a failure gets a cross, which is readable without colour
        axes.plot(bad, [values[i] for i in bad], "x", color=BAD, markersize=6.5, markeredgewidth=1.6)
    none = [
        i for i, (v, fails) in enumerate(zip(line.values, line.bad, strict=True)) if v is None and fails
    ]
    if none:
        axes.plot(none, [high / 1.4] * len(none), "x", color=BAD, markersize=6, markeredgewidth=1.6)


def decades(axis: Any, low: float, high: float) -> None:
    """Label an axis at powers of ten, at most six of them."""
    from matplotlib.ticker import NullLocator

    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 6))
    powers = range(first, last + 1, step)
    axis.set_ticks([10.0**p for p in powers], [f"{10.0**p:g}" if p < 4 else f"1e{p}" for p in powers])
    axis.set_minor_locator(NullLocator())


@drawn
def against_noise(
    name: str, cases: Sequence[str], lines: Sequence[Line], limit: float, caption: str
) -> str:
    """Error of the logits in noise units, on a horizontal log scale, with one row for each case."""
    lines = [line._replace(values=[v and min(v, FURTHEST) for v in line.values]) for line in lines]
    known = [v for line in lines for v in line.values if v is not None]
    low = 10.0 ** math.floor(math.log10(max(min([0.5, *known]), 1e-3)))
    high = 10.0 ** math.ceil(math.log10(max([limit * 2, *known]) * 1.2))
    figure, axes = draw(380, 70 + 24 * len(cases))
    axes.axvspan(limit, high, color=BAD, alpha=0.09, linewidth=0)
    axes.axvline(limit, color=BAD, linewidth=1.2, dashes=(5, 3))
    axes.axvline(1, color=MUTED, linewidth=1.2)
    top = axes.get_xaxis_transform()
    axes.text(1, 1.02, "noise floor", transform=top, ha="center", va="bottom", color=MUTED, fontsize=9)
    axes.text(limit, 1.02, f"limit {limit:g}", transform=top, ha="left", va="bottom", color=BAD,
              fontsize=9)  # fmt: skip
    for i, line in enumerate(lines):
        shift = 0.0 if len(lines) == 1 else 0.4 * (i / (len(lines) - 1) - 0.5)
        points = [(v, y + shift) for y, v in enumerate(line.values) if v is not None]
        axes.plot(
            [max(v, low) for v, _ in points], [y for _, y in points], linestyle="",
            marker=MARKERS[line.style % len(MARKERS)], color=SERIES[line.style % COLOURS],
            markersize=6, markeredgecolor=PAGE, markeredgewidth=0.6,
        )  # fmt: skip
        none = [y + shift for y, v in enumerate(line.values) if v is None and line.bad[y]]
        axes.plot([high / 1.3] * len(none), none, "x", color=BAD, markersize=6, markeredgewidth=1.6)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_yticks(range(len(cases)), [plain(case) for case in cases])
    decades(axes.xaxis, low, high)
    axes.set_xlabel("noise units")
    return svg(figure, name, caption)


@drawn
def bars(name: str, found: Sequence[Bar], caption: str) -> str:
    """Horizontal bars from zero, each with its name above it, its interval, and its roofline."""
    numbers = [n for bar in found for n in (bar.value, bar.high) if n is not None]
    right = max(numbers, default=1.0) * 1.03
    figure, axes = draw(300, 14 + 32 * len(found))
    for y, bar in enumerate(found):
        axes.text(0, y - 0.24, plain(bar.name), ha="left", va="bottom", fontsize=9.5)
        axes.text(
            right, y - 0.24, plain(bar.caption), ha="right", va="bottom", fontsize=9.5, color=MUTED
        )
        if bar.value is None:
            continue
        colour = SERIES[bar.style % COLOURS]
        axes.barh(
            y, bar.value, height=0.4, facecolor=colour, edgecolor=PAGE,
            hatch=HATCHES[bar.style % len(HATCHES)], linewidth=0,
        )  # fmt: skip
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [y, y], color=INK, linewidth=1.2, marker="|", markersize=5)
        if bar.best is not None:
            ends = [y - 0.2, y + 0.3]
            axes.plot([bar.best] * 2, ends, color=PAGE, linewidth=4, solid_capstyle="butt")
            axes.plot([bar.best] * 2, ends, color=INK, linewidth=1.6, dashes=(2, 1))
    axes.set_xlim(0, right)
    axes.set_ylim(len(found) - 0.6, -0.75)
    axes.set_axis_off()
    return svg(figure, name, caption)


def plain(text: str) -> str:
    """Text for a figure: unprintable characters replaced, cut to 44 characters."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= 44 else f"{text[:43]}…"


@drawn
def swatch(name: str, style: int) -> str:
    """A sample of a line for the legend, which has the name beside it: its colour, dash and marker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(30 / 72, 12 / 72))
    figure.patch.set_visible(False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 2)
    axes.set_ylim(-1, 1)
    axes.plot(
        [0, 1, 2], [0, 0, 0], color=SERIES[style % COLOURS], marker=MARKERS[style % len(MARKERS)],
        linestyle=DASHES[style // len(MARKERS) % len(DASHES)], markersize=6, markevery=[1],
        linewidth=1.6, markeredgecolor=PAGE, markeredgewidth=0.6,
    )  # fmt: skip
    return svg(figure, f"key-{name}", "")


def svg(figure: "Figure", name: str, caption: str) -> str:
    """The figure as an svg element for a page: its ids begin with name, its colours are variables.

    caption becomes its accessible name; without one, it is hidden from screen readers.
    """
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is drawn in the page's
        figure.savefig(text, format="svg", metadata={"Date": None})
    tree = ET.fromstring(text.getvalue())
    for key in [key for key in tree.attrib if key in ("width", "height", "version")]:
        del tree.attrib[key]
    for child in list(tree):
        if child.tag.endswith("metadata"):
            tree.remove(child)
    for parent in list(tree.iter(f"{{{SVG}}}defs")):
        for child in list(parent.iter(f"{{{SVG}}}style")):
            parent.remove(child)  # it would apply to the whole page
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text.getvalue()))
    for element in tree.iter():
        tidy(element, name, used)
    if caption:
        tree.set("role", "img")
        tree.set("aria-labelledby", f"{name}-words")
        title = ET.Element(f"{{{SVG}}}title", {"id": f"{name}-words"})
        title.text = caption
        tree.insert(0, title)
    else:
        tree.set("aria-hidden", "true")
    tree.set("class", "plot")
    ET.register_namespace("", SVG)
    markup = ET.tostring(tree, encoding="unicode")
    for colour, variable in VARIABLES.items():
        markup = markup.replace(colour, f"var({variable})")
    return re.sub(r">\s+<", "><", markup)


def tidy(element: ET.Element, name: str, used: set[str]) -> None:
    """Prefix the ids that are used with the figure's name, drop the others, and round coordinates."""
    identifier = element.attrib.pop("id", "")
    if identifier in used:
        element.set("id", f"{name}-{identifier}")
    if HREF in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(HREF)[1:]}")
    for key, value in element.attrib.items():
        if key in ("d", "x", "y", "transform", "points", "viewBox"):
            value = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
        element.set(key, " ".join(value.replace("url(#", f"url(#{name}-").split()))
    if "style" in element.attrib:  # keep the font size; the page sets the family
        element.set("style", re.sub(r"font-family: [^;]*; ?", "", element.attrib["style"]))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
