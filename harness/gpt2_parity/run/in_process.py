"""Run the checks in this process: for an object that exists only in memory, and to test the checks.

Nothing protects the caller here: a crash ends this process, and time and memory have no limit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.interface import Target
from gpt2_parity.implementation import signatures
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.run import worker
from gpt2_parity.run.child import explain
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import Prepared


def measure(
    state: RunState,
    implementation: Any,
    target: Target,
    prepared: Prepared,
    decode: Callable[[Sequence[int]], str] = str,
    journal: Callable[..., None] | None = None,
) -> bool:
    """Run every check on one target. state handles the events, and then has the judged rows.

    journal receives each event as worker.measure sends it; by default events go to state directly.
    Returns False if the implementation stopped working, so that every call raises.
    """

    def to_state(event: str, **data: Any) -> None:
        state.handle(event, data)

    send = journal or to_state
    checkpoint = prepared.checkpoint
    send("begin", target=target)
    with np.errstate():  # an implementation that changes NumPy's error handling changes it for itself
        works = worker.measure(
            implementation,
            target,
            checkpoint.weights,
            checkpoint.hparams,
            prepared.records,
            decode,
            send,
        )
    if works:
        send("end", target=target)
    return works


def examine(
    state: RunState,
    load: Callable[[], Any],
    wanted: Sequence[Target],
    prepared: Prepared,
    progress: Callable[[int], None],
    offers: Callable[[], None],
) -> None:
    """Load an implementation and run every check on each wanted target (all, if none is named).

    progress is called with the number of checks done on the current target. offers is called as soon
    as the state knows which targets are offered; it may raise to refuse the run.
    """

    def journal(event: str, **data: Any) -> None:
        state.handle(event, data)
        if state.current:
            progress(len(state.checked))

    try:
        implementation = load()
        offered = signatures.check(implementation, CAPABILITIES)
    except (Exception, SystemExit) as error:
        journal("lost", target=None, message=explain(error))
        return
    journal("hello", targets=offered, versions=worker.versions())
    offers()
    if not offered:
        journal("lost", target=None, message="targets() is empty: it cannot run on this machine")
    tokenizer = tokenizer_of(Path(prepared.job["tokenizer"]), prepared.checkpoint.hparams)
    decode = tokenizer.decode if tokenizer else str
    stopped: Target | None = None
    for target in state.left(wanted) or ():
        if stopped:
            journal("begin", target=target)
            message = f"not examined: it stopped working on {stopped}, in the same process"
            journal("lost", target=target, message=message)
        elif not measure(state, implementation, target, prepared, decode, journal):
            stopped = target
