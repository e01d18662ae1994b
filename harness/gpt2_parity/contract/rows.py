"""A measurement, and the row of results.json that is made from it: data, no sentences.

status of a row:

    measured    the value is finite
    nan         the value is NaN
    infinite    the value is infinite
    missing     there is no value, although the check did not raise
    unexpected  the plan does not contain it, or it was measured more than once
    error       the check raised, or the row is itself an error that belongs to no measurement
    lost        the process ended before it could be measured
    not_asked   the target is not offered, or no tap shows it

evidence is a small JSON object of what the check observed; verdict/explain.py turns it into sentences.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Evidence = dict[str, Any]  # a mutable one, while a check builds it


class Measurement(NamedTuple):
    """One measured quantity; verdict/judge.py decides whether it passes."""

    case: str
    scope: str
    metric: str
    value: float
    evidence: Mapping[str, Any] = {}
    conclusive: bool = True
    mistake: str = ""  # the id of a known mistake that explains the error


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
    value: float | None  # None where status is not "measured"
    limit: float | None
    ratio: float | None  # value / limit: the share of the limit that was used
    verdict: str
    status: str
    blame: str
    mistake: str
    evidence: Mapping[str, Any]


STATUSES = ("measured", "nan", "infinite", "missing", "unexpected", "error", "lost", "not_asked")
VERDICTS = ("pass", "fail", "known", "inconclusive", "unlocalised", "skipped")


NOT_ASKED = "not asked for"  # environment["cuda"] of a run of other devices only


class Results(NamedTuple):
    """The rows of a run, and the environment in which it ran."""

    rows: list[Row]
    environment: dict[str, Any]


def label(row: Row) -> str:
    """Implementation and target as one name: torch-cpu-float32."""
    return "-".join(part for part in (row.implementation, row.device, row.dtype) if part)


def plain(value: Any) -> Any:
    """A value as strict JSON: NumPy scalars become Python numbers, NaN and infinities become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def exit_code(rows: Iterable[Row]) -> int:
    """0: every required check passed. 1: a disagreement. 2: could not judge.

    A check passes only if one of its measurements passes and none fails. A run without rows to judge, or
    with a check that is wholly inconclusive, gives 2. Known failures count as passes.
    """
    verdicts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        if row.verdict not in ("unlocalised", "skipped"):
            verdicts[(*row[:4], row.check)].add(row.verdict)
    if any("fail" in each for each in verdicts.values()):
        return 1
    if not verdicts or any(not each & {"pass", "known"} for each in verdicts.values()):
        return 2
    return 0


OUTCOMES = {0: "PASS", 1: "FAIL", 2: "NO VERDICT"}  # by exit code
