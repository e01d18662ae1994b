"""A measurement, and the row of results.json that it becomes: facts, and no sentence.

status of a row:

    measured    a finite value came
    nan         the value is NaN
    infinite    the value is infinite
    missing     nothing came, and nothing broke off
    unexpected  it was not promised, or came more than once
    error       the check broke off, or the row is itself an error that belongs to no measurement
    lost        the process ended before it could be measured
    not_asked   the target is not offered, or no tap lets it be seen

evidence is a small JSON object of what the check saw; verdict/explain.py makes sentences of it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Evidence = dict[str, Any]  # while it is put together


class Measurement(NamedTuple):
    """One measured quantity; what it is worth is for verdict/judge.py to say."""

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


class Results(NamedTuple):
    """What a run found, and all that is needed to repeat it."""

    rows: list[Row]
    environment: dict[str, Any]


def label(row: Row) -> str:
    """Implementation and target as one name: torch-cpu-float32."""
    return "-".join(part for part in (row.implementation, row.device, row.dtype) if part)


def plain(value: Any) -> Any:
    """A value as strict JSON has it: NumPy's scalars as Python's, NaN and infinities as text."""
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
    """0: every check that was required passed. 1: a disagreement. 2: nothing could be judged.

    A check none of whose measurements passed has not passed, so a run without a single pass, or
    a check left wholly inconclusive, is a 2. Known failures count as passes.
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
