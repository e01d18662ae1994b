"""What every worker needs, computed once: the checkpoint, the golden records and the fresh case."""

from pathlib import Path
from typing import Any, NamedTuple

from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference import golden
from gpt2_parity.reference.records import Record, fresh_case, make_record, shape_of
from gpt2_parity.run.journal import RunState


class Prepared(NamedTuple):
    """The data that implementations are compared with, in files that workers map into memory."""

    checkpoint: Checkpoint
    records: list[Record]
    job: dict[str, Any]  # the part of a worker's job that is the same for all

    def state(self, name: str, model: str) -> RunState:
        """A new state for an implementation."""
        cases = tuple(shape_of(record) for record in self.records)
        return RunState(name, model, self.checkpoint.hparams, cases)


def prepare(model: Model, seed: int, folder: Path) -> Prepared:
    """Check the checkpoint and its golden records; write the fresh case, drawn from seed, into folder.

    Raises CannotJudge if the checkpoint or a record is missing, damaged or out of date.
    """
    checkpoint, records = golden.read(model)
    fresh = make_record(fresh_case(checkpoint.hparams, seed), checkpoint.params, checkpoint.hparams)
    safetensors_mmap.write(folder / "fresh.safetensors", fresh.arrays)
    paths = {record.name: str(model.records / f"{record.name}.safetensors") for record in records}
    job = {
        "weights": str(checkpoint.weights),
        "hparams": checkpoint.hparams._asdict(),
        "tokenizer": str(model.checkpoint.resolve()),
        "records": paths | {fresh.name: str(folder / "fresh.safetensors")},
    }
    return Prepared(checkpoint, [*records, fresh], job)
