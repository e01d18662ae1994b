"""The process that answers facts: python -m gpt2_parity.published.worker JOB.json LIFELINE

It loads the implementation once and then evaluates one fact at a time. Nothing here judges.
"""

import sys
from pathlib import Path
from typing import Any

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.published.probes import KINDS, Evaluator, Fact, ModelFiles, NotRun
from gpt2_parity.run import child


class Answering:
    """Handles requests about one loaded implementation."""

    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator

    def answer(self, fact: Fact) -> dict[str, Any]:
        """{"got": ...}, or {"not_run": why}. Raises what the implementation raises."""
        try:
            return {"got": KINDS[fact["kind"]](self.evaluator, fact)}
        except NotRun as error:
            return {"not_run": str(error)}


def main(job_path: str, lifeline: str) -> None:
    """Serve until the parent closes the pipe."""
    job = child.begin(job_path, lifeline)

    def load() -> Answering:
        found, target = Found(**job["implementation"]), Target(*job["target"])
        return Answering(Evaluator.load(found, target, files_from(job["files"])))

    child.serve(load)


def files_as_json(files: ModelFiles) -> dict[str, Any]:
    """ModelFiles as a part of a job."""
    paths = {name: path and str(path) for name, path in files._asdict().items() if name != "hparams"}
    return paths | {"hparams": files.hparams._asdict()}


def files_from(document: dict[str, Any]) -> ModelFiles:
    """ModelFiles from a job."""
    hparams = HParams(**document["hparams"])
    paths = {name: path and Path(path) for name, path in document.items() if name != "hparams"}
    return ModelFiles(**paths, hparams=hparams)


if __name__ == "__main__":
    main(*sys.argv[1:])
