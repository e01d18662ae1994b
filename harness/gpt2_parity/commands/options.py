"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.run.request import parse_target as parse_target
from gpt2_parity.run.request import resources as resources
from gpt2_parity.run.supervisor import Resources

ModelOption = Annotated[
    str,
    typer.Option(
        help="micro, 124M, 355M, 774M, 1558M, shape:124M and so on (generated weights), or a folder "
        "with a checkpoint (OpenAI's files, or Hugging Face's config.json and model.safetensors)."
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(help="DEVICE-DTYPE, such as cpu-float32; repeatable. Default: all that are offered."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results.json, junit.xml, report.md and report.html; parity resume can then "
        "continue the run if it is interrupted."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of the fresh random tokens. Default: random; the output names it."),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        help="Seconds allowed for the start and for each check or timed call of an implementation."
    ),
]
MemoryOption = Annotated[
    float,
    typer.Option(help="GiB of memory allowed to each implementation, not counting the mapped weights."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Processors that each worker may use. Default: one for a small model; for a large one, the "
        "workers share all.",
        min=1,
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(help="Workers at once. Default: as many as processors and memory carry.", min=1),
]
SchedulerOption = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address of a dask scheduler, such as tcp://10.0.0.1:8786; its workers then do the work.",
    ),
]
SearchOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Seconds to search, in each target, for sizes, values and histories that are wrong; 0: "
        "only a corpus is replayed. Default: 10, or PARITY_SEARCH.",
        min=0,
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        help="Make only this check; repeatable. What passes is then PASS IN PART: nothing is said about "
        "the others.",
    ),
]
CorpusOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of failures that parity fuzz has found; they come first, also with --search 0. "
        "Default: STEM.corpus beside the implementation's file.",
    ),
]
LedgerOption = Annotated[
    Path | None,
    typer.Option(
        help="File of known disagreements. Unlisted failures fail; so do entries that no longer occur."
    ),
]
DEFAULT = Resources()
