"""Worker processes: user code runs in a process of its own, so that it can harm nothing else.

Each worker gets a session of its own, limits on memory, time and output, and a lifeline: a pipe whose
other end we hold, so that the worker ends when we do. Its environment carries a mark, which identifies
the processes that it leaves behind. child.py is the worker's side.

A verification reads the events that its worker writes to a journal file (supervise), and sends it a
target to examine; a killed run is resumed from that file. A benchmark and a comparison with published
values send requests (WorkerProcess.request).
"""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import psutil

from gpt2_parity.files import atomic
from gpt2_parity.run import compiled_programs, cores

Handle = Callable[[str, dict[str, Any]], None]  # an event and its data
Claim = Callable[[], Mapping[str, Any] | None]  # what a worker has to do; None: nothing, it ends
MARK = "PARITY_WORKER"
# At first use JAX would allocate three quarters of a GPU: another framework would not get enough, and
# that share would be measured as the implementation's memory.
SHARE_THE_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)
DOING = {"begin": "loading", "checking": "it", "end": "ending"}  # event -> what the worker does next
OUTPUT = 64  # MiB that a worker may write to stdout and stderr
GRACE = 2.0  # seconds for helper processes, such as multiprocessing's, to notice that the worker ended
POLL = 1.0  # seconds between checks of the limits while waiting for a reply


class Resources(NamedTuple):
    """The limits of a worker. A worker that exceeds one is stopped."""

    seconds: float = 600.0  # for its start, and for each check or request
    gigabytes: float = 16.0  # GiB of its own memory, together with its children
    threads: int | None = None  # None: one for each available core

    @property
    def cores(self) -> list[int]:
        """The cores that the worker may use; empty for all."""
        return [] if self.threads is None else cores.available()[: self.threads]


class Lost(Exception):
    """The worker has ended or was stopped. The text says why."""


class Refused(Exception):
    """A request raised in the worker, which continues. The text is that error."""

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind  # see child.failure


class WorkerProcess:
    """One worker process and its limits."""

    def __init__(
        self,
        module: str,
        job: Mapping[str, Any],
        path: Path,
        resources: Resources,
        environment: Mapping[str, str],
        *,
        replies: bool = False,
    ):
        """Start ``python -P -m MODULE PATH.json LIFELINE``.

        path: PATH.json holds the job, PATH.txt what the worker prints. replies: whether the worker
        replies to requests on its standard output.
        """
        self.resources = resources
        self.output, job_path = (path.with_name(path.name + suffix) for suffix in (".txt", ".json"))
        atomic.write_text(job_path, json.dumps({"cores": resources.cores, **job}))
        self.mark = secrets.token_hex(16)
        self._partial = b""
        their_end, self._lifeline = os.pipe()
        self.started = time.perf_counter()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(job_path), str(their_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if replies else output,
                stderr=output,
                start_new_session=True,
                pass_fds=(their_end,),
                env={**environment, MARK: self.mark},
                bufsize=0,
            )
        os.close(their_end)

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises Refused or Lost, as receive does."""
        try:
            self.send({"op": op, **arguments})
        except OSError:
            raise Lost(self._end("")) from None
        return self.receive()

    def send(self, message: Mapping[str, Any] | None) -> None:
        """Write a message to the worker's standard input; None: close it. Raises OSError if it ended."""
        assert self.process.stdin is not None
        if message is None:
            self.process.stdin.close()
        else:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Wait for the next reply.

        Raises Refused if the request raised, and Lost if the worker ended or was stopped.
        """
        assert self.process.stdout is not None
        since = time.monotonic()
        while b"\n" not in self._partial:
            if select.select([self.process.stdout], [], [], POLL)[0]:
                if not (chunk := self.process.stdout.read(65536)):
                    raise Lost(self._end(""))
                self._partial += chunk
            elif reason := self.excess("the request", since):
                raise Lost(self._end(reason))
        line, _, self._partial = self._partial.partition(b"\n")
        reply = parse(line.decode(errors="replace"))
        if not isinstance(reply, dict):
            raise Lost(self._end("its reply is not a JSON object"))
        if "error" in reply:
            raise Refused(str(reply["error"]), str(reply.get("kind")))
        return reply

    def excess(self, doing: str, since: float) -> str:
        """The limit that the worker exceeds, as text; "" if none.

        doing: what it does, for the text. since: time.monotonic() of its last progress.
        """
        if time.monotonic() - since > self.resources.seconds:
            return f"{doing} took longer than {self.resources.seconds:g} s"
        if (used := memory(self.process.pid)) > self.resources.gigabytes:
            return f"{doing} used {used:.1f} GiB of memory, allowed {self.resources.gigabytes:g} GiB"
        if self.output.stat().st_size > OUTPUT * 2**20:
            return f"{doing} wrote more than {OUTPUT} MiB of output"
        return ""

    def _end(self, stopped: str) -> str:
        """Kill a worker that sends no more replies, and return why it ended."""
        if not stopped:  # its end of the pipe is closed: it has ended, or will soon
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                stopped = "it closed its pipe"
        self.kill()
        return self.exit_reason(stopped, []) or "it ended too early"

    def kill(self) -> None:
        """Kill the worker and every process that it started, and close our ends of its pipes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def exit_reason(self, stopped: str, left_behind: list[str]) -> str:
        """Why the worker ended, with its last output; "" if it exited with code 0 and left nothing.

        stopped: why we stopped it, or "". left_behind: names of the processes that outlived it.
        """
        code = self.process.returncode
        if stopped:
            return f"was stopped: {stopped}{last_output(self.output)}"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}{last_output(self.output)}"
        if code:
            return f"exited with code {code}{last_output(self.output)}"
        if left_behind:
            return f"left processes behind: {', '.join(left_behind)}"
        return ""


