"""What every worker needs: the checkpoint, the golden records and the fresh case."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import CaseShape
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.files.safetensors_mmap import MappedArrays
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference import golden, truth
from gpt2_parity.reference.records import Case, Record, fresh_case, shape_of
from gpt2_parity.run.journal import RunState


class Prepared(NamedTuple):
    """The data that implementations are compared with, in files that workers map into memory."""

    checkpoint: Checkpoint
    records: list[Record]  # golden
    fresh: list[Case]  # their truth is made when a dtype is first asked for
    folder: Path | None  # where that is kept; None: in the per-user cache
    job: dict[str, Any]  # the part of a worker's job that is the same for all

    @classmethod
    def of(cls, job: dict[str, Any]) -> "Prepared":
        """What prepare returned, in a worker."""
        hparams, weights = HParams(**job["hparams"]), Path(job["weights"])
        records = [
            Record(name, safetensors_mmap.read(Path(path)), hparams.n_layer)
            for name, path in job["records"].items()
        ]
        fresh = [Case(name, np.array(tokens, np.int32), 0) for name, tokens in job["fresh"].items()]
        checkpoint = Checkpoint(hparams, MappedArrays(weights), weights, {})
        return cls(checkpoint, records, fresh, Path(job["folder"]), job)

    @property
    def hparams(self) -> HParams:
        return self.checkpoint.hparams

    @property
    def cases(self) -> tuple[CaseShape, ...]:
        """The name and sizes of every case."""
        return (*map(shape_of, self.records), *(case.shape for case in self.fresh))

    def at(self, dtype: str) -> list[Record]:
        """The records of all cases, each with its noise floor at a dtype."""
        params = MappedArrays(self.checkpoint.weights)
        fresh = [truth.record(case, params, self.hparams, dtype, self.folder) for case in self.fresh]
        return [*self.records, *fresh]

    def load(self, impl: Any, target: Target, decode: Callable[[Sequence[int]], str]) -> Loaded:
        """An implementation, loaded on a target."""
        records, weights = self.at(target.dtype), self.checkpoint.weights
        return Loaded.load(impl, target, weights, self.hparams, records, decode, self.folder)

    def state(self, name: str, model: str) -> RunState:
        """A new state for an implementation."""
        return RunState(name, model, self.hparams, self.cases)


def prepare(model: Model, seed: int, folder: Path) -> Prepared:
    """Check the checkpoint and its golden records. folder: for truths about the fresh case of a seed.

    Raises CannotJudge if the checkpoint or a record is missing, damaged or out of date.
    """
    checkpoint, records = golden.read(model)
    fresh = [fresh_case(checkpoint.hparams, seed)]
    job = {
        "weights": str(checkpoint.weights),
        "hparams": checkpoint.hparams._asdict(),
        "tokenizer": str(model.checkpoint.resolve()),
        "records": {
            record.name: str(model.records / f"{record.name}.safetensors") for record in records
        },
        "fresh": {case.name: case.tokens.tolist() for case in fresh},
        "folder": str(folder),
    }
    return Prepared(checkpoint, records, fresh, folder, job)
