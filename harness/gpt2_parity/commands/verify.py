"""parity verify, gate, resume, new: implementations are run and judged."""

import os
import secrets
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from gpt2_parity.commands.options import (
    DEFAULT,
    LedgerOption,
    MemoryOption,
    ModelOption,
    OutOption,
    SeedOption,
    TargetOption,
    ThreadsOption,
    TimeoutOption,
    parse_target,
    resources,
)
from gpt2_parity.commands.output_folder import alone, replacing, writable
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Results, exit_code
from gpt2_parity.implementation import discovery, template
from gpt2_parity.model import catalogue
from gpt2_parity.report import results, terminal
from gpt2_parity.run import runner
from gpt2_parity.run.supervisor import Resources
from gpt2_parity.verdict import known_failures as ledgers

JOURNAL = "journal"  # in --out, while a run is under way


def verify(
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, MODULE[:attr] or PATH.py[:attr]; repeat. Default: each impls/gpt2_NAME.py."
        ),
    ] = None,
    model: ModelOption = "micro",
    target: TargetOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    threads: ThreadsOption = None,
    ledger: LedgerOption = None,
) -> None:
    """Verify implementations against the golden records, each in a process of its own."""
    found = discovery.find_all(impl or discovery.names())
    allowed = resources(timeout, memory, threads)
    start(request(found, model, target, seed, "", allowed, ledger), out)


def gate(
    implementation: Annotated[str, typer.Argument(help="PATH.py[:attr], MODULE[:attr] or a name.")],
    model: ModelOption = "micro",
    target: TargetOption = None,
    require_device: Annotated[
        str, typer.Option(help="Exit 2 unless the implementation runs on this device here.")
    ] = "",
    out: OutOption = None,
    seed: SeedOption = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    threads: ThreadsOption = None,
    ledger: LedgerOption = None,
) -> None:
    """Gate one backend in CI: the whole suite over one implementation of the contract."""
    found = [discovery.find(implementation)]
    allowed = resources(timeout, memory, threads)
    start(request(found, model, target, seed, require_device, allowed, ledger), out)


def resume(
    out: Annotated[Path, typer.Argument(help="The --out folder of a run that was killed.")],
) -> None:
    """Go on with a verify or gate that was killed: checks that were finished are not made again."""
    if (out / results.FILES[0]).is_file() and not (out / JOURNAL).exists():
        raise CannotJudge(f"{out}: its run is complete, there is nothing to resume")
    start(runner.interrupted(out / JOURNAL), out, anew=False)


def new(name: Annotated[str, typer.Argument(help="NAME; NAME.py is written here.")]) -> None:
    """Write a commented skeleton of an implementation, to be filled in and gated."""
    path = template.write(name, Path.cwd())
    terminal.console().print(f"written: {path.name}; fill it in, then: parity gate {path.name}")


def request(
    found: list[discovery.Found],
    model: str,
    target: list[str] | None,
    seed: int | None,
    require: str,
    allowed: Resources,
    ledger: Path | None,
) -> runner.Request:
    """What the options ask for. Raises CannotJudge for what no run can be made of."""
    return runner.Request(
        implementations=found,
        model=catalogue.locate(model),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        targets=[parse_target(text) for text in target or ()],
        require=require,
        resources=allowed,
        ledger=ledger and ledger.resolve(),
    )


def make(
    asked: runner.Request,
    out: Path | None,
    progress: runner.Progress = runner.silent,
    *,
    anew: bool = True,
) -> Results:
    """Make the run and write it down in out; its journal is there for as long as it is under way."""
    if out is None:
        return runner.verify(asked, None, progress)
    writable(out)
    with alone(out):
        return written(asked, out, progress, anew)


def written(asked: runner.Request, out: Path, progress: runner.Progress, anew: bool) -> Results:
    """Make the run, with its journal in out, and write down what came of it."""
    if anew and os.path.lexists(out / JOURNAL) and not runner.is_journal(out / JOURNAL):
        raise CannotJudge(
            f"{out / JOURNAL}: is there already and no journal of ours; name another --out"
        )
    # what was resumed is left as it is where it is refused, for whoever can mend it
    with replacing(out, (*results.FILES, JOURNAL)) if anew else nullcontext():
        outcome = runner.verify(asked, out / JOURNAL, progress)
    from gpt2_parity.report import files  # what draws takes a second to import

    files.write(outcome, out)
    shutil.rmtree(out / JOURNAL)
    return outcome


def start(asked: runner.Request, out: Path | None, *, anew: bool = True) -> NoReturn:
    """Make the run, show it, and exit with its verdict."""
    console = terminal.console()
    with terminal.progress(console) as progress:
        outcome = make(asked, out, progress, anew=anew)
    terminal.show(console, outcome)
    if out is not None:
        console.print(f"  written: {out}/{', '.join(results.FILES)}", highlight=False)
    if asked.ledger and (lines := ledgers.suggest(outcome.rows)):
        console.print("  not in the ledger:", highlight=False)
        for line in lines:
            console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code(outcome.rows))
