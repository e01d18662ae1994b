"""report.html: one page, in one file, that shows who is right, where it breaks and how fast it is.

Everything on it comes from the rows of results.json and bench.json. Here rows become plain tables
and figures; templates/ turn those into HTML, where every text is escaped. The page has no script and
asks for nothing from anywhere, and says so to the browser.
"""

import ast
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from harness import mapped, plots, results, story
from harness.contract import CannotJudge, graph
from harness.judge import Row, exit_code, introduces, label
from harness.run import Results

BENCH_SCHEMA = 1
BENCH = "bench.json"
STATES = {  # state -> sign, word; in the order in which they are shown
    "wrong": ("✘", "wrong"),
    "crashed": ("✘", "crashed"),
    "open": ("?", "no verdict"),
    "skipped": ("-", "skipped"),
    "right": ("✔", "right"),
}


class Run(NamedTuple):
    """What one folder holds: results of a verification, of a benchmark, or both."""

    name: str
    results: Results | None
    bench: dict[str, Any] | None = None


class Target(NamedTuple):
    """One implementation on one device: all that the page says about it."""

    label: str
    style: int  # of its lines and bars
    state: str
    counts: str
    share: str  # of its limit that the worst measurement used, and where
    findings: list[story.Finding]
    heat: "Heat | None"
    failures: list[tuple[str, str]]  # where, what
    more: int  # failures that are not listed
    rows: list[Row]


class Cell(NamedTuple):
    """One cell of a table: its text, the class that shades it, and what it says when pointed at."""

    text: str
    shade: str
    title: str = ""


class Heat(NamedTuple):
    """The map of an implementation: a row for each layer, a column for each operation of a block."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    worst: str


def read(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders (or saved results.json files). Raises CannotJudge where there are none."""
    runs = []
    for path in paths:
        bench = path / BENCH
        has_results = not path.is_dir() or (path / results.NAME).exists() or not bench.exists()
        found = results.load(path) if has_results else None
        runs.append(Run(path.resolve().name, found, read_bench(bench) if bench.exists() else None))
    return runs


def read_bench(path: Path) -> dict[str, Any]:
    """bench.json. Raises CannotJudge where it is missing, damaged, or of another schema."""
    document = results.parse(path, BENCH_SCHEMA)
    rows = document.get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and set(row) >= BENCH_KEYS for row in rows
    ):
        raise CannotJudge(f"{path}: rows without {', '.join(sorted(BENCH_KEYS))}; run parity bench anew")
    return document


WHICH = ("implementation", "device", "dtype", "model", "phase", "metric", "n_past", "n", "batch")
BENCH_KEYS = {*WHICH, "samples", "median", "low", "high", "unit", "verdict", "detail", "roofline"}
BENCH_KEYS |= {"tokens_per_second"}


def write(paths: Sequence[Path], out: Path) -> None:
    """The report of one or several runs. Raises CannotJudge where it cannot be read or written."""
    page = html(read(paths))
    try:
        mapped.write_text(out, page)
    except OSError as error:
        raise CannotJudge(f"{out}: the report cannot be written ({error})") from error


def html(runs: Sequence[Run]) -> str:
    """The page."""
    rows = merge(runs)
    found = targets(rows)
    state = next((state for state in STATES if any(t.state == state for t in found)), "open")
    return template("report.html.j2").render(
        state=state,
        states=STATES,
        headline=headline(found),
        models=models(runs),
        counts=results.headline(rows),
        targets=sorted(found, key=lambda target: list(STATES).index(target.state)),
        matrix=matrix(found),
        columns=[name.replace("_", " ") for name in results.columns(rows)],
        keys={part: keys(part, found) for part in ("operations", "noise")},
        panels=panels(found),
        noise=noise(found),
        texts=texts(rows),
        precision=precision(found),
        speed=speed(runs),
        runs=[made_with(run) for run in runs],
    )


def keys(part: str, found: Sequence[Target]) -> list[tuple[str, str]]:
    """The key to the lines of a part of the page: swatch and label."""
    return [(plots.swatch(f"{part}{target.style}", target.style), target.label) for target in found]


