"""parity golden build and verify: make and check the golden records."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpt2_parity.commands.options import ModelOption
from gpt2_parity.commands.plain_help import Command, Group
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.implementation import second_oracle
from gpt2_parity.model import catalogue
from gpt2_parity.reference import build_golden, golden
from gpt2_parity.report import terminal

app = typer.Typer(help="Make or check the golden records.", no_args_is_help=True, cls=Group)


@app.command("build", cls=Command)
def build(
    model: ModelOption = "micro",
    official_source: Annotated[
        Path | None,
        typer.Option(help="A clone of openai/gpt-2, whose src/model.py, unmodified, must agree too."),
    ] = None,
) -> None:
    """Make the golden records. Two float64 oracles must agree, or nothing is written."""
    console = terminal.console()
    with console.status("golden") as status:
        where = catalogue.locate(model)
        manifest = build_golden.build(
            where,
            second_oracle.tensorflow,
            lambda case: status.update(f"golden: {case}"),
            official_source,
        )
    show_agreement(console, manifest)
    console.print(f"  written: {where.records}", highlight=False, soft_wrap=True)


@app.command("verify", cls=Command)
def verify(model: ModelOption = "micro") -> None:
    """Check every file's SHA-256, then recompute every record with the NumPy float64 oracle."""
    console = terminal.console()
    with console.status("golden") as status:
        where = catalogue.locate(model)
        build_golden.verify(where, lambda case: status.update(f"golden: {case}"))
    show_agreement(console, golden.read_manifest(where))
    console.print("[green]PASS[/green]: every record agrees with the float64 oracle")


def show_agreement(console: Console, manifest: golden.Manifest) -> None:
    """Print how well the oracles agreed on each case."""
    title = f"{manifest.model}: NumPy float64 against TensorFlow float64"
    table = Table(title=title, title_justify="left")
    for name in ("case", "worst, in float64 noise units", "at", "logits, greatest difference"):
        table.add_column(name)
    official = all(entry.official_noise_units is not None for entry in manifest.cases.values())
    if official:
        table.add_column("OpenAI's own code, in float32 noise units")
    for case, entry in manifest.cases.items():
        worst = f"{entry.agreement_noise_units:.2f} of {NOISE.most:g}"
        difference = f"{entry.agreement_logits_max_abs:.2g}"
        cells = [escape(case), worst, escape(entry.agreement_worst_at), difference]
        if official:
            cells.append(f"{entry.official_noise_units:.2f} of {NOISE.most:g}")
        table.add_row(*cells)
    console.print(table)
    for line in manifest.oracles[2:]:
        console.print(f"  third oracle: {line}", highlight=False, soft_wrap=True)
