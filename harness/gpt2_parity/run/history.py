"""How long each target took the last time, so that the longest can start first.

Nothing but the order of the work depends on it: a lost or damaged file costs a little time.
"""

import contextlib
import json
from collections.abc import Iterable

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, strict_json
from gpt2_parity.model import checkpoint
from gpt2_parity.run.journal import RunState

NAME = "seconds.json"  # in the per-user cache
MOST = 1000  # implementations that are remembered

Seconds = dict[str, dict[str, float]]  # by model and implementation, then by target


def name_of(state: RunState) -> str:
    """The name of an implementation on a model."""
    return f"{state.model} {state.name}"


def read() -> Seconds:
    """What is remembered, the latest last; empty if there is no such file."""
    try:
        return strict_json.convert(strict_json.read(checkpoint.home() / NAME), Seconds)
    except (OSError, ValueError):
        return {}


def add(states: Iterable[RunState]) -> None:
    """Remember what was measured, beside what was known before."""
    known = read()
    for state in states:
        taken = {str(target): sum(found.seconds.values()) for target, found in state.targets.items()}
        if taken:
            known[name_of(state)] = known.pop(name_of(state), {}) | taken
    latest = dict(list(known.items())[-MOST:])
    with contextlib.suppress(CannotJudge, OSError):  # a read-only cache
        atomic.write_text(checkpoint.home() / NAME, json.dumps(latest, indent=1) + "\n")
