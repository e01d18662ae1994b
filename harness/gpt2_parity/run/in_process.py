"""Run the checks in this process: for an object that exists only in memory, and to test the checks.

Nothing protects the caller here: a crash ends this process, and time and memory have no limit.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.interface import Target
from gpt2_parity.implementation import signatures
from gpt2_parity.implementation.without_cache import with_cache
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.run import imported, worker
from gpt2_parity.run.child import explain
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.run.supervisor import Handle


def measure(
    state: RunState,
    implementation: Any,
    target: Target,
    prepared: Prepared,
    decode: Callable[[Sequence[int]], str] = str,
    handle: Handle | None = None,
) -> bool:
    """Run every check on one target. state handles the events, and then has the judged rows.

    handle receives each event instead of state. Returns False if the implementation stopped working, so
    that every call raises.
    """

    def send(event: str, **data: Any) -> None:
        (handle or state.handle)(event, data)

    send("begin", target=target, host=worker.host_of(target))
    load = functools.partial(prepared.load, implementation, target, decode)
    with np.errstate():  # an implementation that changes NumPy's error handling changes it for itself
        works = worker.measure(load, target, send, asked=state.asked)
    if works:
        send("end", target=target)
    return works


def examine(
    state: RunState,
    load: Callable[[], Any],
    wanted: Sequence[Target],
    prepared: Prepared,
    handle: Handle,
) -> None:
    """Load an implementation and run every check on each wanted target (all, if none is named).

    handle receives every event and passes it on to state; it may raise to refuse the run.
    """
    try:
        implementation = load()
        offered = signatures.check(implementation, CAPABILITIES)
        implementation = with_cache(implementation)
    except (Exception, SystemExit) as error:
        handle("lost", {"target": None, "message": explain(error), "imported": imported.now(error)})
        return
    handle("hello", worker.hello(offered))
    if not offered:
        message = "targets() is empty: it cannot run on this machine"
        handle("lost", {"target": None, "message": message})
    tokenizer = tokenizer_of(Path(prepared.job["tokenizer"]), prepared.hparams)
    decode = tokenizer.decode if tokenizer else str
    stopped: Target | None = None
    for target in state.left(wanted) or ():
        if stopped:
            handle("begin", {"target": target})
            message = f"not examined: it stopped working on {stopped}, in the same process"
            handle("lost", {"target": target, "message": message})
        elif not measure(state, implementation, target, prepared, decode, handle):
            stopped = target
