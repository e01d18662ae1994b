"""What all processes of one benchmark share, and how its workers are started."""

import time
from pathlib import Path
from typing import Any

from gpt2_parity.bench.expected import Expected
from gpt2_parity.bench.workload import Settings, Workload
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model.catalogue import Model
from gpt2_parity.run import supervisor
from gpt2_parity.run.supervisor import WorkerProcess

TUNED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # settings under which NumPy is not what users run
# In the worker that measures the machine, idle OpenBLAS threads sleep after 2**20 cycles. They usually
# spin for 0.11 s, which would disturb the implementation that is timed next. Their speed is the same.
SLEEP_AT_ONCE = {"OPENBLAS_THREAD_TIMEOUT": "20"}


def environment(threads: int, *, bare: bool = False) -> dict[str, str]:
    """A worker's environment: so many threads, and OpenBLAS as users have it.

    bare: the worker measures the machine itself.
    """
    given = supervisor.environment(threads)
    kept = {name: value for name, value in given.items() if name not in TUNED}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (SLEEP_AT_ONCE if bare else {})


class Setup:
    """The model, the settings, and the expected results of one benchmark."""

    def __init__(self, model: Model, settings: Settings, folder: Path):
        self.model, self.settings, self.folder = model, settings, folder
        self.expected = Expected(model, settings, folder)
        self.rounds: dict[Workload, int] = {}  # of the workloads that are over

    def job(self, found: Found | None) -> dict[str, Any]:
        """A worker's job. None: the worker measures the machine itself."""
        return {
            "name": found.name.replace("/", "-") if found else "machine",
            "implementation": found._asdict() if found else None,
            "target": self.settings.target,
            "hparams": self.expected.hparams._asdict(),
            "weights": str(self.expected.checkpoint.weights),
            "expected": str(self.expected.path),
            "records": self.expected.paths,
        }

    def start(self, job: dict[str, Any]) -> WorkerProcess:
        """A worker process with a job."""
        threads = self.settings.threads
        return WorkerProcess(
            "gpt2_parity.bench.worker",
            job,
            self.folder / f"{job['name']}-{time.monotonic_ns()}",
            self.settings.resources._replace(threads=threads),
            environment(threads, bare=not job["implementation"]),
            replies=True,
        )
