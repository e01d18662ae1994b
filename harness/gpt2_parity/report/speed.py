"""Speed and memory: the verdict on each implementation, and its figures as bars with the roofline."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_parity.report import plots
from gpt2_parity.report.cells import number, quantity
from gpt2_parity.report.runs import WHICH, Run


class Speed(NamedTuple):
    """One measured time or memory, for every implementation."""

    title: str
    figure: str
    rows: Sequence[tuple[str, ...]]


class Contestant(NamedTuple):
    """One implementation in a benchmark: whether its output is right, and how much was measured."""

    label: str
    state: str  # a key of verdicts.STATES
    text: str
    counts: str


ENDS = {"wrong output": "wrong", "crashed": "crashed", "verified": "right", "skipped": "skipped"}
PHASES = {"prefill": "prefill of {n} tokens", "decode": "a token, after {n_past}"}
PHASES |= {"start": "start to first logits", "load": "of which loading the weights"}
METRICS = {"peak_rss": "memory: peak resident", "anonymous": "memory: anonymous (not file-backed)"}
METRICS |= {"gpu": "memory of the GPU"}


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """The verdict on each implementation, from its worst row; skipped rows do not count."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for row in run.bench["rows"] if run.bench else ():
            groups[name_of(row)].append(row)
    return [contestant(label, rows) for label, rows in groups.items()]


def contestant(label: str, rows: list[dict[str, Any]]) -> Contestant:
    """One implementation from all its rows. An unknown verdict in them leaves it without a verdict."""
    worst = min(rows, key=rank)
    right = sum(row["verdict"] == "verified" for row in rows)
    text = (
        "right before, during and after"
        if rank(worst) == 2
        else f"{worst['verdict']}: {worst['detail']}"
    )
    wanted = sum(row["verdict"] != "skipped" for row in rows)
    counts = f"{right} of {wanted} measured" if right < wanted else f"{right} measured"
    return Contestant(label, ENDS.get(str(worst["verdict"]), "open"), text, counts)


def rank(row: dict[str, Any]) -> int:
    """A sort key for the rows of an implementation: wrong output first, skipped last."""
    order = ["wrong output", "crashed", "verified", "skipped"]
    return order.index(row["verdict"]) if row["verdict"] in order else 1


def name_of(row: dict[str, Any]) -> str:
    return "-".join(str(row[name]) for name in WHICH[:3])


def speed(runs: Sequence[Run]) -> list[Speed]:
    """Bars for each measured time or memory; a row that is not verified has no figure."""
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
        caption = quantity(median, row["unit"]) if verified else str(row["verdict"])
        reached = row["roofline"] if verified and row["unit"] == "seconds" else None
        caption += f" · {reached:.0%} of roofline" if reached else ""
        best = median * reached if reached else None
        low, high = (row["low"], row["high"]) if verified else (None, None)
        found.append(plots.Bar(style, label, median if verified else None, low, high, best, caption))
        span = (
            f"{quantity(low, row['unit'])} to {quantity(high, row['unit'])}" if low is not None else ""
        )
        rate = row["tokens_per_second"]
        table.append(
            (label, caption, span, str(len(row["samples"])), number(rate) if rate else "", row["detail"])
        )
    summary = "; ".join(f"{bar.name} {bar.caption}" for bar in found)
    figure = plots.bars(f"speed{index}", found, f"{title}: {summary}")
    return Speed(f"{title} · {model}", figure, table)


def title_of(phase: str, metric: str, n_past: int, n: int, batch: int) -> str:
    """What a row of a benchmark measured, as text: "prefill of 128 tokens, batch 4"."""
    title = METRICS.get(metric) or PHASES.get(phase, phase).format(n=n, n_past=n_past)
    return title + f", batch {batch}" * (batch not in (None, 0, 1))
