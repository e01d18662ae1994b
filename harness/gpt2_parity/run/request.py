"""The inputs of a run: as a request, as run.json in the journal, and as the command that repeats it."""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.dtypes import DTYPES
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.plan import Asked
from gpt2_parity.contract.spelling import meant
from gpt2_parity.files import atomic, digest, strict_json
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run.supervisor import Resources
from gpt2_parity.version import __version__

SEARCH = 10.0  # seconds that verify and gate search in each target, unless told otherwise
SEARCH_VARIABLE = "PARITY_SEARCH"  # tells otherwise for all commands of an environment
NAME = "run.json"  # in the journal folder


class Request(NamedTuple):
    """All inputs of a run."""

    implementations: Sequence[Found]
    model: Model
    seed: int  # of the fresh tokens
    targets: Sequence[Target] = ()  # empty: all that the implementations offer
    require: str = ""  # a device that every implementation must offer
    resources: Resources = Resources()
    ledger: Path | None = None  # file of known disagreements
    first: Sequence[str] = ()  # checks that run before the others
    jobs: int | None = None  # workers at once; None: as many as cores and memory carry
    only: Sequence[str] = ()  # the checks to make; empty: all
    scheduler: str = ""  # address of a dask scheduler, whose workers examine; empty: this machine does
    search: float = 0.0  # seconds of each target for the check search
    corpus: Sequence[Mapping[str, Any]] = ()  # trials that it makes first, as Asked has them
    corpus_folder: str = ""  # the folder they come from, if one was named

    @property
    def asked(self) -> Asked:
        """What decides, apart from the implementation, what is measured."""
        return Asked(tuple(self.only), self.search, self.seed, tuple(self.corpus))


class Recorded(msgspec.Struct, forbid_unknown_fields=True):
    """run.json: a request, and the SHA-256 of every file that it depends on."""

    format: Literal[1]
    gpt2_parity: str
    implementations: list[Found]
    sources: dict[str, str]  # implementation -> hash of its file; "" if it has none
    model: str
    checkpoint_sha256: dict[str, str]
    golden_sha256: str
    seed: int
    targets: list[Target]
    require: str
    resources: Resources
    ledger: str | None
    only: list[str] = []
    search: float = 0.0
    corpus: list[dict[str, Any]] = []
    corpus_folder: str = ""

    def request(self) -> Request:
        """The request. Raises CannotJudge if its model no longer exists."""
        return Request(
            implementations=self.implementations,
            model=catalogue.locate(self.model),
            seed=self.seed,
            targets=self.targets,
            require=self.require,
            resources=self.resources,
            ledger=Path(self.ledger) if self.ledger else None,
            only=self.only,
            search=self.search,
            corpus=self.corpus,
            corpus_folder=self.corpus_folder,
        )


def record(request: Request, checkpoint_sha256: dict[str, str]) -> Recorded:
    """A request with the hashes of its files. Raises CannotJudge if one cannot be read."""
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
        only=list(request.only),
        search=request.search,
        corpus=[dict(entry) for entry in request.corpus],
        corpus_folder=request.corpus_folder,
    )


def source_sha256(found: Found) -> str:
    """SHA-256 of the file that holds an implementation; "" if it has no file."""
    path = found.source()
    return digest.sha256(path) if path and path.is_file() else ""


