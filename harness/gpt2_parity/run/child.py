"""The worker's side of supervisor.py: how a worker process starts, and how it answers requests.

A benchmark measures the start of a worker, which includes importing this module. So it imports little.
"""

import faulthandler
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2_parity.contract.interface import CannotJudge, ContractBroken
from gpt2_parity.run import cores


def begin(job_path: str, lifeline: str) -> dict[str, Any]:
    """Set up this process as its job demands, and return the job.

    job_path: a JSON file. lifeline: the file descriptor of a pipe whose other end the supervisor holds.
    """
    faulthandler.enable()
    threading.Thread(target=end_with_parent, args=(int(lifeline),), daemon=True).start()
    job: dict[str, Any] = json.loads(Path(job_path).read_text(encoding="utf-8"))
    # the caller's import path and the working folder come last, so that they hide no module of ours
    sys.path += [entry for entry in (*job.get("path", ()), os.getcwd()) if entry not in sys.path]
    cores.keep_to(job["cores"])
    return job


def end_with_parent(lifeline: int) -> None:
    """Wait until the parent's end of the pipe closes, then end this process."""
    os.read(lifeline, 1)
    os._exit(1)


def serve(load: Callable[[], Any]) -> None:
    """Load a handler, then answer requests until the supervisor closes the pipe.

    A request {"op": NAME, ...} calls the handler's method of that name and replies with its result. An
    exception ends that request only. The first reply, {}, means that the handler is loaded.
    """
    requests, reply = channel()
    try:
        handler = load()
    except Exception as error:
        reply(failure(error))
        return
    reply({})  # a supervisor that measures the start stops its clock here
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(handler, request.pop("op"))(**request)
        except Exception as error:
            answer = failure(error)
        reply(answer)


def channel() -> tuple[Iterator[str], Callable[[dict[str, Any]], None]]:
    """The supervisor's requests, and a function that sends a reply.

    After this, print() writes to standard error, so that no output of user code is taken for a reply.
    """
    incoming, replies = requests(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return incoming, writer(replies)


def requests() -> Iterator[str]:
    """The lines that the supervisor sends. After this, standard input is empty for user code."""
    incoming = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    return incoming


def writer(file: Any) -> Callable[[dict[str, Any]], None]:
    """A function that writes one JSON line to a file. In a forked process it exits instead."""
    owner = os.getpid()

    def write(value: dict[str, Any]) -> None:
        if os.getpid() != owner:  # a fork that returned from user code must not answer for its parent
            os._exit(1)
        file.write(json.dumps(value) + "\n")
        file.flush()

    return write


def failure(error: Exception) -> dict[str, Any]:
    """The reply to a request that raised."""
    kinds = {"import": ImportError, "cannot judge": CannotJudge}
    kind = next((name for name, of in kinds.items() if isinstance(error, of)), "")
    return {"error": str(error) if isinstance(error, CannotJudge) else explain(error), "kind": kind}


def explain(error: BaseException) -> str:
    """An exception as one line: its type, the file and line that raised it, and its message."""
    if isinstance(error, ContractBroken):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else ("", 0)
    message = str(error)
    if isinstance(error, SyntaxError):  # raised where the module was imported
        file, line, message = error.filename or "", error.lineno, error.msg
    where = f" at {Path(file).name}:{line}" if file else ""
    text = " ".join(message.split())
    from gpt2_parity.implementation import extras  # only where something has failed

    return f"{type(error).__name__}{where}: {text}"[:500] + extras.advice(error)
