"""How cost grows: prefill and decode against tokens, batch and model, measured, and by theory.

Cost is taken to grow as a power of size; the exponent is the slope of log time over log size. Theory
has three: that of the FLOPs, of the bytes, and of the roofline, the least time that either allows here.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_parity.bench import interval, roofline, session
from gpt2_parity.bench.roofline import ITEMSIZE, Rates
from gpt2_parity.bench.session import Report
from gpt2_parity.bench.workload import DECODED, Outcome, Plans, Row, Workload, unmeasured
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue, checkpoint, synthetic

LENGTHS = (16, 32, 64, 128, 256, 512, 1023)
PASTS = (16, 64, 256, 512, 900)
BATCHES = (1, 4, 16)
SIZES = ("124M", "355M", "774M")
AGAINST = ("tokens", "batch", "parameters")


def names(model: str) -> list[str]:
    """The models to measure: the one named, and where it is a shape, the larger ones too."""
    larger = [f"{catalogue.SHAPE}{size}" for size in SIZES]
    return larger[larger.index(model) :] if model in larger else [model]


class Fit(NamedTuple):
    """One exponent beside what theory says."""

    implementation: str
    phase: str
    against: str  # tokens, batch or parameters
    sizes: list[float]
    exponent: float | None  # None: not fitted; the detail says why
    low: float | None
    high: float | None
    roofline: float | None
    flops: float | None
    bytes: float | None
    detail: str


def workloads(
    hparams: HParams, lengths: Sequence[int] = LENGTHS, pasts: Sequence[int] = PASTS
) -> list[Workload]:
    """Against tokens and against batch, on one model."""
    n_new = min(DECODED, max(1, hparams.n_ctx // 4))
    found = [Workload("prefill", n) for n in lengths if n <= hparams.n_ctx]
    found += [Workload("decode", n_new, past) for past in pasts if past + n_new < hparams.n_ctx]
    for batch in BATCHES:
        found += across(hparams, batch)
    return list(dict.fromkeys(found))


def across(hparams: HParams, batch: int = 1) -> list[Workload]:
    """The two that are measured for every batch and every model."""
    n = min(LENGTHS[3], hparams.n_ctx)
    n_new = min(DECODED, max(1, hparams.n_ctx // 4))
    return [Workload("prefill", n, batch=batch), Workload("decode", n_new, min(PASTS[0], n), batch)]


def measure(
    found: Sequence[Found],
    named: Sequence[str],
    plans: Plans,
    against: str = "",
    report: Report = lambda what, done, of: None,
) -> tuple[Outcome, list[Fit]]:
    """Everything on the first model named, what is common to all on the others; then the exponents.

    A further model that does not fit in memory, or cannot be measured, is skipped, with the reason in
    its rows: what the others took minutes for is kept. Raises CannotJudge as session.measure does.
    """
    rows: list[Row] = []
    environment = None
    for i, name in enumerate(named):
        size = name.removeprefix(catalogue.SHAPE)
        official = synthetic.OFFICIAL.get(size) if name.startswith(catalogue.SHAPE) else None
        lacking = session.too_big(official, plans.target, len(found)) if official else ""
        try:
            if lacking and i:  # asked before its weights are generated
                raise CannotJudge(lacking)
            where = catalogue.locate(name)
            hparams = checkpoint.read_hparams(where.checkpoint / "hparams.json")
            wanted = plans._replace(workloads=across(hparams) if i else workloads(hparams))
            outcome = session.measure(found, where, wanted, against, report=named_report(report, name))
        except CannotJudge as error:
            if not i:
                raise
            rows += skipped(found, name, plans, against or found[0].name, str(error))
            continue
        environment = environment or outcome.environment
        rows += outcome.rows
    if environment is None:
        raise CannotJudge("growth: no model was named")
    rates = Rates(environment["bandwidth_bytes_per_s"], environment["gemm_flop_per_s"])
    return Outcome(rows, environment), fits(rows, shapes_of(named), rates)


def named_report(report: Report, name: str) -> Report:
    return lambda what, done, of: report(f"{name} {what}", done, of)


def shapes_of(named: Sequence[str]) -> dict[str, HParams]:
    """hparams by model name, of all that are there."""
    found = {}
    for name in named:
        size = name.removeprefix(catalogue.SHAPE)
        if size in synthetic.OFFICIAL:
            found[name] = synthetic.OFFICIAL[size]
        else:
            found[name] = checkpoint.read_hparams(catalogue.locate(name).checkpoint / "hparams.json")
    return found


def skipped(found: Sequence[Found], name: str, plans: Plans, against: str, reason: str) -> list[Row]:
    """Rows that say why a model was not measured."""
    shape = synthetic.OFFICIAL[name.removeprefix(catalogue.SHAPE)]
    return [
        unmeasured(one.name, plans.target, name, workload, against, "skipped", reason)
        for one in found
        for workload in across(shape)
    ]


# -- exponents


def fits(rows: Sequence[Row], sizes_of: dict[str, HParams], rates: Rates) -> list[Fit]:
    """Every exponent that the rows allow."""
    first = rows[0].model
    implementations = list(dict.fromkeys(row.implementation for row in rows))
    sizes = AGAINST if len(sizes_of) > 1 else AGAINST[:2]  # one model has no slope against models
    keys = [(i, phase, a) for a in sizes for phase in ("prefill", "decode") for i in implementations]
    return [
        fit(
            implementation,
            phase,
            against,
            chosen(rows, implementation, phase, against, first),
            sizes_of,
            rates,
        )
        for implementation, phase, against in keys
    ]


def chosen(rows: Sequence[Row], implementation: str, phase: str, against: str, first: str) -> list[Row]:
    """The rows that differ in one size only."""
    mine = [row for row in rows if (row.implementation, row.phase) == (implementation, phase)]
    middle = [row for row in mine if common(row, mine)]
    return {
        "tokens": [row for row in mine if row.model == first and row.batch == 1],
        "batch": [row for row in middle if row.model == first],
        "parameters": [row for row in middle if row.batch == 1],
    }[against]


def common(row: Row, mine: Sequence[Row]) -> bool:
    """Of the length that every batch and model was measured at: that of the batches."""
    lengths = {other.n_past or other.n for other in mine if other.batch > 1}
    lengths = lengths or {other.n_past or other.n for other in mine if other.model != mine[0].model}
    return (row.n_past or row.n) in lengths


def fit(
    implementation: str,
    phase: str,
    against: str,
    rows: Sequence[Row],
    sizes_of: dict[str, HParams],
    rates: Rates,
) -> Fit:
    """The slope in each round, so that its interval is that of a median, and three slopes of theory."""
    rows = [row for row in rows if row.verdict == "verified"]
    sizes = [size(row, against, sizes_of[row.model]) for row in rows]
    if len(set(sizes)) < 2:
        detail = f"sizes verified: {len(set(sizes))}, so there is no slope"
        return Fit(implementation, phase, against, sizes, *NO_SLOPE, detail)
    rounds = list(zip(*(row.samples for row in rows), strict=True))
    if any(value <= 0 for taken in rounds for value in taken):
        detail = "a sample is not positive, so it has no logarithm"
        return Fit(implementation, phase, against, sizes, *NO_SLOPE, detail)
    found = interval.median([slope(sizes, taken) for taken in rounds])
    exponent = (found.median, found.low, found.high)
    lowest, work, traffic = (
        slope_of(law, rows, sizes, sizes_of, rates) for law in (least, flops, moved)
    )
    return Fit(implementation, phase, against, sizes, *exponent, lowest, work, traffic, "")


NO_SLOPE = (None, None, None, None, None, None)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Of log cost over log size, by least squares."""
    x, y = np.log(sizes), np.log(costs)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def size(row: Row, against: str, hparams: HParams) -> float:
    """What a cost is put against: of decode, tokens are those in the cache."""
    if against == "parameters":
        return float(roofline.parameters(hparams))
    return float(row.batch if against == "batch" else row.at[1] if row.phase == "decode" else row.n)


Law = Callable[[Row, HParams, Rates], float | None]


def least(row: Row, hparams: HParams, rates: Rates) -> float | None:
    return roofline.seconds(hparams, rates, *row.at, row.batch, ITEMSIZE[row.dtype])


def flops(row: Row, hparams: HParams, rates: Rates) -> float:
    return roofline.flops(hparams, *row.at, row.batch)


def moved(row: Row, hparams: HParams, rates: Rates) -> float:
    return roofline.bytes_moved(hparams, *row.at, row.batch, ITEMSIZE[row.dtype])


def slope_of(
    law: Law, rows: Sequence[Row], sizes: Sequence[float], sizes_of: dict[str, HParams], rates: Rates
) -> float | None:
    costs = [law(row, sizes_of[row.model], rates) for row in rows]
    known = [cost for cost in costs if cost is not None and math.isfinite(cost)]
    return slope(sizes, known) if len(known) == len(sizes) else None
