"""What a benchmark leaves behind: bench.json, bench.md and a table, all from the same rows."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpt2_parity.bench.growth import Fit
from gpt2_parity.bench.session import Report
from gpt2_parity.bench.workload import Outcome, Row
from gpt2_parity.files import atomic
from gpt2_parity.report import markdown, runs
from gpt2_parity.report.cells import quantity

if TYPE_CHECKING:
    import pandas as pd

FILES = (runs.BENCH, "bench.md", "report.html")


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A bar that moves only between turns: redrawing it must not take time from what is timed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task("starting", total=None)

        def report(what: str, done: int, of: int) -> None:
            bars.update(task, description=escape(what), completed=done, total=of, refresh=True)

        yield report


def document(outcome: Outcome, fits: Sequence[Fit] | None) -> dict[str, Any]:
    """bench.json. What growth measured stands apart: its rows are no side-by-side comparison."""
    rows = [row._asdict() for row in outcome.rows]
    found: dict[str, Any] = {
        "schema": runs.BENCH_SCHEMA,
        "environment": outcome.environment,
        "rows": rows,
    }
    if fits is not None:
        found |= {"rows": [], "growth": {"rows": rows, "fits": [fit._asdict() for fit in fits]}}
    return found


def write(out: Path, outcome: Outcome, fits: Sequence[Fit] | None = None) -> None:
    """Write both files into out, each all or nothing. Raises CannotJudge where that fails."""
    text = json.dumps(document(outcome, fits), indent=1, allow_nan=False) + "\n"
    atomic.write_text(out / runs.BENCH, text)
    atomic.write_text(out / "bench.md", job_summary(outcome, fits))


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a benchmark as a tidy frame; frame.attrs has the environment.

    Raises CannotJudge where bench.json is missing, not JSON, or of another schema.
    """
    import pandas as pd

    found = runs.read_bench(Path(directory) / runs.BENCH)
    frame = pd.DataFrame(found["rows"], columns=list(Row._fields))
    frame.attrs = found["environment"]
    return frame


# -- words and tables

HEADER = ["", "median", "interval", "tokens/s", "of roofline", "speed against {}", "verdict"]


def what(row: Row) -> str:
    """What a row is about: decode after 900 (32 tokens)."""
    batch = f", batch {row.batch}" if row.batch > 1 else ""
    if row.phase == "decode":
        return f"decode after {row.n_past}{batch}"
    if row.phase == "memory":
        return row.metric.replace("_", " ").replace("rss", "RSS")
    names = {"start": "start to first logits", "load": "load, of that", "prefill": "prefill"}
    return f"{names[row.phase]}, {row.n} tokens{batch}"


def cells(row: Row) -> list[str]:
    """The cells of a row, after its implementation."""
    if row.verdict != "verified":
        return ["", "", "", "", "", f"{row.verdict.upper()}: {row.detail}"]
    spread = f"{quantity(row.low, row.unit)} to {quantity(row.high, row.unit)}"
    speed = f"{row.tokens_per_second:.3g}" if row.tokens_per_second is not None else ""
    share = f"{row.roofline:.0%}" if row.roofline is not None else ""
    ratio = ""
    if row.implementation == row.against:
        ratio = "baseline"
    elif row.speedup is not None:
        ratio = f"{row.speedup:.2f}x ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    return [quantity(row.median, row.unit), spread, speed, share, ratio, row.verdict]


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what was measured, in the order measured, so that implementations stand together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.model}: {what(row)}", []).append(row)
    return found


def header(outcome: Outcome) -> list[str]:
    return [name.format(outcome.environment["against"]) for name in HEADER]


def made_with(outcome: Outcome) -> list[str]:
    """What the figures depend on, in a few lines."""
    e = outcome.environment
    gemm = e["gemm_flop_per_s"]
    rate = f"{gemm / 1e9:.0f} GFLOP/s" if gemm else "not measured in this dtype"
    return [
        f"{e['machine']}, {e['threads']} threads. Machine in this run: reads "
        f"{e['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, matrix product {rate}.",
        f"{e['samples']} rounds, taking turns; medians, with the interval that holds the median with "
        f"{e['interval_confidence']:.1%}. Expected: {e['truth']}.",
        "Decode is the time per token of generate(1 + n) less generate(1). Start is a fresh process, "
        "files in the page cache, to its first logits; memory is that process's after them.",
    ]


def show(console: Console, outcome: Outcome, fits: Sequence[Fit] | None = None) -> None:
    """The tables in the terminal."""
    if fits is not None:
        show_fits(console, fits)
    title = f"{outcome.environment['model']}: {'side by side' if fits is None else 'what was fitted'}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header(outcome)):
        table.add_column(name, justify="left" if i in (0, 6) else "right", overflow="fold")
    for group, rows in grouped(outcome.rows).items():
        table.add_row(f"[bold]{escape(group)}[/bold]")
        for row in rows:
            found = cells(row)
            style = "" if row.verdict in ("verified", "skipped") else "bold red"
            table.add_row(f"  {escape(row.implementation)}", *map(escape, found), style=style)
    console.print(table)
    for line in made_with(outcome):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def job_summary(outcome: Outcome, fits: Sequence[Fit] | None) -> str:
    """bench.md"""
    lines = [f"# GPT-2 side by side: {outcome.environment['model']}", ""]
    if fits is not None:
        lines += ["## How cost grows", "", *markdown.table(FIT_HEADER, list(map(fit_cells, fits)))]
        lines += ["", FIT_NOTE, "", "## What was fitted", ""]
    body = [
        [markdown.escape(text) for text in (group, row.implementation, *cells(row))]
        for group, rows in grouped(outcome.rows).items()
        for row in rows
    ]
    lines += markdown.table(["measured", "implementation", *header(outcome)[1:]], body)
    lines += ["", *(f"{markdown.escape(line)}\n" for line in made_with(outcome)), "## Made with", ""]
    return "\n".join([*lines, "```json", json.dumps(outcome.environment, indent=1), "```", ""])


FIT_HEADER = ["implementation", "phase", "against", "exponent", "interval", "roofline", "FLOPs", "bytes"]
FIT_NOTE = (
    "Exponent: slope of log time over log size, fitted in each round, median over rounds. Roofline, "
    "FLOPs and bytes: the slope over the same sizes of the least time possible, of the FLOPs and of "
    "the bytes that theory asks for. Time is that of one pass of the whole batch; of decode, for one "
    "token in each row."
)


def fit_cells(fit: Fit) -> list[str]:
    if fit.exponent is None:
        return [fit.implementation, fit.phase, fit.against, "", fit.detail, "", "", ""]
    spread = f"{fit.low:.2f} to {fit.high:.2f}"
    theory = [
        f"{value:.2f}" if value is not None else "" for value in (fit.roofline, fit.flops, fit.bytes)
    ]
    return [fit.implementation, fit.phase, fit.against, f"{fit.exponent:.2f}", spread, *theory]


def show_fits(console: Console, fits: Sequence[Fit]) -> None:
    """The exponents in the terminal."""
    table = Table(title="how cost grows: exponents", title_justify="left", box=SIMPLE_HEAD)
    for i, name in enumerate(FIT_HEADER):
        table.add_column(name, justify="left" if i < 3 else "right")
    for fit in fits:
        table.add_row(*map(escape, fit_cells(fit)))
    console.print(table)
    console.print(f"  {escape(FIT_NOTE)}", highlight=False, soft_wrap=True)
