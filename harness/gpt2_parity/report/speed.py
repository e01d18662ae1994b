"""Speed and memory: what each benchmark found right, and its figures as bars with the roofline."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_parity.report import plots
from gpt2_parity.report.cells import number, quantity
from gpt2_parity.report.runs import WHICH, Run


class Speed(NamedTuple):
    """One thing that was timed or weighed, for every implementation."""

    title: str
    figure: str
    rows: Sequence[tuple[str, ...]]


class Contestant(NamedTuple):
    """One implementation in a benchmark: whether its output is right, how much was measured."""

    label: str
    state: str  # as in verdicts.STATES
    said: str
    counts: str


ENDS = {"wrong output": "wrong", "crashed": "crashed", "verified": "right", "skipped": "skipped"}
PHASES = {"prefill": "prefill of {n} tokens", "decode": "a token, after {n_past}"}
PHASES |= {"start": "start to first logits", "load": "loading the weights, of that"}
METRICS = {"peak_rss": "memory: peak resident", "anonymous": "memory: its own, no file behind it"}
METRICS |= {"gpu": "memory of the GPU"}


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """The verdict on each implementation, by its worst row; a skipped row decides nothing."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for row in run.bench["rows"] if run.bench else ():
            groups[name_of(row)].append(row)
    return [contestant(label, rows) for label, rows in groups.items()]


def contestant(label: str, rows: list[dict[str, Any]]) -> Contestant:
    """An implementation and all its rows. Rows that no benchmark writes leave it without a verdict."""
    worst = min(rows, key=rank)
    right = sum(row["verdict"] == "verified" for row in rows)
    said = (
        "right before, during and after"
        if rank(worst) == 2
        else f"{worst['verdict']}: {worst['detail']}"
    )
    asked = sum(row["verdict"] != "skipped" for row in rows)
    counts = f"{right} of {asked} measured" if right < asked else f"{right} measured"
    return Contestant(label, ENDS.get(str(worst["verdict"]), "open"), said, counts)


def rank(row: dict[str, Any]) -> int:
    """The place of a row among those of its kind: what is wrong stands first, what is skipped last."""
    order = ["wrong output", "crashed", "verified", "skipped"]
    return order.index(row["verdict"]) if row["verdict"] in order else 1


def name_of(row: dict[str, Any]) -> str:
    return "-".join(str(row[name]) for name in WHICH[:3])


def speed(runs: Sequence[Run]) -> list[Speed]:
    """Bars for each thing that was benchmarked; a row that is not verified has no figure."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for row in run.bench["rows"] if run.bench else ():
            groups[tuple(row[key] for key in WHICH[3:])].append(row)
    styles: dict[str, int] = {}
    return [one_speed(i, key, rows, styles) for i, (key, rows) in enumerate(groups.items())]


def one_speed(
    index: int, key: tuple[Any, ...], rows: list[dict[str, Any]], styles: dict[str, int]
) -> Speed:
    model, title = key[0], title_of(*key[1:])
    found, table = [], []
    for row in sorted(rows, key=lambda row: rank(row) > 1):  # failures come first
        label = name_of(row)
        style = styles.setdefault(label, len(styles))
        median, verified = row["median"], row["verdict"] == "verified" and row["median"] is not None
        words = quantity(median, row["unit"]) if verified else str(row["verdict"])
        reached = row["roofline"] if verified and row["unit"] == "seconds" else None
        words += f" · {reached:.0%} of roofline" if reached else ""
        best = median * reached if reached else None
        low, high = (row["low"], row["high"]) if verified else (None, None)
        found.append(plots.Bar(style, label, median if verified else None, low, high, best, words))
        span = (
            f"{quantity(low, row['unit'])} to {quantity(high, row['unit'])}" if low is not None else ""
        )
        rate = row["tokens_per_second"]
        table.append(
            (label, words, span, str(len(row["samples"])), number(rate) if rate else "", row["detail"])
        )
    said = "; ".join(f"{bar.name} {bar.words}" for bar in found)
    figure = plots.bars(f"speed{index}", found, f"{title}: {said}")
    return Speed(f"{title} · {model}", figure, table)


def title_of(phase: str, metric: str, n_past: int, n: int, batch: int) -> str:
    """What a row of a benchmark timed or weighed, in words."""
    title = METRICS.get(metric) or PHASES.get(phase, phase).format(n=n, n_past=n_past)
    return title + f", batch {batch}" * (batch not in (None, 0, 1))
