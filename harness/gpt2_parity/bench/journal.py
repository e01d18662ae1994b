"""The journal of a benchmark: what its rounds have measured, so that it can be resumed.

Each line is a JSON object. The first has the inputs. After that:

    loaded  what an implementation has imported, as run/imported.py has it
    round   a round is over: all that each implementation has of that workload so far, the machine's
            rates in that round, and whether it was the workload's last one

The file appears with the first round: before that nothing was measured.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from gpt2_parity.bench.workload import Settings, Workload
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run import code, host
from gpt2_parity.run.request import source_sha256

NAME = "bench.jsonl"  # in the folder of the results
MACHINE = ("hostname", "cpu", "cores", "gpu")  # figures of two machines make no table


class Inputs(msgspec.Struct, forbid_unknown_fields=True):
    """All inputs of a benchmark, and what must not change until it is resumed."""

    format: Literal[1]
    gpt2_parity: str  # version and hash of this package
    implementations: list[Found]
    sources: dict[str, str]  # implementation -> SHA-256 of its file
    model: str
    checkpoint_sha256: dict[str, str]
    settings: Settings
    against: str
    command: str
    machine: dict[str, Any]

    @classmethod
    def of(
        cls,
        found: Sequence[Found],
        model: Model,
        sha256: dict[str, str],
        settings: Settings,
        against: str,
        command: str,
    ) -> "Inputs":
        """sha256: of the checkpoint's files. command: the command line."""
        facts = host.facts(settings.target.device)
        return cls(
            format=1,
            gpt2_parity=str(code.installed()),
            implementations=list(found),
            sources={one.name: source_sha256(one) for one in found},
            model=model.argument,
            checkpoint_sha256=sha256,
            settings=settings,
            against=against,
            command=command,
            machine={name: facts[name] for name in MACHINE},
        )


class Journal:
    """The events of a benchmark, in memory and in a file.

    The file of an earlier one stays until there is a round to write: a benchmark that is refused
    leaves it as it is.
    """

    def __init__(self, path: Path, resumed: bool = False):
        self.path, self.resumed = path, resumed
        self.events: list[dict[str, Any]] = []
        self.pending: list[str] = []
        self.written = False  # whether this process has added to the file

    def begin(self, inputs: Inputs) -> None:
        """Begin, or take over the events of the file. Raises CannotJudge if its inputs are others."""
        if self.resumed:
            before, self.events = read(self.path)
            refuse_other(self.path, before, inputs)
        else:
            self.pending = [msgspec.json.encode(inputs).decode()]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rounds that are over."""
        return [event for event in self.events if event["event"] == "round"]

    def add(self, event: str, **data: Any) -> None:
        """Add an event. It is written with the first round, or at once if there was one.

        Raises CannotJudge if the file cannot be written.
        """
        line = {"event": event, **data}
        self.events.append(line)
        self.pending.append(json.dumps(line))
        if not self.rounds:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.written or self.resumed else "w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self.pending))
        except OSError as error:
            raise CannotJudge(f"{self.path}: cannot be written ({error.strerror})") from error
        self.pending, self.written = [], True


def read(path: Path) -> tuple[Inputs, list[dict[str, Any]]]:
    """The inputs and events of a benchmark; an unfinished last line is cut off.

    Raises CannotJudge if there is none, or if this version cannot read it.
    """
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        first, *lines = whole.splitlines()
        events = [json.loads(line) for line in lines]
        if not all(isinstance(event, dict) and "event" in event for event in events):
            raise ValueError("a line that is no event")
        return msgspec.json.decode(first, type=Inputs), events
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: no benchmark to resume there ({error})") from error


def refuse_other(path: Path, before: Inputs, now: Inputs) -> None:
    """Raise CannotJudge if an input has changed since a benchmark began."""
    for name in Inputs.__struct_fields__:
        was, new = (msgspec.json.encode(getattr(each, name)).decode() for each in (before, now))
        if was != new:
            raise CannotJudge(
                f"{path}: {name} was {was:.200} when the benchmark began and is now {new:.200}; "
                "start a new one"
            )


def summary(path: Path) -> str:
    """Which rounds a journal has, which are missing, and how to continue. Raises as read does."""
    inputs, events = read(path)
    rounds = {Workload(*event["workload"]): event for event in events if event["event"] == "round"}
    whole = [str(each) for each, event in rounds.items() if event["last"]]
    missing = [each for each in inputs.settings.workloads if str(each) not in whole]
    texts = [
        f"{each} from round {rounds[each]['rounds'] + 1} on" if each in rounds else str(each)
        for each in missing
    ]
    complete = ", ".join(whole) or "no whole workload"
    missing_texts = ", ".join([*texts, "the verification afterwards"])
    return (
        f"{path} keeps {complete}; missing are {missing_texts}; continue with: "
        f"parity resume {path.parent}"
    )
