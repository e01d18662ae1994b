"""A worker process of a benchmark: it lives on, and answers one request at a time."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpt2_parity.bench.workload import Plans
from gpt2_parity.files import atomic
from gpt2_parity.run import supervisor
from gpt2_parity.run.supervisor import death, end, resident


class Lost(Exception):
    """A worker is gone: its text says how."""


class Refused(Exception):
    """A worker raised in a request and lives on: its text says what."""


class Worker:
    """A process that answers, or is lost."""

    def __init__(self, job: dict[str, Any], folder: Path, plans: Plans):
        self.limits, stem = plans.limits, f"{job['name']}-{time.monotonic_ns()}"
        self.words = folder / f"{stem}.txt"
        path, self.mark = folder / f"{stem}.json", stem
        atomic.write_text(path, json.dumps(job))
        self.started = time.perf_counter()
        with self.words.open("wb") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gpt2_parity.bench.worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=child_environment(threads(plans), self.mark, bare=not job["implementation"]),
                start_new_session=True,
                bufsize=0,
            )
        self._partial = b""

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """The reply to one request. Raises Refused for an exception in it, Lost for anything worse."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"op": op, **request}).encode() + b"\n")
        except OSError:
            raise Lost(self._death("")) from None
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next reply, waited for as long as the limits allow."""
        assert self.process.stdout is not None
        last = time.monotonic()
        while b"\n" not in self._partial:
            if select.select([self.process.stdout], [], [], 1.0)[0]:
                if not (chunk := self.process.stdout.read(65536)):
                    raise Lost(self._death(""))
                self._partial += chunk
            elif time.monotonic() - last > self.limits.seconds:
                raise Lost(self._death(f"no answer for {self.limits.seconds:g} s"))
            elif (used := resident(self.process.pid)) > self.limits.gigabytes:
                most = self.limits.gigabytes
                raise Lost(self._death(f"used {used:.1f} GiB of memory, allowed are {most:g}"))
        line, _, self._partial = self._partial.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Refused(reply["error"], reply["missing"])
        return reply

    def _death(self, killed: str) -> str:
        if not killed:  # its end of the pipe closed: it ended, or is about to
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                killed = "it closed its pipe"
        end(self.process, self.mark)
        return death(self.process.returncode, killed, [], self.words) or "it ended too early"

    def close(self) -> None:
        end(self.process, self.mark)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def threads(plans: Plans) -> int:
    """Threads for each implementation: as asked for, or one for each core that we may use."""
    return plans.threads or len(cores())


def cores() -> list[int]:
    """The cores that we may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


TUNED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # settings under which NumPy is not what users run


# The bare machine's idle OpenBLAS threads sleep after 2**20 cycles: they were seen to spin for 0.11 s
# and would disturb who is timed next. What they can do stays the same.
AT_ONCE = {"OPENBLAS_THREAD_TIMEOUT": "20"}


def child_environment(n_threads: int, mark: str, bare: bool = False) -> dict[str, str]:
    """The environment of every worker: so many threads, and OpenBLAS as users have it."""
    given = supervisor.environment(n_threads, mark)
    kept = {name: value for name, value in given.items() if name not in TUNED}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3"} | (AT_ONCE if bare else {})
