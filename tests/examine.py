"""Running the checks on a module in this very process: the worker's and the judge's own path."""

import numpy as np

from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.rows import Row
from gpt2_parity.run import worker
from gpt2_parity.run.runner import Prepared

FLOAT32 = Target("cpu", "float32")


def examine(
    module, prepared: Prepared, target: Target = FLOAT32, only: set[str] | None = None
) -> list[Row]:
    """Judged rows of a module; only: the names of the cases to use (all, if None)."""
    if only:
        records = [record for record in prepared.records if record.name in only]
        prepared = prepared._replace(records=records)
    state = prepared.state(module.__name__, "micro")

    def journal(event: str, **data) -> None:
        state.hear(event, data)

    journal("begin", target=target)
    checkpoint = prepared.checkpoint
    with np.errstate():  # a process of its own would end with what was set there
        told = (checkpoint.weights, checkpoint.hparams, prepared.records, str)
        if worker.measure(module, target, *told, journal):
            journal("end")
    return state.rows