def supervise(
    job: Mapping[str, Any],
    journal: Path,
    resources: Resources,
    handle: Handle,
    claim: Claim,
    stop: threading.Event,
) -> str:
    """Run one verification worker from start to end. handle is called with every event of its journal.

    Once the worker has reported its targets, claim says which one it examines; with None it ends. If
    stop is set, it is killed. Returns why it ended early, with its last output, or "" if it did not.
    """
    journal.touch()
    with journal.open(encoding="utf-8", errors="replace") as lines:
        worker = WorkerProcess(
            "gpt2_parity.run.worker",
            {**job, "journal": str(journal)},
            journal.with_suffix(""),
            resources,
            {**compiled_programs.environment(), **threads_for(job, resources)},
        )
        try:
            stopped = follow(lines, worker, handle, claim, stop)
            left_behind = [] if stopped else survivors(worker.mark)
        finally:
            worker.kill()
    return worker.exit_reason(stopped, left_behind)


def threads_for(job: Mapping[str, Any], resources: Resources) -> dict[str, str]:
    """The environment of a worker, with the threads that the user chose, or else its share of them."""
    return environment(resources.threads or job["threads"], given=resources.threads is not None)


def environment(threads: int | None, given: bool = True) -> dict[str, str]:
    """A worker's environment: ours, plus the number of threads that numerical libraries may start.

    given: whether the user chose that number, so that it takes precedence over our environment.
    """
    counts = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    return (
        {**SHARE_THE_GPU, **os.environ, **counts} if given else {**SHARE_THE_GPU, **counts, **os.environ}
    )


def follow(
    lines: TextIO, worker: WorkerProcess, handle: Handle, claim: Claim, stop: threading.Event
) -> str:
    """Handle events until the worker ends. Returns "", or why the worker must be stopped."""
    since, doing = time.monotonic(), "the start"
    for event in events(lines, worker.process):
        if event is not None:
            try:
                kind = event.pop("event")
                handle(kind, event)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                return damaged(error)
            if kind != "measured":  # a check that measures for ever must exceed its time
                since = time.monotonic()
                doing = DOING.get(kind, doing).format(**event)
            if kind == "hello":
                with contextlib.suppress(OSError):  # it has ended; the next turn reports that
                    worker.send(claim())
        elif reason := "the run ended" if stop.is_set() else worker.excess(doing, since):
            return reason
    return ""


def damaged(error: Exception) -> str:
    """The reason to stop a worker whose event could not be handled."""
    return f"its journal is damaged ({error!r})"


def events(lines: TextIO, process: "subprocess.Popen[bytes]") -> Iterator[Any]:
    """The journal's events as they are written, until the process ends; None while nothing is new."""
    partial = ""
    while True:
        over = process.poll() is not None  # asked before reading, so that its last lines are read too
        for text in lines:
            partial += text
            if partial.endswith("\n"):
                yield parse(partial)
                partial = ""
        if over:
            return
        yield None
        time.sleep(0.1)


def parse(line: str) -> Any:
    """The JSON value in a line, or the line itself if it is not JSON, for the caller to refuse."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def memory(pid: int) -> float:
    """GiB of memory of a process and its descendants; shared pages are not counted."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it may end meanwhile
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            used = member.memory_info()
            total += used.rss - getattr(used, "shared", 0)
    return total / 2**30


def marked(mark: str) -> list[psutil.Process]:
    """Every running process that carries the mark, including daemons in sessions of their own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def survivors(mark: str) -> list[str]:
    """Names of the processes that outlive their worker by more than GRACE seconds."""
    deadline = time.monotonic() + GRACE
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} (pid {process.pid})")
    return names


def last_output(path: Path) -> str:
    """The last line that a worker printed, and where it crashed if faulthandler reported that."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        text = file.read().decode("utf-8", errors="replace").strip()
    text, crash, stack = text.partition("Fatal Python error: ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = stack.partition("Current thread")[2] or stack  # the stack of the thread that crashed
    where = re.search(r'^  File ".*?([^/"]+)", line (\d+) in (\S+)', own, re.MULTILINE)
    parts = [f"last output: {lines[-1][:300]}"] if lines else []
    parts += ["at {}:{} in {}".format(*where.groups())] if crash and where else []
    return "".join(f"; {part}" for part in parts)
