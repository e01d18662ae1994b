"""parity bench: time implementations side by side."""

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gpt2_parity.bench import journal, session, tables
from gpt2_parity.bench.journal import Journal
from gpt2_parity.bench.workload import Settings
from gpt2_parity.commands.options import (
    DEFAULT,
    MemoryOption,
    ModelOption,
    TimeoutOption,
    parse_target,
    resources,
)
from gpt2_parity.commands.report import note_on_figures
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files.output_folder import alone, writable
from gpt2_parity.implementation import discovery
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue, checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.report import terminal

QUICK = 110.0  # seconds in which --quick is to end; loading, verifying and one round cannot be shortened


def bench(
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, module, or PATH.py; repeat. Default: all shipped, without engines and baselines."
        ),
    ] = None,
    model: ModelOption = "shape:124M",
    target: Annotated[str, typer.Option(help="DEVICE-DTYPE.")] = "cpu-float32",
    against: Annotated[str, typer.Option(help="The baseline. Default: the first implementation.")] = "",
    quick: Annotated[
        bool,
        typer.Option(
            help="Time prefill of 128 tokens only, and decode after 16 only; fewer rounds where two "
            "minutes would not be enough."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(help="Rounds in which each has a turn; 6 or more.")] = 6,
    threads: Annotated[
        int, typer.Option(help="Threads of each implementation. 0: all cores.", min=0)
    ] = 0,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.md, report.html.")
    ] = None,
) -> None:
    """Time implementations side by side. Only what is verified before and after gets a figure."""
    found = discovery.find_all(impl or discovery.default_names())
    allowed = resources(timeout, memory, threads or None)
    settings = Settings(
        parse_target(target), (), samples, secrets.randbelow(2**31), allowed, QUICK if quick else None
    )
    command = shlex.join(["parity", *sys.argv[1:]])
    run(found, catalogue.locate(model), settings, against, quick, out, command)


def resume(out: Path) -> NoReturn:
    """Continue the benchmark whose journal is in a folder. Raises CannotJudge where it has changed."""
    inputs, _ = journal.read(out / journal.NAME)
    found, model = inputs.implementations, catalogue.locate(inputs.model)
    run(found, model, inputs.settings, inputs.against, False, out, inputs.command, resumed=True)


def run(
    found: Sequence[Found],
    model: Model,
    settings: Settings,
    against: str,
    quick: bool,
    out: Path | None,
    command: str,
    *,
    resumed: bool = False,
) -> NoReturn:
    """Time, show and write; exit with the outcome. Without out, only the journal is kept meanwhile."""
    console = terminal.console()
    folder = out or checkpoint.home() / "bench" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    writable(folder)
    kept = Journal(folder / journal.NAME, resumed)
    with alone(folder):
        refuse_folders(folder)
        try:
            with tables.progress(console) as progress:
                outcome = session.measure(
                    found, model, settings, against, quick, progress, kept, command
                )
        except (KeyboardInterrupt, SystemExit, CannotJudge) as error:
            if not kept.written:
                raise
            reason = error if isinstance(error, CannotJudge) else "interrupted"
            raise CannotJudge(f"{reason}; {journal.summary(kept.path)}") from error
        tables.show(console, outcome)
        if out is not None:
            tables.write(out, outcome)
            draw(out)
            console.print(f"  written: {out}/{', '.join(tables.FILES)}", highlight=False)
            note_on_figures(console)
        kept.path.unlink(missing_ok=True)
    if out is None:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(session.exit_code(outcome.rows))


def refuse_folders(out: Path) -> None:
    """Raise CannotJudge where a folder has the name of a file that will be written."""
    for name in tables.FILES:
        if (out / name).is_dir() and not (out / name).is_symlink():
            raise CannotJudge(f"{out / name}: cannot be removed (it is a folder)")


def draw(out: Path) -> None:
    """Write the page of all results in out: this benchmark, and a verification if one is there."""
    from gpt2_parity.report import page  # not needed without --out

    page.write([out], out / "report.html")
