"""parity bench: time implementations side by side."""

import secrets
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.bench import session, tables
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
from gpt2_parity.files.output_folder import alone, replacing, writable
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue
from gpt2_parity.report import terminal


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
        bool, typer.Option(help="Time prefill of 128 tokens only, and decode after 16 only.")
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
    console = terminal.console()
    found = discovery.find_all(impl or discovery.default_names())
    allowed = resources(timeout, memory, threads or None)
    settings = Settings(parse_target(target), (), samples, secrets.randbelow(2**31), allowed)
    if out is not None:
        writable(out)
    with ExitStack() as during:
        if out is not None:
            during.enter_context(alone(out))
        with ExitStack() as meanwhile:
            if out is not None:
                meanwhile.enter_context(replacing(out, tables.FILES))
            progress = meanwhile.enter_context(tables.progress(console))
            outcome = session.measure(found, catalogue.locate(model), settings, against, quick, progress)
        outcome.environment["command"] = shlex.join(["parity", *sys.argv[1:]])
        tables.show(console, outcome)
        if out is not None:
            tables.write(out, outcome)
            draw(out)
            console.print(f"  written: {out}/{', '.join(tables.FILES)}", highlight=False)
            note_on_figures(console)
    raise typer.Exit(session.exit_code(outcome.rows))


def draw(out: Path) -> None:
    """Write the page of all results in out: this benchmark, and a verification if one is there."""
    from gpt2_parity.report import page  # not needed without --out

    page.write([out], out / "report.html")
