"""parity verify, gate, resume, new: implementations are run and judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from gpt2_parity import api
from gpt2_parity.api import Verdict
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.commands.options import (
    DEFAULT,
    CorpusOption,
    JobsOption,
    LedgerOption,
    MemoryOption,
    ModelOption,
    OnlyOption,
    OutOption,
    SchedulerOption,
    SearchOption,
    SeedOption,
    TargetOption,
    ThreadsOption,
    TimeoutOption,
)
from gpt2_parity.commands.report import note_on_figures
from gpt2_parity.commands.watch import watch_file
from gpt2_parity.contract.progress import Progress
from gpt2_parity.implementation import discovery, template
from gpt2_parity.report import results, terminal

BENCH = "bench.jsonl"  # the journal of a benchmark


def verify(
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that parity list shows, MODULE[:attr] or PATH.py[:attr]; repeatable. "
            "Default: all shipped implementations, without engines and baselines."
        ),
    ] = None,
    model: ModelOption = "micro",
    target: TargetOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    threads: ThreadsOption = None,
    jobs: JobsOption = None,
    ledger: LedgerOption = None,
    only: OnlyOption = None,
    scheduler: SchedulerOption = "",
    search: SearchOption = None,
    corpus: CorpusOption = None,
) -> None:
    """Verify implementations against the golden records, each in a process of its own."""
    finish(
        lambda progress: api.verify(
            impl or discovery.default_names(),
            model=model,
            targets=target,
            out=out,
            seed=seed,
            timeout=timeout,
            memory=memory,
            threads=threads,
            jobs=jobs,
            ledger=ledger,
            only=only or (),
            scheduler=scheduler,
            search=search,
            corpus=corpus,
            progress=progress,
        ),
        out,
    )


def gate(
    implementation: Annotated[
        str,
        typer.Argument(
            metavar="IMPL", help="PATH.py[:attr], MODULE[:attr], or a name that parity list shows."
        ),
    ],
    model: ModelOption = "micro",
    target: TargetOption = None,
    require_device: Annotated[
        str,
        typer.Option(
            help="Device that the implementation must offer here, such as cuda; exit 2 if it does not."
        ),
    ] = "",
    out: OutOption = None,
    seed: SeedOption = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
    threads: ThreadsOption = None,
    jobs: JobsOption = None,
    ledger: LedgerOption = None,
    only: OnlyOption = None,
    scheduler: SchedulerOption = "",
    search: SearchOption = None,
    corpus: CorpusOption = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Gate again whenever the file changes: what failed first, then what is quick.",
        ),
    ] = False,
) -> None:
    """Gate one implementation in CI: run every check on it and exit with the verdict."""
    options: dict[str, Any] = {
        "model": model,
        "targets": target,
        "require_device": require_device,
        "out": out,
        "seed": seed,
        "timeout": timeout,
        "memory": memory,
        "threads": threads,
        "jobs": jobs,
        "ledger": ledger,
        "only": only or (),
        "scheduler": scheduler,
        "search": search,
        "corpus": corpus,
    }
    if watch:
        watch_file(implementation, options)
    finish(lambda progress: api.gate(implementation, **options, progress=progress), out)


def resume(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of the interrupted run.")],
    jobs: JobsOption = None,
    scheduler: SchedulerOption = "",
) -> None:
    """Continue an interrupted verify, gate or bench; what was finished is not repeated."""
    if (out / BENCH).is_file() and not (out / api.JOURNAL).exists():
        from gpt2_parity.commands import bench  # which a verdict does not need

        bench.resume(out)
    finish(lambda progress: api.resume(out, progress, jobs, scheduler), out)


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the module; NAME.py is written here.")
    ],
    example: Annotated[
        str,
        typer.Option(
            help="Write a whole implementation instead: numpy, jax, torch, tensorflow or naive."
        ),
    ] = "",
) -> None:
    """Write NAME.py, a commented skeleton of an implementation to fill in and gate."""
    if example:
        path, then = template.copy_example(name, Path.cwd(), example), ""
    else:
        path, then = template.write(name, Path.cwd(), CAPABILITIES), "fill it in, then: "
    terminal.console().print(f"written: {path.name}; {then}parity gate {path.name}", highlight=False)


def finish(judge: Callable[[Progress], Verdict], out: Path | None) -> NoReturn:
    """Show progress while judge runs, then its verdict, and exit with that."""
    console = terminal.console()
    with terminal.progress(console) as progress:
        verdict = judge(progress)
    terminal.show(console, verdict.results)
    if out is not None:
        console.print(f"  written: {out}/{', '.join(results.FILES)}", highlight=False)
        note_on_figures(console)
    if verdict.ledger and (lines := verdict.ledger_lines()):
        console.print("  not in the ledger:", highlight=False)
        for line in lines:
            console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(verdict.exit_code)
