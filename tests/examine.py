"""Running the checks on a module in this very process: the worker's and the judge's own path."""

import numpy as np

from harness import worker
from harness.contract import Target
from harness.judge import Row
from harness.run import Prepared

FLOAT32 = Target("cpu", "float32")


def examine(
    module, prepared: Prepared, target: Target = FLOAT32, only: set[str] | None = None
) -> list[Row]:
    """Judged rows of a module; only: the names of the cases to use (all, if None)."""
    if only:
        records = [record for record in prepared.records if record.name in only]
        prepared = prepared._replace(records=records)
    sheet = prepared.sheet(module.__name__, "micro")

    def journal(event: str, **data) -> None:
        sheet.hear(event, data)

    journal("begin", target=target)
    checkpoint = prepared.checkpoint
    with np.errstate():  # a process of its own would end with what was set there
        told = (checkpoint.weights, checkpoint.hparams, prepared.records, str)
        if worker.measure(module, target, *told, journal):
            journal("end")
    return sheet.rows
