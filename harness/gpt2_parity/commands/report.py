"""parity report, compare: the page of one or several runs, and what changed between two."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files.output_folder import writable
from gpt2_parity.report import terminal


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders that --out named; several runs are merged into one page."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The .html file to write. Default: report.html in the first folder."),
    ] = None,
) -> None:
    """Write report.html from the results of one or several runs, benchmarks included."""
    from gpt2_parity.report import page  # jinja2 is needed only here

    target = out or runs[0] / "report.html"
    if target.suffix != ".html":
        raise CannotJudge(f"{target}: the report is one file; give it a name that ends in .html")
    page.write(runs, target)
    console = terminal.console()
    console.print(f"written: {target}", highlight=False, soft_wrap=True)
    note_on_figures(console)


def note_on_figures(console: Console) -> None:
    """Say so if a page that was written has no figures, and how to get them."""
    from gpt2_parity.report import plots

    if not plots.can_draw():
        console.print(f"  {plots.MISSING}", highlight=False, markup=False, soft_wrap=True)


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="Folder of a run, or its results.json.")
    ],
    after: Annotated[
        Path,
        typer.Argument(metavar="AFTER", help="Folder or results.json of the run to compare with it."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.md and compare.html.")] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="List every change, not only the causes of what fails.")
    ] = False,
) -> None:
    """Show what is better, worse, slower, new or gone between two runs; exit 1 on a regression."""
    from gpt2_parity.report import compare as comparison  # likewise

    if out is not None:
        writable(out)
    found = comparison.compare(before, after)
    terminal.show_comparison(terminal.console(), found, whole)
    if out is not None:
        comparison.write(found, out)
    raise typer.Exit(int(found.regressed))
