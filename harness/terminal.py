"""What a person sees in the terminal: progress while it runs, then a table and the failures."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness import results, story
from harness.checks import CHECKS
from harness.judge import Row, exit_code
from harness.run import Progress as Report
from harness.run import Results

SHOWN = 8  # paragraphs for each implementation; the files have every failure


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A bar for each implementation and target, filled check by check."""
    shape = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*shape, console=console, transient=True) as bars:
        tasks = {}

        def report(name: str, target: str, done: int) -> None:
            text = escape(f"{name} {target or 'starting'}")
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=len(CHECKS) if target else None)
            bars.update(tasks[text], completed=done)
            for other, task in tasks.items():
                if other == escape(f"{name} starting") and target:
                    bars.update(task, visible=False)

        yield report


def console() -> Console:
    """Standard output; where that is a file or a pipe, wide enough for the table."""
    found = Console()
    return found if found.is_terminal else Console(width=140)


def show(console: Console, found: Results) -> None:
    """The table of implementations x checks, the greedy texts, and every failure's first lines."""
    rows = found.rows
    names = results.columns(rows)
    title = f"{found.environment['model']}: share of each limit used"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("implementation", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for name, cells in results.grid(rows).items():
        values = results.pick(cells, names)
        table.add_row(escape(name), *(paint(value) for value in values))
    console.print(table)
    for name, text in results.greedy_texts(rows).items():
        console.print(f"  {escape(name):28} {escape(text)}", highlight=False, soft_wrap=True)
    for name, told in story.tell(rows).items():
        console.print(f"\n[bold red]{escape(name)}[/bold red]", highlight=False)
        for paragraph in told[:SHOWN]:
            console.print(f"  {escape(paragraph)}", highlight=False, soft_wrap=True)
        if len(told) > SHOWN:
            console.print(f"  ... and {len(told) - SHOWN} more; results.json has all of them")
    for row in rows:
        if row.verdict == "skipped":
            console.print(f"- {escape(results.label(row))}: {escape(row.detail)}", highlight=False)
    if found.environment["cuda"] != "present":
        console.print("  cuda: skipped: no CUDA device", highlight=False)
    console.print(f"  seed of the fresh tokens: {found.environment['seed']}", highlight=False)
    console.print(verdict(rows))


def paint(value: str) -> str:
    return f"[bold red]{value}[/bold red]" if value.startswith("FAIL") else value


def verdict(rows: list[Row]) -> str:
    """The last line."""
    words = {0: "[green]PASS[/green]", 1: "[bold red]FAIL[/bold red]", 2: "[yellow]NO VERDICT[/yellow]"}
    return f"{words[exit_code(rows)]}: {results.headline(rows)}"
