"""Terminal output: progress bars during a run, then a table and what is wrong."""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.progress import Progress as Report
from gpt2_parity.contract.progress import Update
from gpt2_parity.contract.rows import NOT_ASKED, OUTCOMES, Results, exit_code, label
from gpt2_parity.report import envelope, results
from gpt2_parity.verdict import explain

if TYPE_CHECKING:  # a verdict does not need this module
    from gpt2_parity.report.compare import Comparison

COLOURS = {0: "green", 1: "bold red", 2: "yellow"}  # by exit code
WORDS = {code: f"[{colour}]{OUTCOMES[code]}[/{colour}]" for code, colour in COLOURS.items()}
FAILED = OUTCOMES[1]
READABLE = 100  # columns of a paragraph on a wide terminal
SHOWN = 8  # paragraphs for each target; the files have every failure


@contextmanager
def progress(console: Console, awaited: Collection[str] | None = None) -> Iterator[Report]:
    """Show a run: bars on a terminal; elsewhere, as in CI, a line for each start and each end.

    awaited: also a line for each check that fails, and for each of these.
    """

    def show_check(update: Update) -> None:
        if (
            awaited is not None
            and update.check
            and (update.outcome == FAILED or update.check in awaited)
        ):
            name = f"{update.implementation}-{update.target} {update.check}"
            console.print(f"{name}: {update.outcome}", markup=False, highlight=False)

    if not console.is_terminal:

        def report(update: Update) -> None:
            say(console, update)
            show_check(update)

        yield report
        return
    shape = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*shape, TimeRemainingColumn(), console=console, transient=True) as bars:
        shown = Bars(bars)

        def advance(update: Update) -> None:
            shown.show(update)
            show_check(update)

        yield advance


class Bars:
    """A bar for each implementation that starts and for each target, and one for the whole run."""

    def __init__(self, bars: Progress):
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.ended = 0  # targets
        self.lock = threading.Lock()  # several workers report at once
        self.whole = bars.add_task("all", total=None)

    def show(self, update: Update) -> None:
        with self.lock:
            self._show(update)

    def _show(self, update: Update) -> None:
        if update.step == "prepares":
            return
        if update.step == "again":
            say(self.bars.console, update)
            return
        starting = f"{update.implementation} starts"
        if update.step == "starts":
            self.tasks[starting] = self.bars.add_task(escape(starting), total=None)
        elif task := self.tasks.pop(starting, None):
            self.bars.remove_task(task)
        self.ended += update.step == "ends"
        checks = (self.ended + update.targets_left) * len(CHECKS)
        self.bars.update(
            self.whole, completed=self._done(update), total=None if update.starting else checks
        )

    def _done(self, update: Update) -> int:
        """Advance the bar of a target; return the number of checks done on all targets."""
        name = f"{update.implementation}-{update.target}"
        if update.target and name not in self.tasks:
            self.tasks[name] = self.bars.add_task(escape(name), total=len(CHECKS))
        if update.target:
            self.bars.update(self.tasks[name], completed=update.done, visible=update.step != "ends")
        known = {task.id: task for task in self.bars.tasks}
        return int(sum(known[task].completed for task in self.tasks.values() if known[task].total))


def say(console: Console, update: Update) -> None:
    """Print a line where an implementation starts or starts again, and where a target ends."""
    if update.step == "starts":
        console.print(f"{update.implementation} starts", markup=False, highlight=False)
    elif update.step == "ends":
        name = name_of(update)
        left = [counted(update.targets_left, "target")]
        left += [counted(update.starting, "implementation")] if update.starting else []
        text = f"{name}: {update.outcome} in {update.seconds:.1f} s, {' and '.join(left)} left"
        console.print(text, markup=False, highlight=False)
    elif update.step == "again":
        text = f"{name_of(update)}: dask worker {update.worker} was lost; it begins again"
        console.print(text, markup=False, highlight=False)


def name_of(update: Update) -> str:
    """The implementation, with its target if there is one yet."""
    return "-".join(part for part in (update.implementation, update.target) if part)


def counted(count: int, name: str) -> str:
    return f"{count} {name}" + "s" * (count != 1)


