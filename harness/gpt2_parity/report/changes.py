"""What changed from one verdict to the next, and what is worth asking first then."""

from collections.abc import Iterable

from gpt2_parity.contract.rows import Results, Row
from gpt2_parity.report import results
from gpt2_parity.report.durations import KEY

FAILED = "FAIL"  # a cell of the table of verdicts begins with it


def between(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """A line for each target and check that began to fail, no longer fails, or fails otherwise."""
    one, two = results.grid(before), results.grid(after)
    lines = []
    for name, cells in two.items():
        was = one.get(name, {})
        for check, now in cells.items():
            then = was.get(check, "absent")
            if now != then and (now.startswith(FAILED) or then.startswith(FAILED)):
                lines.append(f"{name} {check}: {then} -> {now}")
    return lines + [f"{name}: gone" for name in one if name not in two]


def failing(rows: Iterable[Row]) -> set[str]:
    """The checks that failed."""
    return {row.check for row in rows if row.verdict == "fail"}


def urgent(found: Results) -> list[str]:
    """Checks in the order in which to repeat them: first those that failed, then what is quick."""
    failed, seconds = failing(found.rows), dict[str, float]()
    for times in found.environment.get(KEY, {}).values():
        for check, taken in times.items():
            seconds[check] = max(taken, seconds.get(check, 0.0))
    return sorted(seconds, key=lambda check: (check not in failed, seconds[check]))
