"""The command line: parity verify, list, golden.

Exit codes: 0 every required check passed; 1 a disagreement; 2 could not judge (bad usage, missing
file, corrupt checkpoint, a device required but absent).
"""

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import discover, golden, limits, models, results, run, terminal
from harness.checks import CHECKS
from harness.contract import CannotJudge, Target
from harness.judge import exit_code

app = typer.Typer(
    help="Is this GPT-2 right, and where is it wrong? Exit codes: 0 right, 1 wrong, 2 could not judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
golden_app = typer.Typer(help="Make or check the golden records.", no_args_is_help=True)
app.add_typer(golden_app, name="golden")

ModelOption = Annotated[
    str,
    typer.Option(
        help="micro, 124M, 355M, 774M, 1558M, shape:124M and so on, or a folder with OpenAI's files."
    ),
]


@app.command()
def verify(
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Name in impls/, module, or PATH.py; repeat for several. Default: all in impls/."
        ),
    ] = None,
    model: ModelOption = "micro",
    target: Annotated[
        list[str] | None,
        typer.Option(help="DEVICE-DTYPE such as cpu-float32; repeat. Default: all that are offered."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results.json, junit.xml and report.md.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the fresh random tokens. Default: random, and shown.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds without progress after which an implementation is stopped.")
    ] = run.Limits().seconds,
    memory: Annotated[
        float, typer.Option(help="GiB of its own memory beyond which an implementation is stopped.")
    ] = run.Limits().gigabytes,
) -> None:
    """Verify implementations against the golden records, each in a process of its own."""
    console = terminal.console()
    found = [discover.find(name) for name in impl or discover.names()]
    targets = [parse_target(text) for text in target or ()]
    where = models.locate(model)
    if out is not None:
        writable(out)
        results.clear(out)
    drawn = secrets.randbelow(2**31) if seed is None else seed
    with terminal.progress(console) as progress:
        allowed = run.Limits(timeout, memory)
        outcome = run.verify(found, where, targets, drawn, allowed, progress)
    terminal.show(console, outcome)
    if out is not None:
        results.write(outcome, out)
        console.print(f"  written: {out}/results.json, junit.xml, report.md", highlight=False)
    raise typer.Exit(exit_code(outcome.rows))


@app.command("list")
def list_command() -> None:
    """List implementations, models and checks."""
    console = terminal.console()
    for title, rows in {
        "implementations (impls/gpt2_NAME.py)": [(name, docline(name)) for name in discover.names()],
        "models": [(name, availability(name)) for name in ("micro", *models.OFFICIAL)],
        "checks": [(name, (check.__doc__ or "").splitlines()[0]) for name, check in CHECKS.items()],
    }.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


@golden_app.command("build")
def golden_build(model: ModelOption = "micro") -> None:
    """Make the golden records anew: two float64 oracles must agree, or nothing is written."""
    console = terminal.console()
    with console.status("golden") as status:
        where = models.locate(model)
        manifest = golden.build(where, lambda case: status.update(f"golden: {case}"))
    show_agreement(console, manifest)
    console.print(f"  written: {where.records}", highlight=False, soft_wrap=True)


@golden_app.command("verify")
def golden_verify(model: ModelOption = "micro") -> None:
    """Check every file's SHA-256, then recompute every record with the NumPy float64 oracle."""
    console = terminal.console()
    with console.status("golden") as status:
        where = models.locate(model)
        golden.verify(where, lambda case: status.update(f"golden: {case}"))
    show_agreement(console, golden.read_manifest(where))
    console.print("[green]PASS[/green]: every record is what the float64 oracle says today")


def show_agreement(console: Console, manifest: dict[str, Any]) -> None:
    title = f"{manifest['model']}: NumPy float64 against TensorFlow float64"
    table = Table(title=title, title_justify="left")
    for name in ("case", "worst, in float64 noise units", "at", "logits, greatest difference"):
        table.add_column(name)
    for case, entry in manifest["cases"].items():
        worst = f"{entry['agreement_noise_units']:.2f} of {limits.NOISE.most:g}"
        difference = f"{entry['agreement_logits_max_abs']:.2g}"
        table.add_row(escape(case), worst, escape(entry["agreement_worst_at"]), difference)
    console.print(table)


def docline(name: str) -> str:
    """The first line of an implementation's docstring, read without importing its framework."""
    import ast

    source = (discover.IMPLS / f"{discover.PREFIX}{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def availability(name: str) -> str:
    try:
        where = models.locate(name)
        golden.read_manifest(where)
    except CannotJudge as error:
        return str(error).partition(". ")[0]
    return f"ready: {where.checkpoint}"


def parse_target(text: str) -> Target:
    device, dash, dtype = text.partition("-")
    if not (device and dash and dtype):
        raise CannotJudge(f"target {text!r}: expected DEVICE-DTYPE, such as cpu-float32")
    return Target(device, dtype)


def writable(out: Path) -> None:
    """Find out before the work, not after it, that there is no place for the results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotJudge(f"{out}: cannot be made ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise CannotJudge(f"{out}: is not writable")


def main() -> None:
    """Entry point: whatever keeps us from judging is one line on stderr and exit code 2."""
    sys.path.append(os.getcwd())  # --impl MODULE may be a module beside the user
    try:
        app(standalone_mode=True)
    except CannotJudge as error:
        Console(stderr=True).print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(2)