@contextmanager
def downloads(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for each file, with its size, speed and remaining time."""
    shape = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*shape, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(name: str, here: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total)
            bars.update(tasks[name], completed=here, total=total)

        yield report


def console() -> Console:
    """A console on standard output; if that is a file or a pipe, it is wide enough for the table."""
    standard = Console()
    return standard if standard.is_terminal else Console(width=180)


def show(console: Console, found: Results) -> None:
    """Print the table of implementations x checks, the greedy texts, what is wrong, and the verdict."""
    rows = found.rows
    title = f"{found.environment['model']}: share of each limit used"
    for table in tables(console, title, results.grid(rows), results.columns(rows)):
        console.print(table)
    for name, text in results.greedy_texts(rows).items():
        console.print(f"  {escape(name):28} {escape(text)}", highlight=False, soft_wrap=True)
    for name, paragraphs in explain.paragraphs(rows).items():
        console.print(f"\n[bold red]{escape(name)}[/bold red]", highlight=False)
        for paragraph in paragraphs[:SHOWN]:
            write(console, paragraph)
        if len(paragraphs) > SHOWN:
            more = len(paragraphs) - SHOWN
            write(console, f"... and {more} more; with --out DIR, results.json lists all failures")
    for line in explain.notes(rows):
        write(console, line, "- ")
    for row in rows:
        if row.verdict == "skipped" and not explain.left_out(row):
            write(console, f"{label(row)}: {explain.detail(row)}", "- ")
    for name, texts in envelope.lines(rows):
        for i, text in enumerate(texts):
            write(console, f"{name}: {text}" if name and i == 0 else text, "- " if i == 0 else "  ")
    if (cuda := found.environment["cuda"]) not in ("present", NOT_ASKED):
        console.print(f"  cuda: {cuda}", highlight=False, markup=False)
    console.print(f"  seed of the fresh tokens: {found.environment['seed']}", highlight=False)
    console.print(verdict(found), highlight=False)


def write(console: Console, text: str, lead: str = "  ") -> None:
    """Print a paragraph. A terminal breaks it between words, and all lines but the first are indented.

    lead: what the first line begins with. In a file or a pipe it is one line, which can be searched.
    """
    if not console.is_terminal:
        console.print(f"{lead}{escape(text)}", highlight=False, soft_wrap=True)
        return
    for i, line in enumerate(Text(text).wrap(console, min(console.width, READABLE) - len(lead))):
        line.rstrip()
        console.print(Text(lead if i == 0 else " " * len(lead)) + line, highlight=False)


Grid = Mapping[str, Mapping[str, str]]  # implementation, check, the share of the limit used


def tables(console: Console, title: str, grid: Grid, names: Sequence[str]) -> Iterator[Table]:
    """Implementations x checks, in as few tables as the console's width allows without cutting cells."""
    unbounded = console.options.update(width=sys.maxsize)
    shown: list[str] = []
    for name in names:
        wider = table_of(title, grid, [*shown, name])
        if shown and console.measure(wider, options=unbounded).maximum > console.width:
            yield table_of(title, grid, shown)
            title, shown = "", []
        shown.append(name)
    yield table_of(title, grid, shown)


def table_of(title: str, grid: Grid, names: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("implementation", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for name, cells in grid.items():
        table.add_row(escape(name), *(paint(value) for value in results.pick(cells, names)))
    return table


def answers(console: Console, title: str, found: Sequence[Any]) -> None:
    """Print every fact with its verdict, expected value, result and source; then the counts."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("fact", "verdict", "expected", "got", "source"):
        table.add_column(name, overflow="fold")
    for answer in found:
        if answer.verdict != "not run":
            expected = brief(answer.fact.get("expected", answer.fact.get("file")))
            got = "; ".join(part for part in (brief(answer.got), answer.detail) if part)
            cells = (answer.fact["id"], answer.verdict, expected, got, answer.fact["source"])
            table.add_row(*(paint(escape(cell)) for cell in cells))
    console.print(table)
    for answer in found:
        if answer.verdict == "not run":
            console.print(
                f"  not run: {answer.fact['id']}: {answer.detail}", markup=False, highlight=False
            )
    verdicts = [answer.verdict for answer in found]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))
    console.print(f"{WORDS[1 if 'fail' in verdicts else 0 if 'pass' in verdicts else 2]}: {counts}")


def brief(value: object) -> str:
    """A value on one line: numbers to six digits, long texts cut."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        text = ", ".join(f"{key} {brief(each)}" for key, each in value.items())
    elif isinstance(value, list):
        text = f"[{', '.join(map(brief, value))}]"
    else:
        text = value if isinstance(value, str) and value[:1] in "-0123456789" else repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def paint(value: str) -> str:
    return f"[bold red]{value}[/bold red]" if value == "fail" or value.startswith("FAIL") else value


def verdict(found: Results) -> str:
    """The last line: the outcome and the counts."""
    word = results.outcome(found)
    colour = COLOURS[exit_code(found.rows)]
    return f"[{colour}]{word}[/{colour}]: {escape(results.counts(found))}"


CHANGES = 40  # changes of a comparison that the terminal shows; its files list more


def show_comparison(console: Console, found: "Comparison", whole: bool = False) -> None:
    """Print the cause of each group of changes, a line for each other change, and the verdict.

    whole: a line for every change instead, however many there are.
    """
    from gpt2_parity.report import compare

    for cause in found.causes:
        console.print(
            f"[bold]{escape(compare.cause_title(cause))}[/bold]", highlight=False, soft_wrap=True
        )
        for text in cause.texts[:SHOWN]:
            write(console, text)
        if len(cause.texts) > SHOWN:
            write(console, f"... and {len(cause.texts) - SHOWN} more causes")
        console.print()
    changes = found.changes if whole else compare.condensed(found.others)

    title = f"{found.names[0]} and {found.names[1]}"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "implementation", "what", "before", "after", "note"):
        table.add_column(name, overflow="fold")
    for change in changes if whole else changes[:CHANGES]:
        texts = [compare.sign(change), *change[1:]]
        style = "red" if compare.KINDS[change.kind] else None
        table.add_row(*map(escape, texts), style=style)
    if changes:
        console.print(table)
    if len(changes) > CHANGES and not whole:
        console.print(f"  ... and {len(changes) - CHANGES} more")
    if found.causes and not whole:
        console.print("  --all lists every measurement that changed", highlight=False)
    for who in dict.fromkeys(drift.who for drift in found.drifts):
        moved = [f"{each.check} {each.ratio:.3g}" for each in found.drifts if each.who == who]
        write(console, f"{who}: errors moved, median ratio by check: {', '.join(moved)}")
    for note in found.notes:
        write(console, note)
    colour = "bold red" if found.regressed else "green"
    console.print(f"[{colour}]{compare.verdict(found)}[/{colour}]", highlight=False)
