"""The command line: parity verify, gate, resume, new, bench, report, compare,
fetch, known, list, golden.

Exit codes: 0 every required check passed; 1 a disagreement; 2 could not judge (bad usage, missing
file, corrupt checkpoint, a device required but absent).
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
from gpt2_parity.commands.published import fetch, known
from gpt2_parity.commands.report import compare, report
from gpt2_parity.commands.verify import gate, new, resume, verify
from gpt2_parity.contract.interface import CannotJudge

app = typer.Typer(
    help="Is this GPT-2 right, and where is it wrong? Exit codes: 0 right, 1 wrong, 2 could not judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for function in (verify, gate, resume, new, bench, report, compare, fetch, known):
    app.command()(function)
app.command("list")(listing.show)
app.add_typer(golden.app, name="golden")


def tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"gpt2-parity {metadata.version('gpt2-parity')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Name the version.")
    ] = False,
) -> None:
    """What stands before any command."""


def main() -> None:
    """Entry point: whatever keeps us from judging is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a name that cannot be encoded is shown as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # what is temporary is cleared up
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
        refuse(f"{UNFORESEEN} {error!r} ({place(error)}); PARITY_TRACEBACK=1 shows all of it")


INTERRUPTED = 130  # how typer ends on Ctrl-C
UNFORESEEN = "a fault of parity itself, please report it:"


def command() -> None:
    """The command, with all its output out: a verdict that could not be told is none."""
    with contextlib.suppress(FileNotFoundError):  # there is no folder that we are in
        sys.path.append(os.getcwd())  # --impl MODULE may be a module beside the user
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # whoever read our output has gone
            sys.exit(2)
        if end.code == INTERRUPTED:
            raise CannotJudge(
                "interrupted; if you gave --out DIR to verify or gate, go on with: parity resume DIR"
            ) from end
        try:
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries again at its end
            raise CannotJudge(f"standard output: {error.strerror}") from error
        raise


def place(error: BaseException) -> str:
    """Where an exception was raised: file:line."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def refuse(text: str) -> NoReturn:
    """One line on stderr, whatever the text holds, and exit code 2."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    Console(stderr=True).print(f"[bold red]error[/bold red]: {escape(line)}", soft_wrap=True)
    sys.exit(2)


LONGEST = 1000  # characters of an error
