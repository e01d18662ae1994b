"""A measurement, and the row of results.json that it becomes."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple


class Measurement(NamedTuple):
    """One measured quantity; what it is worth is for judge.py to say."""

    case: str
    scope: str
    metric: str
    value: float
    detail: str = ""
    conclusive: bool = True
    diagnosis: str = ""  # "name: words", where a known mistake was looked for


class Row(NamedTuple):
    """One row of results.json."""

    implementation: str
    device: str
    dtype: str
    model: str
    case: str
    check: str
    scope: str
    metric: str
    value: float | None  # None: not measured, or NaN (the detail says which)
    limit: float | None
    ratio: float | None  # value / limit: the share of the limit that was used
    verdict: str
    blame: str
    diagnosis: str
    detail: str


def label(row: Row) -> str:
    """Implementation and target as one name: torch-cpu-float32."""
    return "-".join(part for part in (row.implementation, row.device, row.dtype) if part)


def exit_code(rows: Iterable[Row]) -> int:
    """0: every check that was required passed. 1: a disagreement. 2: nothing could be judged.

    A check none of whose measurements passed has not passed, so a run without a single pass, or
    a check left wholly inconclusive, is a 2. What the ledger knows counts as it would have passed.
    """
    verdicts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        if row.verdict not in ("unlocalised", "skipped"):
            verdicts[(*row[:4], row.check)].add(row.verdict)
    if any("fail" in found for found in verdicts.values()):
        return 1
    if not verdicts or any(not found & {"pass", "known"} for found in verdicts.values()):
        return 2
    return 0


class Results(NamedTuple):
    """What a run found, and all that is needed to repeat it."""

    rows: list[Row]
    environment: dict[str, Any]
