"""What decides a run: as a request, as run.json in the journal, and as the command that repeats it."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.files import atomic, digest, strict_json
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run.supervisor import Resources
from gpt2_parity.version import __version__

NAME = "run.json"  # in the journal folder


class Request(NamedTuple):
    """Everything that decides a run."""

    implementations: Sequence[Found]
    model: Model
    seed: int  # of the fresh tokens
    targets: Sequence[Target] = ()  # empty: all that the implementations offer
    require: str = ""  # a device that every implementation must offer
    resources: Resources = Resources()
    ledger: Path | None = None  # file of known disagreements


class Recorded(msgspec.Struct, forbid_unknown_fields=True):
    """run.json: a request, and the SHA-256 of every file that it depends on."""

    format: Literal[1]
    gpt2_parity: str
    implementations: list[Found]
    sources: dict[str, str]  # implementation -> hash of its file; "" where it has none
    model: str
    checkpoint_sha256: dict[str, str]
    golden_sha256: str
    seed: int
    targets: list[Target]
    require: str
    resources: Resources
    ledger: str | None

    def request(self) -> Request:
        """The request. Raises CannotJudge where its model is gone."""
        return Request(
            implementations=self.implementations,
            model=catalogue.locate(self.model),
            seed=self.seed,
            targets=self.targets,
            require=self.require,
            resources=self.resources,
            ledger=Path(self.ledger) if self.ledger else None,
        )


def record(request: Request, checkpoint_sha256: dict[str, str]) -> Recorded:
    """A request with the hashes of its files. Raises CannotJudge where one cannot be read."""
    return Recorded(
        format=1,
        gpt2_parity=__version__,
        implementations=list(request.implementations),
        sources={found.name: source_sha256(found) for found in request.implementations},
        model=request.model.argument,
        checkpoint_sha256=checkpoint_sha256,
        golden_sha256=digest.sha256(request.model.records / "manifest.json"),
        seed=request.seed,
        targets=list(request.targets),
        require=request.require,
        resources=request.resources,
        ledger=str(request.ledger) if request.ledger else None,
    )


def source_sha256(found: Found) -> str:
    """SHA-256 of the file that holds an implementation; "" where it is not a file."""
    path = found.source()
    return digest.sha256(path) if path and path.is_file() else ""


def begin(recorded: Recorded, folder: Path) -> None:
    """Write run.json into the journal folder or, where it exists, check that nothing has changed.

    Raises CannotJudge where an implementation, the checkpoint or the golden records have changed since.
    """
    path = folder / NAME
    if not path.is_file():
        atomic.write_text(path, json.dumps(msgspec.to_builtins(recorded), indent=1) + "\n")
        return
    before = read(path)
    for name in Recorded.__struct_fields__:
        was, now = getattr(before, name), getattr(recorded, name)
        if was != now:
            raise CannotJudge(
                f"{path}: {name} was {was!r:.200} when the run began and is now {now!r:.200}; "
                "start a new run"
            )


def read(path: Path) -> Recorded:
    """run.json. Raises CannotJudge where it is missing, or not what this version writes."""
    try:
        document = strict_json.read(path)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: no run to resume there ({error})") from error
    try:
        return msgspec.convert(document, Recorded)
    except msgspec.ValidationError as error:
        raise CannotJudge(f"{path}: not a run that this version can resume ({error})") from error


def interrupted(folder: Path) -> Request:
    """The request of the run whose journal is in folder. Raises CannotJudge where there is none."""
    return read(folder / NAME).request()


def is_journal(folder: Path) -> bool:
    """Whether a folder is the journal of a run, or empty. Any other folder must not be removed."""
    return (folder / NAME).is_file() or (folder.is_dir() and not any(folder.iterdir()))


def command(request: Request) -> str:
    """The command line that repeats a run with the same seed; "" where no command can.

    That is so where an implementation was passed as an object that no file holds.
    """
    if not all(found.module for found in request.implementations):
        return ""
    default, chosen = Resources(), request.resources
    if request.require and len(request.implementations) == 1:
        words = ["gate", request.implementations[0].argument, "--require-device", request.require]
    else:
        named = [word for found in request.implementations for word in ("--impl", found.argument)]
        words = ["verify", *named]
    words += [word for target in request.targets for word in ("--target", str(target))]
    words += ["--model", request.model.argument, "--seed", str(request.seed)]
    words += ["--timeout", f"{chosen.seconds:g}"] if chosen.seconds != default.seconds else []
    words += ["--memory", f"{chosen.gigabytes:g}"] if chosen.gigabytes != default.gigabytes else []
    words += ["--threads", str(chosen.threads)] if chosen.threads else []
    words += ["--ledger", str(request.ledger)] if request.ledger else []
    return shlex.join(["parity", *words])


def parse_target(text: str) -> Target:
    """A target from its name, such as cpu-float32. Raises CannotJudge for anything else."""
    device, dash, dtype = text.partition("-")
    if not (device and dash and dtype):
        raise CannotJudge(f"target {text!r}: expected DEVICE-DTYPE, such as cpu-float32")
    return Target(device, dtype)


def resources(timeout: float, memory: float, threads: int | None = None) -> Resources:
    """What a worker may use: seconds, GiB and processors (None: all).

    Raises CannotJudge for a number that is not positive or, like NaN and infinity, limits nothing.
    """
    for name, value in (("timeout", timeout), ("memory", memory)):
        if not (value > 0 and math.isfinite(value)):
            raise CannotJudge(f"{name} {value}: expected a positive number")
    if threads is not None and threads < 1:
        raise CannotJudge(f"threads {threads}: expected 1 or more")
    return Resources(timeout, memory, threads)
