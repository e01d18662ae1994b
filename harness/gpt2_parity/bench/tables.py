"""The outputs of a benchmark, all from the same rows: bench.json, bench.md and a table."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpt2_parity.bench.session import Report, Stage
from gpt2_parity.bench.workload import Outcome, TimedRow
from gpt2_parity.files import atomic
from gpt2_parity.report import markdown, results, runs
from gpt2_parity.report.cells import quantity

if TYPE_CHECKING:
    import pandas as pd

FILES = (runs.BENCH, "bench.md", "report.html")


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line for each step that is not the next turn of a round.

    Both change only between turns, so that they take no time from what is timed.
    """
    if not console.is_terminal:
        yield lines(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task("starting", total=None)

        def report(stage: Stage) -> None:
            text = f"{stage.who}: {stage.what}" if stage.who else stage.what
            text = escape(text)
            bars.update(task, description=text, completed=stage.done, total=stage.of, refresh=True)

        yield report


def lines(console: Console) -> Report:
    """A report that prints a line: each step of one implementation, and each round once."""
    began, latest = time.monotonic(), ""

    def report(stage: Stage) -> None:
        nonlocal latest
        if not stage.round or stage.what != latest:
            text = f"{stage.who}: {stage.what}" if stage.who and not stage.round else stage.what
            line = f"{time.monotonic() - began:.0f} s, step {stage.done + 1} of {stage.of}: {text}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        latest = stage.what

    return report


def write(out: Path, outcome: Outcome) -> None:
    """Write bench.json and bench.md, each all or nothing. Raises CannotJudge where that fails."""
    document = {
        "schema": runs.BENCH_SCHEMA,
        "environment": outcome.environment,
        "rows": [row._asdict() for row in outcome.rows],
    }
    atomic.write_text(out / runs.BENCH, json.dumps(document, indent=1, allow_nan=False) + "\n")
    atomic.write_text(out / "bench.md", job_summary(outcome))


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a benchmark as a tidy frame; frame.attrs has the environment.

    Raises CannotJudge where bench.json is missing, not JSON, or of another schema, and without pandas.
    """
    found = runs.read_bench(Path(directory) / runs.BENCH)
    frame: pd.DataFrame = results.pandas().DataFrame(found["rows"], columns=list(TimedRow._fields))
    frame.attrs = found["environment"]
    return frame


# -- tables

HEADER = ["", "median", "interval", "tokens/s", "of roofline", "speed against {}", "verdict"]


def what(row: TimedRow) -> str:
    """What a row measured, for example: decode after 900."""
    batch = f", batch {row.batch}" if row.batch > 1 else ""
    if row.phase == "decode":
        return f"decode after {row.n_past}{batch}"
    if row.phase == "memory":
        return row.metric.replace("_", " ").replace("rss", "RSS")
    names = {"start": "start to first logits", "load": "load, of that", "prefill": "prefill"}
    return f"{names[row.phase]}, {row.n} tokens{batch}"


def cells(row: TimedRow) -> list[str]:
    """The cells of a row that follow its implementation."""
    if row.verdict != "verified":
        return ["", "", "", "", "", f"{row.verdict.upper()}: {row.detail}"]
    spread = f"{quantity(row.low, row.unit)} to {quantity(row.high, row.unit)}"
    speed = f"{row.tokens_per_second:.3g}" if row.tokens_per_second is not None else ""
    share = f"{row.roofline:.0%}" if row.roofline is not None else ""
    ratio = ""
    if row.implementation == row.against:
        ratio = "baseline"
    elif row.speedup is not None:
        ratio = speed_against(row)
    return [quantity(row.median, row.unit), spread, speed, share, ratio, row.verdict]


def speed_against(row: TimedRow) -> str:
    """The ratio to the baseline, with its interval; "cannot tell" where the interval holds 1."""
    low, high = row.speedup_low, row.speedup_high
    if len(row.samples) == 1:  # an interval of one sample would look exact
        return "cannot tell (one round)"
    unclear = low is not None and high is not None and low <= 1 <= high
    ratio = "cannot tell" if unclear else f"{row.speedup:.2f}x"
    return f"{ratio} ({low:.2f} to {high:.2f})"


def grouped(outcome: Outcome) -> dict[str, list[TimedRow]]:
    """Rows by what was measured, in the order of measurement, to show implementations together.

    Where there were fewer rounds than usual, that is said beside it.
    """
    found: dict[str, list[TimedRow]] = {}
    for row in outcome.rows:
        found.setdefault(f"{row.model}: {what(row)}", []).append(row)
    return {f"{text}{few(rows, outcome.environment['samples'])}": rows for text, rows in found.items()}


def few(rows: Sequence[TimedRow], usual: int) -> str:
    """The rounds of a group, if they are fewer than usual; "" otherwise."""
    n = max(len(row.samples) for row in rows)
    return f" ({n} of {usual} rounds)" if 0 < n < usual else ""


def header(outcome: Outcome) -> list[str]:
    return [name.format(outcome.environment["against"]) for name in HEADER]


def made_with(outcome: Outcome) -> list[str]:
    """A few lines about what the figures depend on."""
    e = outcome.environment
    gemm = e["gemm_flop_per_s"]
    rate = f"{gemm / 1e9:.0f} GFLOP/s" if gemm else "not measured in this dtype"
    return [
        f"{e['machine']}, {e['threads']} threads. Machine in this run: reads "
        f"{e['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, matrix product {rate}.",
        f"{e['samples']} rounds, taking turns; medians, with the interval that encloses the median with "
        f"{e['interval_confidence']:.1%}. Expected: {e['truth']}.",
        *few_rounds(outcome),
        "Decode is the time per token of generate(1 + n) less generate(1). Start is a fresh process, "
        "files in the page cache, to its first logits; memory is that process's after them.",
    ]


def few_rounds(outcome: Outcome) -> list[str]:
    """A line on the workloads that had fewer rounds than usual, if there are any."""
    found = outcome.environment["few_rounds"]
    texts = [
        f"{name}: {each['rounds']} (a round takes {each['seconds_of_a_round']} s; the interval encloses "
        f"the median with {each['interval_confidence']:.0%})"
        for name, each in found.items()
    ]
    return [f"Fewer rounds where a round is long, so as to end in time. {'; '.join(texts)}."] * bool(
        texts
    )


def show(console: Console, outcome: Outcome) -> None:
    """Print the table."""
    title = f"{outcome.environment['model']}: side by side"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header(outcome)):
        table.add_column(name, justify="left" if i in (0, 6) else "right", overflow="fold")
    for group, rows in grouped(outcome).items():
        table.add_row(f"[bold]{escape(group)}[/bold]")
        for row in rows:
            found = cells(row)
            style = "" if row.verdict in ("verified", "skipped") else "bold red"
            table.add_row(f"  {escape(row.implementation)}", *map(escape, found), style=style)
    console.print(table)
    for line in made_with(outcome):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def job_summary(outcome: Outcome) -> str:
    """The text of bench.md."""
    lines = [f"# GPT-2 side by side: {outcome.environment['model']}", ""]
    body = [
        [markdown.escape(text) for text in (group, row.implementation, *cells(row))]
        for group, rows in grouped(outcome).items()
        for row in rows
    ]
    lines += markdown.table(["measured", "implementation", *header(outcome)[1:]], body)
    lines += ["", *(f"{markdown.escape(line)}\n" for line in made_with(outcome)), "## Made with", ""]
    return "\n".join([*lines, "```json", json.dumps(outcome.environment, indent=1), "```", ""])
