"""How far a verdict holds: the envelope of each target, which the check search has seen right.

Facts only: verdict/explain.py makes the sentences. A span is [first, last] of values without a gap.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import msgspec

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.checks.search.envelope import stratum
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.files import strict_json
from gpt2_parity.report.cells import Cell
from gpt2_parity.verdict import explain

SEARCH = "search"
OPTIONAL = {"generate": "generate", "gradients": "loss_and_grads"}  # scope -> what must be offered
LEAST_POWER = 8  # boundaries are told from this power of two on
MOST = 14  # spans of an axis that a table lists

Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Facts = dict[str, Any]  # see by_target
Spans = Sequence[Sequence[int]]


class EnvelopeEntry(msgspec.Struct):
    """evidence["envelope"], as checks/search/envelope.py writes it."""

    trials: Size
    calls: Size
    axes: dict[str, list[tuple[Size, Size]]]
    pairs: dict[str, Size]
    ranges: dict[str, tuple[float, float]]
    largest_model: Size
    rarest_race: Annotated[float, msgspec.Meta(ge=1e-12, le=1)]
    outside: Size
    refused: list[str]
    n_refused: Size
    extremes: dict[str, Size] = {}


class SearchEntry(msgspec.Struct):
    """evidence["search"], as far as it is told here."""

    seed: int
    seconds: float
    trials: Size
    failed: Size


def by_target(rows: Iterable[Row]) -> dict[str, Facts]:
    """The envelope of each target that was examined, by label; {} where nothing was searched.

    Its keys are those of evidence["envelope"] (docs/results.schema.json), and of the search: seed,
    seconds, made (trials that were judged), failed, not_offered (functions) and untapped (operations).
    """
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row)
    return {who: facts(own) for who, own in by_label.items() if examined(own)}


def examined(rows: Iterable[Row]) -> bool:
    """Whether a target was offered, and began and ended as it should: if not, that is told instead."""
    checks = {row.check for row in rows if row.verdict != "skipped"}
    return bool(checks & CHECKS.keys()) and not checks & {"load", "process"}


def facts(rows: Iterable[Row]) -> Facts:
    """The envelope of one target; {} where nothing was searched, or what is there cannot be read."""
    found = [row for row in rows if row.check == SEARCH]
    row = next((row for row in found if "envelope" in row.evidence), None)
    if row is None:
        return {}
    try:
        seen = strict_json.convert(row.evidence["envelope"], EnvelopeEntry)
        search = strict_json.convert(row.evidence.get("search"), SearchEntry)
    except ValueError:
        return {}
    axes = {name: [[a, b] for a, b in spans if a <= b] for name, spans in seen.axes.items()}
    scopes = {row.scope for row in found}
    tapped = {row.scope for row in found if row.metric == "rounding_units"}
    return msgspec.structs.asdict(seen) | {
        "axes": {name: spans for name, spans in axes.items() if spans},
        "seed": search.seed,
        "seconds": search.seconds,
        "made": search.trials,
        "failed": search.failed,
        "not_offered": [name for scope, name in OPTIONAL.items() if scope not in scopes],
        "untapped": [name for name in explain.every_operation() if name not in tapped],
    }


def lines(rows: Iterable[Row]) -> list[tuple[str, list[str]]]:
    """For each target, its label and how far its verdict holds; once, without a label, if no target
    was searched."""
    found = by_target(rows)
    if found and not any(found.values()):
        return [("", explain.envelope({}))]
    return [(who, explain.envelope(each)) for who, each in found.items()]


# ---- the whole, as tables


class Section(NamedTuple):
    """The envelope of one target as a report shows it."""

    label: str
    lines: list[str]  # in words
    header: list[str]
    axes: list[list[str]]  # lines under the header; [] where nothing was seen right
    pairs: "Pairs | None"
    refused: list[str]


class Pairs(NamedTuple):
    """Pairs of axes: in how many combinations of bands (1, 2-3, 4-7, ...) they were seen."""

    names: list[str]  # of the columns
    rows: list[tuple[str, list[Cell]]]  # a triangle: each row has one cell more


def sections(rows: Iterable[Row]) -> list[Section]:
    """The section of each target."""
    return [
        Section(
            who, explain.envelope(each), explain.envelope_header(each), table(each), pairs(each),
            each.get("refused", []),
        )
        for who, each in by_target(rows).items()
    ]  # fmt: skip


def table(found: Facts) -> list[list[str]]:
    """A line for each axis, quantity and count, as text."""
    if not found or not found["trials"]:
        return []
    made = [
        [explain.axis(name), explain.spanned(spans, MOST), explain.boundaries(powers(spans)),
         explain.unseen(spans[-1][1], gaps(spans))]
        for name in explain.in_order(found["axes"])
        if (spans := found["axes"][name])
    ]  # fmt: skip
    return made + explain.magnitudes(found) + explain.counts(found)


def gaps(spans: Spans) -> list[list[int]]:
    """The spans between others, and below the first: [[3, 4], [8, 8]] leaves [[1, 2], [5, 7]]."""
    around = [[0, 0], *spans]
    return [[a[1] + 1, b[0] - 1] for a, b in pairwise(around) if a[1] + 1 < b[0]]


def powers(spans: Spans) -> dict[str, list[int]]:
    """Powers of two up to the greatest value: seen "with both neighbours", "in part" or "not"."""
    found: dict[str, list[int]] = {"whole": [], "part": [], "not": []}
    power = LEAST_POWER
    while power <= spans[-1][1] + 1:
        n = sum(any(a <= value <= b for a, b in spans) for value in (power - 1, power, power + 1))
        found["whole" if n == 3 else "part" if n else "not"].append(power)
        power *= 2
    return found


def pairs(found: Facts) -> Pairs | None:
    """The triangle of pairs; None where nothing was searched."""
    counts = {tuple(name.split(" x ")): n for name, n in found.get("pairs", {}).items()}
    present = {name for pair in counts for name in pair}
    names = [name for name in explain.in_order(found.get("axes", {})) if name in present]
    if len(names) < 2:
        return None
    bands = {name: len(set(bands_of(found["axes"][name]))) for name in names}
    rows = [
        (
            explain.axis(a),
            [
                pair_cell(counts.get((a, b), counts.get((b, a), 0)), bands[a] * bands[b])
                for b in names[:i]
            ],
        )
        for i, a in enumerate(names)
        if i
    ]
    return Pairs([explain.axis(name) for name in names[:-1]], rows)


def pair_cell(n: int, possible: int) -> Cell:
    """How many of the combinations were seen; the darker, the greater their share."""
    share = n / possible
    return Cell(f"{n}/{possible}", "ok2" if share >= 0.75 else "ok1" if share >= 0.4 else "ok0")


def bands_of(spans: Spans) -> Iterator[int]:
    """The bands, by powers of two, that spans reach."""
    for first, last in spans:
        yield from range(stratum(first), stratum(last) + 1)


# ---- two runs


def differences(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """For each target of two runs, what only one of them has seen right, in a line."""
    one, two = by_target(before), by_target(after)
    texts = ((who, explain.looked_at(only(one[who], two[who]), only(two[who], one[who])))
             for who in one if who in two)  # fmt: skip
    return [f"{who}: {text}" for who, text in texts if text]


def only(found: Facts, other: Facts) -> Facts | None:
    """What one run has seen right and the other has not: values in bands that the other never reached,
    functions, operations and extremes. None where it was searched and the other was not."""
    if found and not other:
        return None
    if not found:
        return {}
    left = {
        name: beyond(spans, other["axes"][name])
        for name, spans in found["axes"].items()
        if name in other["axes"]
    }
    return {
        "axes": {name: spans for name, spans in left.items() if spans},
        "offered": missing(other["not_offered"], found["not_offered"]),
        "tapped": missing(other["untapped"], found["untapped"]),
        "extremes": missing(unreached(other), unreached(found)),
    }


def beyond(spans: Spans, other: Spans) -> list[list[int]]:
    """The parts of spans in bands that others do not reach."""
    known = set(bands_of(other))
    left: list[list[int]] = []
    for first, last in spans:
        for band in range(stratum(first), stratum(last) + 1):
            if band not in known:
                low, high = max(first, 2 ** (band - 1) if band else 0), min(last, 2**band - 1)
                if left and left[-1][1] == low - 1:
                    left[-1][1] = high
                else:
                    left.append([low, high])
    return left


def missing(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names that are not among others, in order."""
    out = set(others)
    return [name for name in names if name not in out]


def unreached(found: Mapping[str, Any]) -> list[str]:
    """The extremes that no right trial had."""
    return [name for name, n in found["extremes"].items() if not n]
