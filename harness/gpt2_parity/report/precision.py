"""Declared precision compared with the precision that the matrix products show."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from gpt2_parity.report.verdicts import TargetSection


class Precision(NamedTuple):
    """The declared precision of one target, and the measured one of its products."""

    label: str
    declared: str
    measured: str
    worst: str
    state: str


def precision(found: Sequence[TargetSection]) -> list[Precision]:
    """The measured precision of every target's products."""
    table = []
    for target in found:
        rows = [row for row in target.rows if row.check == "precision" and row.scope]
        if not rows:
            continue
        names: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            names[row.evidence.get("measured", "not measured")].append(row.scope)
        measured = "; ".join(
            f"{name} in {len(scopes)} of {len(rows)} products" for name, scopes in names.items()
        )
        top = max(rows, key=lambda row: math.inf if row.value is None else row.value)
        lost = "no number" if top.value is None else f"{top.value:.1f} bits at {top.scope}"
        limit = f", limit {top.limit:g}" if top.limit is not None else ""
        state = "wrong" if any(row.verdict == "fail" for row in rows) else "right"
        table.append(Precision(target.label, rows[0].dtype, measured, lost + limit, state))
    return table
