"""One unit as it is sent to another machine: JSON, in which files are named by their SHA-256."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpt2_parity.contract.interface import Target
from gpt2_parity.files import digest
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import checkpoint, synthetic
from gpt2_parity.run.code import Code
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.run.request import Request, source_sha256
from gpt2_parity.run.supervisor import Resources

TOKENIZER = ("vocab.bpe", "encoder.json", synthetic.WEIGHTS)  # files that the tokenizer looks for


class Files(msgspec.Struct):
    """What every unit of a run needs: the SHA-256 of each file."""

    weights: str
    records: dict[str, str]  # by name
    tokenizer: dict[str, str]  # by file name

    @property
    def hashes(self) -> list[str]:
        return [self.weights, *self.records.values(), *self.tokenizer.values()]


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """A unit: what to examine, on what, and by whose code."""

    key: str  # of this attempt
    run: str
    topic: str  # to which its events are sent
    code: Code
    implementation: Found
    source: str  # SHA-256 of its file; "" if it is in none
    target: Target | None  # None: only report which there are
    done: Sequence[str]  # checks that are done already
    files: Files
    job: dict[str, Any]  # the part of a worker's job that names no file
    resources: Resources

    @property
    def hashes(self) -> list[str]:
        """Of every file that the unit needs."""
        return [*self.files.hashes, *([self.source] if self.implementation.is_file else [])]


def encode(order: Order) -> str:
    return msgspec.json.encode(order).decode()


def decode(text: str) -> Order:
    return msgspec.json.decode(text, type=Order)


class Shipment:
    """The files of a run: where each is on this machine, by its SHA-256."""

    def __init__(self, request: Request, prepared: Prepared):
        """Raises CannotJudge if one cannot be read."""
        self.paths: dict[str, Path] = {}
        job = prepared.job
        folder = Path(job["tokenizer"])
        names = [name for name in checkpoint.files(folder) if name in TOKENIZER]
        self.files = Files(
            weights=self._add(prepared.checkpoint.weights),
            records={name: self._add(Path(path)) for name, path in job["records"].items()},
            tokenizer={name: self._add(folder / name) for name in names},
        )
        self.sources = [self._source(found) for found in request.implementations]
        self.job = {name: job[name] for name in ("hparams", "fresh")} | {
            "first": list(request.first),
            "asked": request.asked._asdict(),
        }

    def _add(self, path: Path) -> str:
        sha256 = digest.sha256(path)
        self.paths[sha256] = path
        return sha256

    def _source(self, found: Found) -> str:
        """The hash of an implementation's file, which is sent unless it is part of a module."""
        return self._add(Path(found.module)) if found.is_file else source_sha256(found)
