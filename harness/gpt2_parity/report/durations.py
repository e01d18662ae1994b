"""Where the time of a verification went: seconds of each check, by implementation and target."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.files import strict_json
from gpt2_parity.report.cells import Cell
from gpt2_parity.report.runs import Run

KEY = "seconds_by_check"  # in the environment of a run
LOAD = "load"


class Durations(NamedTuple):
    """A table: a row for each target, whose cells are the columns, the total, and its loads."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    whole: str  # how long each run took


def durations(runs: Sequence[Run]) -> Durations | None:
    """The table of all runs; None where no run has measured it."""
    environments = [run.results.environment for run in runs if run.results]
    found = [(label, times) for each in environments for label, times in measured(each).items()]
    if not found:
        return None
    order = [LOAD, *CHECKS]
    names = {name for _, times in found for name in times}
    columns = [name for name in order if name in names] + sorted(names.difference(order))
    loads = {label: text for each in environments for label, text in loads_of(each).items()}
    rows = [
        (label, [*cells([times.get(name) for name in columns]), Cell(loads.get(label, ""), "")])
        for label, times in found
    ]
    whole = ", ".join(f"{each.get('seconds')} s" for each in environments)
    return Durations(
        [name.replace("_", " ") for name in columns] + ["in all", "of that, loads"], rows, whole
    )


def measured(environment: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds by target and check; none where the environment, which others may have made, has none."""
    try:
        return strict_json.convert(environment.get(KEY, {}), dict[str, dict[str, float]])
    except ValueError:
        return {}


def loads_of(environment: dict[str, Any]) -> dict[str, str]:
    """By target: how often load() was called and for how long, as text; none in older runs."""
    try:
        found = strict_json.convert(environment.get("loads", {}), dict[str, dict[str, float]])
        return {
            label: f"{each['calls']:.0f} in {each['seconds']:.2g} s" for label, each in found.items()
        }
    except (ValueError, KeyError):
        return {}


def cells(seconds: Sequence[float | None]) -> list[Cell]:
    """Seconds and their sum as cells, shaded by their share of it; None: not measured."""
    total = sum(second or 0 for second in seconds)
    found = [Cell("" if s is None else f"{s:.2g}", shade(s or 0, total)) for s in seconds]
    return [*found, Cell(f"{total:.3g}", "")]


def shade(seconds: float, total: float) -> str:
    """The darker, the greater the share of the total."""
    share = seconds / total if total else 0.0
    return "ok2" if share > 0.3 else "ok1" if share > 0.1 else "ok0"
