"""The command line of parity: each command is a function in commands/, and main() runs one.

Exit codes: 0 every required check passed; 1 a disagreement; 2 could not judge (bad usage, a missing
file, a corrupt checkpoint, an absent device).
"""

import contextlib
import io
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from gpt2_parity.commands import golden, listing
from gpt2_parity.commands.bench import bench
from gpt2_parity.commands.fuzz import fuzz
from gpt2_parity.commands.plain_help import Command, Group
from gpt2_parity.commands.published import fetch, known
from gpt2_parity.commands.report import compare, report
from gpt2_parity.commands.verify import gate, new, resume, verify
from gpt2_parity.contract.interface import CannotJudge

app = typer.Typer(
    help="Is this GPT-2 right, and if not, where is it wrong? "
    "Exit codes: 0 right, 1 wrong, 2 could not judge.",
    no_args_is_help=True,
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},  # the commands inherit it
    pretty_exceptions_enable=False,
)
for function in (verify, gate, fuzz, resume, new, bench, report, compare, fetch, known):
    app.command(cls=Command)(function)
app.command("list", cls=Command)(listing.show)
app.add_typer(golden.app, name="golden")


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpt2-parity {metadata.version('gpt2-parity')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of parity itself, before any command."""


def main() -> None:
    """Run the command; whatever keeps it from judging becomes one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # what cannot be encoded is shown as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that temporary files are removed
    try:
        command()
    except CannotJudge as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(2)
    except OSError as error:
        refuse(f"{error.filename or 'standard output or a temporary file'}: {error.strerror or error}")
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            raise
        refuse(f"{UNFORESEEN} {error!r} ({location(error)}); set PARITY_TRACEBACK=1 for the traceback")


INTERRUPTED = 130  # typer's exit code for Ctrl-C
UNFORESEEN = "a bug in parity itself, please report it:"


def command() -> None:
    """Run the command and flush its output: a verdict that nobody could read is no verdict."""
    with contextlib.suppress(FileNotFoundError):  # the working folder has been removed
        sys.path.append(os.getcwd())  # --impl MODULE may be a module in the working folder
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the reader of our output has closed it
            sys.exit(2)
        if end.code == INTERRUPTED:
            raise CannotJudge(
                "interrupted; a run with --out DIR is continued by: parity resume DIR"
            ) from end
        try:
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python flushes again at exit
            raise CannotJudge(f"standard output: {error.strerror}") from error
        raise


def location(error: BaseException) -> str:
    """Where an exception was raised, as file:line."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def refuse(text: str) -> NoReturn:
    """Print one line on stderr, whatever characters the text holds, and exit with code 2."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    Console(stderr=True).print(f"[bold red]error[/bold red]: {escape(line)}", soft_wrap=True)
    sys.exit(2)


LONGEST = 1000  # characters of an error message; the middle of a longer one is cut
