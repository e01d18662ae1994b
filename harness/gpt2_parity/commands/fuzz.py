"""parity fuzz: search one implementation for minutes, and keep what fails."""

from typing import Annotated

import typer

from gpt2_parity import api
from gpt2_parity.commands.options import (
    DEFAULT,
    CorpusOption,
    MemoryOption,
    SeedOption,
    TargetOption,
    ThreadsOption,
    TimeoutOption,
)
from gpt2_parity.report import terminal
from gpt2_parity.run.corpus import NOT_AGAIN, NOT_ALONE, THERE, WRITTEN, Kept
from gpt2_parity.verdict import explain

LINES = {
    WRITTEN: "{scope}: written: {path}; run it alone to see it fail",
    THERE: "{scope}: the corpus has this failure already",
    NOT_AGAIN: "{scope}: the same calls did not fail again, so nothing was written",
    NOT_ALONE: "{scope}: a file with the same calls does not fail when run alone, so none was written",
}


def fuzz(
    implementation: Annotated[
        str,
        typer.Argument(
            metavar="IMPL", help="PATH.py[:attr], MODULE[:attr], or a name that parity list shows."
        ),
    ],
    minutes: Annotated[
        float, typer.Option(help="Minutes to search, in each target.", min=0, max=10000)
    ] = 5.0,
    seed: SeedOption = None,
    target: TargetOption = None,
    corpus: CorpusOption = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    threads: ThreadsOption = None,
) -> None:
    """Search for sizes, values and histories that are wrong; keep what fails as small Python files."""
    console = terminal.console()
    with terminal.progress(console) as progress:
        fuzzed = api.fuzz(
            implementation,
            minutes=minutes,
            seed=seed,
            targets=target,
            corpus=corpus,
            timeout=timeout,
            memory=memory,
            threads=threads,
            progress=progress,
        )
    for line in [*map(described, fuzzed.kept), *without_condition(fuzzed)]:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    for name, text in explain.drawn(fuzzed.verdict.rows).items():
        console.print(f"  {name}: {text}", markup=False, highlight=False, soft_wrap=True)
    terminal.show(console, fuzzed.verdict.results)
    raise typer.Exit(fuzzed.verdict.exit_code)


def described(kept: Kept) -> str:
    """What became of a failure, as a line."""
    return LINES[kept.outcome].format(scope=kept.scope, path=kept.path)


def without_condition(fuzzed: api.Fuzzed) -> list[str]:
    """A line if what is wrong was wrong from the start: then there is nothing to make smaller."""
    rows = [row for row in fuzzed.verdict.rows if row.check == "search" and row.verdict == "fail"]
    plain = rows and not any({"trial", "corpus"} & row.evidence.get("search", {}).keys() for row in rows)
    if not plain or fuzzed.kept:
        return []
    return ["nothing was written: it fails without any condition; parity gate says what is wrong"]
