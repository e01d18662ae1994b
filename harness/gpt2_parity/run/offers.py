"""The targets that an implementation offers, found by importing it in a worker process."""

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from gpt2_parity.contract.interface import Target
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.run import supervisor
from gpt2_parity.run.supervisor import Lost, Resources


def offered(found: Found, resources: Resources) -> list[Target]:
    """The targets of an implementation on this machine; nothing is prepared, loaded or measured.

    Raises Lost if it offers none, and if it cannot be imported or breaks the contract.
    """
    events: dict[str, dict[str, Any]] = {}
    job = {
        "implementation": found._asdict(),
        "path": [entry for entry in sys.path if isinstance(entry, str)],
        "threads": 1,
    }
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        journal = Path(folder) / "offers.jsonl"
        stop = threading.Event()
        reason = supervisor.supervise(job, journal, resources, events.__setitem__, nothing, stop)
    if "hello" not in events:
        raise Lost(events.get("broken", {}).get("message") or reason or "it never started")
    targets = [Target(*each) for each in events["hello"]["targets"]]
    if not targets:
        raise Lost("targets() is empty: it cannot run on this machine")
    return targets


def nothing() -> None:
    """A worker that has reported its targets has nothing else to do."""
