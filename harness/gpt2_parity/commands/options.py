"""Options that several commands share, and what is made of their words."""

import math
from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.run.supervisor import Resources

ModelOption = Annotated[
    str,
    typer.Option(
        help="micro, 124M, 355M, 774M, 1558M, shape:124M and so on, or a folder with OpenAI's files."
    ),
]


TargetOption = Annotated[
    list[str] | None,
    typer.Option(help="DEVICE-DTYPE such as cpu-float32; repeat. Default: all that are offered."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results.json, junit.xml, report.md, report.html; the run can be resumed."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of the fresh random tokens. Default: random, and shown."),
]
TimeoutOption = Annotated[
    float,
    typer.Option(help="Seconds that the start, a check or a call may take before it is stopped."),
]
MemoryOption = Annotated[
    float, typer.Option(help="GiB of its own memory beyond which an implementation is stopped.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Processors that each implementation may use. Default: all.", min=1)
]
LedgerOption = Annotated[
    Path | None, typer.Option(help="File of known disagreements; strict both ways (see README).")
]
DEFAULT = Resources()


def resources(timeout: float, memory: float, threads: int | None = None) -> Resources:
    """Raises CannotJudge for a limit that could never be kept or, like NaN, never be reached."""
    for option, value in (("--timeout", timeout), ("--memory", memory)):
        if not (value > 0 and math.isfinite(value)):
            raise CannotJudge(f"{option} {value}: expected a positive number")
    return Resources(timeout, memory, threads)


def parse_target(text: str) -> Target:
    device, dash, dtype = text.partition("-")
    if not (device and dash and dtype):
        raise CannotJudge(f"target {text!r}: expected DEVICE-DTYPE, such as cpu-float32")
    return Target(device, dtype)