def template(name: str) -> jinja2.Template:
    """A template of this package; everything put into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def number(value: float | None, digits: int = 3) -> str:
    """A number in few characters: 0.31, 5.69e3."""
    if value is None:
        return "none"
    if 100 <= abs(value) < 1000:
        return f"{value:.0f}"
    return re.sub(r"e\+?(-?)0*(\d+)", r"e\1\2", f"{value:.{digits}g}")


def models(runs: Sequence[Run]) -> str:
    """The names of the models that the runs were made with."""
    environments = [e for run in runs for e in environments_of(run)]
    return ", ".join(dict.fromkeys(str(e.get("model", "")) for e in environments if e.get("model")))


def environments_of(run: Run) -> list[dict[str, Any]]:
    """What the parts of a run were made with."""
    found = [run.results.environment] if run.results else []
    return found + ([run.bench.get("environment", {})] if run.bench else [])


def merge(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs. What would carry a name twice gets its model's or its run's beside it."""
    rows = [(run.name, row) for run in runs if run.results for row in run.results.rows]
    several = len({row.model for _, row in rows}) > 1
    homes: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, run in enumerate(runs):
        for row in run.results.rows if run.results else ():
            homes[row[:4]].add(i)
    found = []
    for i, run in enumerate(runs):
        for row in run.results.rows if run.results else ():
            name = row.implementation
            name += f" [{row.model}]" * several
            if len(homes[row[:4]]) > 1:
                name += f" [{run.name} {i + 1}]"
            found.append(row._replace(implementation=name))
    return found


def targets(rows: Sequence[Row]) -> list[Target]:
    """Implementations and devices, in the order of the rows."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row)
    told = story.findings(rows)
    found = []
    for style, (who, own) in enumerate(by_label.items()):
        failed = [row for row in own if row.verdict == "fail"]
        failed.sort(key=lambda row: (introduces(row), severity(row)), reverse=True)
        listed = [(results.place(row), results.said(row)) for row in failed[: results.MOST]]
        more = len(failed) - len(listed)
        found.append(
            Target(
                who, style, state_of(own), results.headline(own), share(own),
                gather(told.get(who, [])), heat(own), listed, more, own,
            )
        )  # fmt: skip
    return found


def gather(found: list[story.Finding]) -> list[story.Finding]:
    """Findings that one mistake explains as one, under the worst of them."""
    groups: dict[Any, list[story.Finding]] = defaultdict(list)
    for i, finding in enumerate(found):
        mistake, explains, _ = finding.why.partition(" explains it: ")
        groups[mistake if explains else i].append(finding)
    worst = [
        max(group, key=lambda f: severity(f.worst) if f.worst else 0.0) for group in groups.values()
    ]
    where = [", ".join(finding.where for finding in group) for group in groups.values()]
    return [finding._replace(where=words) for finding, words in zip(worst, where, strict=True)]


def state_of(rows: list[Row]) -> str:
    """right, wrong, crashed, skipped, or open: nothing that decides."""
    if any(row.verdict == "fail" and row.check in ("process", "load") for row in rows):
        return "crashed"
    if {row.verdict for row in rows} == {"skipped"}:
        return "skipped"
    return ("right", "wrong", "open")[exit_code(rows)]


def headline(found: Sequence[Target]) -> str:
    """The verdict on the whole run in a sentence."""
    total = len(found)
    if not total:
        return "Speed and memory"
    counts = Counter(target.state for target in found)
    if counts["right"] == total:
        return {1: "It is right", 2: "Both are right"}.get(total, f"All {total} are right")
    parts: list[str] = []
    for state in ("wrong", "crashed", "open", "skipped"):
        if n := counts[state]:
            verb = {"wrong": "is ", "crashed": "", "open": "has ", "skipped": "was "}[state]
            verb = {"is ": "are ", "has ": "have ", "was ": "were "}.get(verb, verb) if n > 1 else verb
            parts.append(f"{n} {'of ' + str(total) + ' ' if not parts else ''}{verb}{STATES[state][1]}")
    return ", ".join(parts)


def severity(row: Row) -> float:
    """How far beyond its limit a row is: its ratio; what is no number is beyond everything."""
    if row.verdict == "fail" and row.ratio is None:
        return math.inf
    return row.ratio or 0.0


def share(rows: list[Row]) -> str:
    """The worst measurement by the share of its limit that it used."""
    judged = [row for row in rows if row.verdict in ("pass", "fail")]
    if not judged:
        return rows[0].detail
    ends = [row for row in judged if row.check in ("process", "load")]
    causes = [row for row in judged if row.verdict == "fail" and introduces(row)]
    worst = max(ends or causes or judged, key=severity)
    check = worst.check.replace("_", " ")
    if math.isinf(severity(worst)):
        return f"{check}: {worst.detail}"
    return f"{times(severity(worst))}: {check} {worst.case} {worst.scope}".rstrip()


def times(ratio: float) -> str:
    """A share of a limit: 45 %, 356 times the limit."""
    if math.isinf(ratio):
        return "no number"
    return f"{ratio:.0%} of the limit" if ratio <= 1 else f"{number(ratio)} times the limit"


def matrix(found: Sequence[Target]) -> list[tuple[Target, list[Cell]]]:
    """Targets x checks, with the very cells of report.md."""
    names = results.columns(row for target in found for row in target.rows)
    cells = results.grid(row for target in found for row in target.rows)
    return [(target, [shaded(cells[target.label].get(name, "")) for name in names]) for target in found]


def shaded(text: str) -> Cell:
    if text.startswith("FAIL"):
        return Cell(text, "bad2")
    if not text.endswith("%"):
        return Cell(text, "none")
    return Cell(text, shade(int(text[:-1]) / 100))


def shade(ratio: float) -> str:
    """The class of a share of a limit: three within it, three beyond."""
    steps = {0.1: "ok0", 0.5: "ok1", 1.0: "ok2", 10.0: "bad1", 1000.0: "bad2"}
    return next((name for most, name in steps.items() if ratio <= most), "bad3")


# -- the operations


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
        return Cell("✘ NaN" if row.detail.startswith("NaN") else "✘ none", "bad3", row.detail[:200])
    failed = row.verdict == "fail"
    text = number(row.value, 3 if failed and row.value < 100 else 2)
    text += " n" * row.metric.startswith("segment")  # in units of its own noise
    if not failed:
        return Cell(text, shade(severity(row)))
    decode = " (decode)" * row.blame.endswith("(decode)")
    inherited = row.diagnosis.startswith("inherited")
    sign = "" if inherited else "✘ "
    return Cell(f"{sign}{text}{decode}", shade(severity(row)), f"{results.say(row)}, case {row.case}")


class Panel(NamedTuple):
    """One operation in all layers: every target's error in rounding units."""

    name: str
    figure: str
    words: str
    bad: bool


