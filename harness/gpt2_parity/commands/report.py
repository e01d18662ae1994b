"""parity report, compare: runs are drawn, and held against each other."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files.output_folder import writable
from gpt2_parity.report import terminal


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs; several are merged.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: report.html in the first folder.")
    ] = None,
) -> None:
    """Draw report.html from the results of one or several runs."""
    from gpt2_parity.report import page  # what draws takes a second to import

    target = out or runs[0] / "report.html"
    if target.suffix != ".html":
        raise CannotJudge(f"{target}: the report is one .html file; name it with --out FILE.html")
    page.write(runs, target)
    terminal.console().print(f"written: {target}", highlight=False, soft_wrap=True)


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run, or its results.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The run to compare with it.")],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.md and compare.html.")] = None,
) -> None:
    """Compare two runs: what is better, worse, slower, new or gone. Exit code 1: a regression."""
    from gpt2_parity.report import compare as comparison  # what draws takes a second to import

    if out is not None:
        writable(out)
    found = comparison.compare(before, after)
    terminal.show_comparison(terminal.console(), found)
    if out is not None:
        comparison.write(found, out)
    raise typer.Exit(int(found.regressed))
