"""Run the checks on a module in this process, through the worker's and the judge's own code."""

from collections.abc import Collection

from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import Asked
from gpt2_parity.contract.rows import Row
from gpt2_parity.run import in_process
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import Prepared

FLOAT32 = Target("cpu", "float32")


def examine(
    module,
    prepared: Prepared,
    target: Target = FLOAT32,
    only: set[str] | None = None,
    checks: Collection[str] = (),
) -> list[Row]:
    """Judged rows of a module. only: names of the cases to use, checks: of those to make; none: all."""
    return examined(module, prepared, target, only, checks).rows


def examined(
    module,
    prepared: Prepared,
    target: Target = FLOAT32,
    only: set[str] | None = None,
    checks: Collection[str] = (),
) -> RunState:
    """The state of a module's run, with its rows and the seconds of each check."""
    if only:
        records = [record for record in prepared.records if record.name in only]
        fresh = [case for case in prepared.fresh if case.name in only]
        prepared = prepared._replace(records=records, fresh=fresh)
    state = prepared.state(module.__name__, "micro")
    state.asked = Asked(only=tuple(checks), search=0.001 if "search" in checks else 0)
    in_process.measure(state, module, target, prepared)
    return state