def panels(found: Sequence[Target]) -> list[Panel]:
    """A figure for each operation of a block, and one for what is outside of blocks."""
    worst = [(target.style, rows) for target in found if (rows := units_only(target.rows))]
    if not worst:
        return []
    layers = {layer for _, rows in worst for layer, _ in rows if layer is not None}
    values = [row.value for _, rows in worst for row in rows.values() if row.value]
    limits = [row.limit for _, rows in worst for row in rows.values() if row.limit]
    low = 10.0 ** max(-3, math.floor(math.log10(min([0.9, *values]))))
    high = 10.0 ** math.ceil(math.log10(3 * max([*values, *limits])))
    span = (low, min(high, 1e30))
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
    size = number(top.value) if top.value is not None else "no number"
    words = f"at most {size} at {top.scope}, limit {number(top.limit)}"
    labels = [str(layer) if layer is not None else leaf for layer, leaf in keys]
    title = f"{name or 'output'}: rounding units by layer; {words}"
    figure = plots.by_layer(f"op{index}", lines, labels, limits[:1] if inside else limits, span, title)
    return Panel(name or "block output", figure, words, any(row.verdict == "fail" for row in present))


# -- end to end


class Noise(NamedTuple):
    """Error of the logits against the noise floor: a figure, and the same as a table."""

    figure: str
    cases: list[str]
    rows: list[tuple[str, list[Cell]]]


def noise(found: Sequence[Target]) -> Noise | None:
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
    words = f"Error of the logits in noise units by case; the noise floor is 1, the limit {limit:g}"
    return Noise(plots.against_noise("noise", cases, lines, limit, words), cases, table)


def noise_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell("", "none")
    text = number(row.value) if row.value is not None else "no number"
    return Cell(f"✘ {text}" if row.verdict == "fail" else text, shade(severity(row)))


# -- greedy texts

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
TOLD = re.compile(
    rf"(?P<text>{QUOTED})(?:, golden (?P<golden>{QUOTED}); first difference (?P<difference>.*))?",
    re.DOTALL,
)


class Text(NamedTuple):
    """What was said, by whom, up to where it is golden's, and how it departs."""

    same: str
    other: str
    who: list[str]
    verdict: str
    note: str


def texts(rows: Iterable[Row]) -> dict[str, list[Text]]:
    """By case: the greedy texts, those that are the same once, with all who said it."""
    by_case: dict[str, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.check == "greedy" and row.metric == "wrong_tokens":
            by_case[row.case][row.detail, row.verdict].append(row)
    return {
        case: [text_of(detail, verdict, found) for (detail, verdict), found in said.items()]
        for case, said in by_case.items()
    }


def text_of(detail: str, verdict: str, rows: list[Row]) -> Text:
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row.scope.replace("_", " "))
    together: dict[str, list[str]] = defaultdict(list)
    for name, scopes in by_label.items():
        together[", ".join(scopes)].append(name)
    who = [f"{', '.join(labels)}: {scopes}" for scopes, labels in together.items()]
    found = TOLD.fullmatch(detail)
    if not found:
        return Text("", "", who, verdict, detail)
    said = str(ast.literal_eval(found["text"]))
    if not found["golden"]:
        return Text(said, "", who, verdict, "as golden")
    golden = str(ast.literal_eval(found["golden"]))
    same = "".join(
        c for c, _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, golden, strict=False))
    )
    note = f"first difference {found['difference']}. Golden goes on: {golden[len(same) :]!r}"
    return Text(same, said[len(same) :], who, verdict, note)


