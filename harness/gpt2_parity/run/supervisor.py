"""A worker process and its limits: whatever an implementation does, it does to itself alone.

The worker gets a session of its own, a limit on its memory, on its output, on the time of its start
and of each check, and a lifeline: a pipe whose other end we hold, so that it ends when we do. Its
environment carries a mark by which processes that it leaves behind are found, wherever they hide.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from gpt2_parity.files import atomic

Hear = Callable[[str, dict[str, Any]], None]
MARK = "PARITY_WORKER"
# JAX would take three quarters of a GPU at first use: too little would be left for a framework beside
# it, and whoever asks how much memory an implementation needs would be told this share.
ALONE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)
DOING = {"begin": "loading", "checking": "the check {check}", "end": "ending"}  # after such an event
OUTPUT = 64  # MiB that a worker may write to stdout and stderr
GRACE = 2.0  # seconds for helpers of multiprocessing and the like to notice that the worker has ended


class Limits(NamedTuple):
    """What a worker may use; beyond it is stopped, which is then its verdict."""

    seconds: float = 600.0  # for its start, and for each check
    gigabytes: float = 16.0  # GiB of memory of its own, it and its children together
    threads: int | None = None  # None: as many as there are processors


def attend(job: dict[str, Any], journal: Path, limits: Limits, hear: Hear) -> str:
    """One worker process from start to end; hear gets every event that it writes into its journal.

    Returns what ended it early, with its last words, or "" for a clean end.
    """
    words, order = journal.with_suffix(".txt"), journal.with_suffix(".json")
    atomic.write_text(order, json.dumps(job | {"journal": str(journal), "threads": limits.threads}))
    journal.touch()
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    worker_end, our_end = os.pipe()
    with words.open("wb") as output, journal.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(0, os.SEEK_END)  # what an earlier worker wrote has been heard
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpt2_parity.run.worker", str(order), str(worker_end)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(worker_end,),
            env=environment(limits.threads, mark),
        )
        os.close(worker_end)
        try:
            stopped = listen(lines, process, words, limits, hear)
            left_behind = [] if stopped else survivors(mark)
        finally:
            os.close(our_end)
            end(process, mark)
    return death(process.returncode, stopped, left_behind, words)


def environment(threads: int | None, mark: str) -> dict[str, str]:
    """The worker's: ours, its mark, and how many threads the numerical libraries may start."""
    counts = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    return {**ALONE, **os.environ, **counts, MARK: mark}


def listen(
    lines: Any, process: "subprocess.Popen[bytes]", words: Path, limits: Limits, hear: Hear
) -> str:
    """Pass on events until the process ends (then "") or has to be stopped (then why)."""
    since, doing = time.monotonic(), "the start"
    for event in events(lines, process):
        if event is not None:
            try:
                kind = event.pop("event")
                hear(kind, event)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                return f"its journal is damaged ({error!r})"
            if kind != "measured":  # measuring for ever is no progress
                since = time.monotonic()
                doing = DOING.get(kind, doing).format(**event)
        elif time.monotonic() - since > limits.seconds:
            return f"{doing} took longer than {limits.seconds:g} s"
        elif (used := resident(process.pid)) > limits.gigabytes:
            return f"{doing} used {used:.1f} GiB of memory, allowed are {limits.gigabytes:g}"
        elif words.stat().st_size > OUTPUT * 2**20:
            return f"{doing} wrote more than {OUTPUT} MiB of output"
    return ""


def events(lines: Any, process: "subprocess.Popen[bytes]") -> Iterator[Any]:
    """The journal's lines as they come until the process ends; None whenever there is nothing new."""
    partial = ""
    while True:
        over = process.poll() is not None  # asked first: lines written before the end are still read
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
    """An event; what is no JSON is passed on as it is, and found damaged there."""
    try:
        return json.loads(line)
    except ValueError:
        return line


def resident(pid: int) -> float:
    """GiB of memory that belongs to a process and its children, shared file pages not counted."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it may end while we look
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            memory = member.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total / 2**30


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that carries the mark, daemons in sessions of their own included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def survivors(mark: str) -> list[str]:
    """Names of the processes that outlive the worker, after some grace."""
    deadline = time.monotonic() + GRACE
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} (pid {process.pid})")
    return names


def end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Stop the worker and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for left in marked(mark):
        with contextlib.suppress(psutil.Error):
            left.kill()


def death(code: int, stopped: str, left_behind: list[str], words: Path) -> str:
    """What ended the worker, in words; "" for a clean end."""
    if stopped:
        return f"stopped: {stopped}{last_words(words)}"
    if code < 0:
        return f"died of {signal.Signals(-code).name}{last_words(words)}"
    if code:
        return f"exited with code {code}{last_words(words)}"
    if left_behind:
        return f"left processes behind: {', '.join(left_behind)}"
    return ""


def last_words(words: Path) -> str:
    """The last line that the worker wrote, and where it stood if Python could still say so."""
    with words.open("rb") as file:
        file.seek(max(0, words.stat().st_size - 2**16))
        said = file.read().decode("utf-8", errors="replace").strip()
    said, crash, stack = said.partition("Fatal Python error: ")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = stack.partition("Current thread")[2] or stack  # of several threads, the one that crashed
    where = re.search(r'^  File ".*?([^/"]+)", line (\d+) in (\S+)', own, re.MULTILINE)
    told = [f"last words: {lines[-1][:300]}"] if lines else []
    told += ["at {}:{} in {}".format(*where.groups())] if crash and where else []
    return "".join(f"; {text}" for text in told)