def begin(recorded: Recorded, folder: Path) -> None:
    """Write run.json into the journal folder; if it exists, check that nothing has changed since.

    Raises CannotJudge if an implementation, the checkpoint, the golden records or an option has changed.
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
    """Read run.json. Raises CannotJudge if it is missing or this version cannot read it."""
    try:
        document = strict_json.read(path)
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: no run to resume there ({error})") from error
    try:
        return msgspec.convert(document, Recorded)
    except msgspec.ValidationError as error:
        raise CannotJudge(f"{path}: not a run that this version can resume ({error})") from error


def interrupted(folder: Path) -> Request:
    """The request of the run whose journal is in folder. Raises CannotJudge if there is none."""
    return read(folder / NAME).request()


def is_journal(folder: Path) -> bool:
    """Whether a folder is the journal of a run, or empty. Any other folder must not be removed."""
    return (folder / NAME).is_file() or (folder.is_dir() and not any(folder.iterdir()))


def command(request: Request) -> str:
    """The command line that repeats a run with the same seed.

    "" if no command can: an implementation was passed as an object that is in no file.
    """
    if not all(found.module for found in request.implementations):
        return ""
    if request.require and len(request.implementations) == 1:
        arguments = ["gate", request.implementations[0].argument, "--require-device", request.require]
    else:
        named = [word for found in request.implementations for word in ("--impl", found.argument)]
        arguments = ["verify", *named]
    arguments += [word for target in request.targets for word in ("--target", str(target))]
    arguments += settings(request)
    arguments += [word for check in request.only for word in ("--only", check)]
    return shlex.join(["parity", *arguments])


def commands(request: Request) -> dict[str, str]:
    """By implementation: the command line that runs it alone again, with the same seed.

    A check is asked again with "--target DEVICE-DTYPE --only CHECK" at its end.
    """
    return {
        found.name: shlex.join(["parity", "verify", "--impl", found.argument, *settings(request)])
        for found in request.implementations
        if found.module
    }


def settings(request: Request) -> list[str]:
    """The options that a run of the same measurements needs, as words of a command line."""
    default, chosen = Resources(), request.resources
    arguments = ["--model", request.model.argument, "--seed", str(request.seed)]
    arguments += ["--timeout", f"{chosen.seconds:g}"] if chosen.seconds != default.seconds else []
    arguments += ["--memory", f"{chosen.gigabytes:g}"] if chosen.gigabytes != default.gigabytes else []
    arguments += ["--threads", str(chosen.threads)] if chosen.threads else []
    arguments += [] if request.search == SEARCH else ["--search", f"{request.search:g}"]
    arguments += ["--corpus", request.corpus_folder] if request.corpus_folder else []
    return arguments + (["--ledger", str(request.ledger)] if request.ledger else [])


def parse_target(text: str) -> Target:
    """A target from its name, such as cpu-float32. Raises CannotJudge for anything else."""
    device, dash, dtype = text.partition("-")
    if not (device and dash and dtype):
        raise CannotJudge(f"target {text!r}: expected DEVICE-DTYPE, such as cpu-float32")
    if dtype not in DTYPES:
        known = [f"{device}-{each}" for each in DTYPES]
        raise CannotJudge(
            f"target {text!r}: its dtype is not one of {', '.join(DTYPES)}{meant(text, known)}"
        )
    return Target(device, dtype)


def resources(timeout: float, memory: float, threads: int | None = None) -> Resources:
    """The limits of a worker: timeout in seconds, memory in GiB, threads (None: one for each core).

    Raises CannotJudge for a number that is not positive and finite.
    """
    for name, value in (("timeout", timeout), ("memory", memory)):
        if not (value > 0 and math.isfinite(value)):
            raise CannotJudge(f"{name} {value}: expected a positive number")
    if threads is not None and threads < 1:
        raise CannotJudge(f"threads {threads}: expected 1 or more")
    return Resources(timeout, memory, threads)


def checks(names: Sequence[str]) -> tuple[str, ...]:
    """Checks by name, in order of execution. Raises CannotJudge for a name that no check has."""
    for name in names:
        if name not in CHECKS:
            raise CannotJudge(f"check {name!r}: unknown{meant(name, CHECKS)}")
    return tuple(name for name in CHECKS if name in names)


def jobs(count: int | None) -> int | None:
    """The number of workers at once. Raises CannotJudge unless it is positive or None."""
    if count is not None and count < 1:
        raise CannotJudge(f"jobs {count}: expected 1 or more")
    return count


def search(seconds: float | None, resources: Resources) -> float:
    """Seconds for the check search; None: what PARITY_SEARCH says, or SEARCH.

    Raises CannotJudge for what is no number, negative, infinite, or too long for the time limit of a
    check: a failure is made smaller in half of the time again.
    """
    given = os.environ.get(SEARCH_VARIABLE, SEARCH) if seconds is None else seconds
    name = SEARCH_VARIABLE if seconds is None else "search"
    try:
        value = float(given)
    except ValueError as error:
        raise CannotJudge(f"{name} {given!r}: expected seconds") from error
    if not (value >= 0 and math.isfinite(value)):
        raise CannotJudge(f"{name} {value:g}: expected 0 or more seconds")
    if 2 * value > resources.seconds:
        raise CannotJudge(
            f"{name} {value:g}: does not fit the time limit of a check; give --timeout {2 * value:g}"
        )
    return value