# -- precision


class Precision(NamedTuple):
    """What one target declares, and what its products show."""

    label: str
    declared: str
    measured: str
    worst: str
    state: str


def precision(found: Sequence[Target]) -> list[Precision]:
    """The fingerprint of every target's products."""
    table = []
    for target in found:
        rows = [row for row in target.rows if row.check == "precision" and row.scope]
        if not rows:
            continue
        names: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            seen = re.match(r"measured (.+), declared", row.detail)
            names[seen[1] if seen else "not measured"].append(row.scope)
        measured = "; ".join(
            f"{name} in {len(scopes)} of {len(rows)} products" for name, scopes in names.items()
        )
        top = max(rows, key=lambda row: math.inf if row.value is None else row.value)
        lost = "no number" if top.value is None else f"{top.value:.1f} bits at {top.scope}"
        limit = f", limit {top.limit:g}" if top.limit is not None else ""
        state = "wrong" if any(row.verdict == "fail" for row in rows) else "right"
        table.append(Precision(target.label, rows[0].dtype, measured, lost + limit, state))
    return table


# -- speed and memory


class Speed(NamedTuple):
    """One thing that was timed or weighed, for every implementation."""

    title: str
    figure: str
    rows: Sequence[tuple[str, ...]]


PHASES = {"prefill": "prefill of {n} tokens", "decode": "a token, after {n_past}"}
METRICS = {"peak_rss": "memory: peak resident", "anonymous": "memory: its own, no file behind it"}
METRICS |= {"gpu": "memory of the GPU"}


def speed(runs: Sequence[Run]) -> list[Speed]:
    """Bars for each thing that was benchmarked; a row that is not verified has no figure."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for row in run.bench["rows"] if run.bench else ():
            groups[tuple(row[key] for key in WHICH[3:])].append(row)
    styles: dict[str, int] = {}
    return [one_speed(i, key, rows, styles) for i, (key, rows) in enumerate(groups.items())]


def one_speed(
    index: int, key: tuple[Any, ...], rows: list[dict[str, Any]], styles: dict[str, int]
) -> Speed:
    model, title = key[0], title_of(*key[1:])
    found, table = [], []
    for row in rows:
        label = "-".join(str(row[name]) for name in WHICH[:3])
        style = styles.setdefault(label, len(styles))
        median, verified = row["median"], row["verdict"] == "verified" and row["median"] is not None
        words = amount(median, row["unit"]) if verified else str(row["verdict"])
        reached = row["roofline"] if verified and row["unit"] == "seconds" else None
        words += f" · {reached:.0%} of roofline" if reached else ""
        best = median * reached if reached else None
        low, high = (row["low"], row["high"]) if verified else (None, None)
        found.append(plots.Bar(style, label, median if verified else None, low, high, best, words))
        span = f"{amount(low, row['unit'])} to {amount(high, row['unit'])}" if low is not None else ""
        rate = row["tokens_per_second"]
        table.append(
            (label, words, span, str(len(row["samples"])), number(rate) if rate else "", row["detail"])
        )
    said = "; ".join(f"{bar.name} {bar.words}" for bar in found)
    figure = plots.bars(f"speed{index}", found, f"{title}: {said}")
    return Speed(f"{title} · {model}", figure, table)


def title_of(phase: str, metric: str, n_past: int, n: int, batch: int) -> str:
    """What a row of a benchmark timed or weighed, in words."""
    title = METRICS.get(metric) or PHASES.get(phase, "start to first logits").format(n=n, n_past=n_past)
    return title + f", batch {batch}" * (batch not in (None, 0, 1))


def amount(value: float | None, unit: str) -> str:
    """Seconds or bytes in a unit that suits the size."""
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


# -- what it was made with


class Made(NamedTuple):
    """A run: its name, the commands that repeat it, and the rest of its environment as pairs."""

    name: str
    commands: list[str]
    pairs: list[tuple[str, list[tuple[str, str]]]]


def made_with(run: Run) -> Made:
    """The environment of a run; a value is a list of (name, text), the name "" for one alone."""
    commands, pairs = [], []
    for environment in environments_of(run):
        if environment.get("command"):
            commands.append(str(environment["command"]))
        for name, value in environment.items():
            if name == "command":
                continue
            inner = value.items() if isinstance(value, dict) else [("", value)]
            pairs.append((name.replace("_", " "), [(str(key), plain(item)) for key, item in inner]))
    return Made(run.name, commands, list({str(pair): pair for pair in pairs}.values()))


def plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
