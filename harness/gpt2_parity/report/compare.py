"""Compare two runs: which measurements got better, worse, slower or faster, and which are new or gone.

Measurements of a verification are matched by their exact names. A verdict that changes is a finding. A
number that moves within its limit is not; it is shown as drift only. Each number is measured once and
is not random: two runs with the same seed differ because something changed.

Times have samples, which vary by chance. Two sets of samples are compared by ranks (Mann & Whitney
1947), which assumes nothing about how times are distributed. The interval of their ratio is the Hodges-
Lehmann interval of that test. If there are too few samples to show any change, the result is "cannot
tell".
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.files import atomic
from gpt2_parity.report import cells, envelope, markdown, page, results, runs, speed
from gpt2_parity.report.runs import Run
from gpt2_parity.verdict import explain

ALPHA = 0.01  # many rows are compared: 0.05 would give a false alarm in almost every comparison
WORTH = 1.05  # smaller changes come and go with the state of the machine between two runs
GOOD, BAD = ("pass", "verified"), ("fail", "wrong output", "crashed")
# kinds of change -> whether it is a regression
KINDS = {"worse": True, "gone": True, "slower": True, "larger": True, "better": False, "faster": False,
         "smaller": False, "new": False, "changed": False, "cannot tell": False}  # fmt: skip


TIMED = ("slower", "faster", "larger", "smaller", "cannot tell")
FEW = 3  # changes of one kind and check that are told one by one


class Change(NamedTuple):
    """One difference between two runs, or one pair of sample sets too small to tell."""

    kind: str
    who: str  # implementation, device, dtype
    where: str
    before: str
    after: str
    note: str


class Cause(NamedTuple):
    """Changes of one cause, over operations, layers, checks and targets, told once."""

    kind: str  # worse, or better: before, this was wrong
    who: list[str]  # implementation, device, dtype
    texts: list[str]  # paragraphs, what introduces the error first
    n: int  # changes that it explains


class Drift(NamedTuple):
    """How the errors of one check moved, over its measurements that are nonzero in both runs."""

    who: str
    check: str
    n: int
    ratio: float  # median of after / before
    before: str  # share of the limit, at worst
    after: str


class Comparison(NamedTuple):
    """All differences between two runs."""

    names: tuple[str, str]
    changes: list[Change]
    drifts: list[Drift]
    same: int  # measurements whose verdict did not change
    notes: list[str]
    causes: list[Cause]
    others: list[Change]  # changes that no cause explains

    @property
    def regressed(self) -> bool:
        return any(KINDS[change.kind] for change in self.changes)


def compare(before: Path, after: Path) -> Comparison:
    """Compare two runs, given as folders or saved results.json files.

    Raises CannotJudge if one cannot be read, or if they are not runs of the same kind and model.
    """
    one, two = runs.read([before])[0], runs.read([after])[0]
    names = (str(before), str(after))
    changes: list[Change] = []
    causes: list[Cause] = []
    explained: set[Change] = set()
    drifts: list[Drift] = []
    notes: list[str] = []
    same = 0
    if (one.results is None) != (two.results is None) and (one.bench is None) != (two.bench is None):
        raise CannotJudge(f"{before} and {after}: one is a verification and the other a benchmark")
    if one.results and two.results:
        comparable(one.results.environment, two.results.environment, names)
        changes, same = verdicts(one.results.rows, two.results.rows)
        causes, explained = grouped(one.results.rows, two.results.rows)
        drifts = drift(one.results.rows, two.results.rows)
        if one.results.environment.get("seed") != two.results.environment.get("seed"):
            notes.append("The seeds differ: the case fresh has different tokens in each run.")
        notes += code_notes(one.results.environment, two.results.environment)
        notes += envelope.differences(one.results.rows, two.results.rows)
    elif one.results or two.results:
        kind = "gone" if one.results else "new"
        changes.append(
            Change(kind, "all", results.NAME, "", "", f"only one of the runs has {results.NAME}")
        )
    faster_or_slower, unchanged, remarks = speeds(one, two, names)
    order = list(KINDS)
    changes = sorted([*changes, *faster_or_slower], key=lambda change: order.index(change.kind))
    others = [change for change in changes if change not in explained]
    return Comparison(names, changes, drifts, same + unchanged, notes + remarks, causes, others)


def comparable(one: dict[str, Any], two: dict[str, Any], names: tuple[str, str]) -> None:
    """Raise CannotJudge if two runs were not made on the same model."""
    for key in ("model", "checkpoint_sha256"):
        if one.get(key) != two.get(key):
            values = f" ({one.get(key)} and {two.get(key)})" if key == "model" else ""
            raise CannotJudge(
                f"{names[0]} and {names[1]}: not comparable, {key} differs{values}; "
                "compare two runs of the same model"
            )


def code_notes(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """A line for each implementation whose own files differ, and for each of whose packages do."""
    notes = []
    before, after = (code_of(each) for each in (one, two))
    for name in before.keys() & after.keys():
        if changes := differences(before[name], after[name]):
            notes.append(f"{name}: other code in the second run: {changes}.")
    before, after = (packages_of(each) for each in (one, two))
    for name in before.keys() & after.keys():
        if changes := differences(before[name], after[name], " to "):
            notes.append(f"{name}: other packages in the second run: {changes}.")
    return sorted(notes)


def code_of(environment: dict[str, Any]) -> dict[str, dict[str, str]]:
    """SHA-256 of each implementation's files; in older runs of the one file that was named."""
    named = texts(environment.get("implementation_sha256"))
    whole = environment.get("implementation_files")
    found = {name: {"its file": sha256} for name, sha256 in named.items()}
    if isinstance(whole, dict):
        found = {name: texts(files) or found.get(name, {}) for name, files in whole.items()}
    return found


def packages_of(environment: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The version of each package that an implementation has imported."""
    whole = environment.get("packages")
    if not isinstance(whole, dict):
        return {}
    return {
        name: {package: texts(each).get("version", "") for package, each in found.items()}
        for name, found in whole.items()
        if isinstance(found, dict)
    }


def texts(value: Any) -> dict[str, str]:
    """A mapping of texts; empty for anything else, which an environment made elsewhere may have."""
    return {key: str(each) for key, each in value.items()} if isinstance(value, dict) else {}


def differences(one: dict[str, str], two: dict[str, str], arrow: str = "") -> str:
    """What is new, gone and different in the second of two mappings; arrow: shows both values."""
    found = []
    for key in sorted(one.keys() | two.keys()):
        if key not in one:
            found.append(f"{key} is new")
        elif key not in two:
            found.append(f"{key} is gone")
        elif one[key] != two[key]:
            values = f" {one[key]}{arrow}{two[key]}" if arrow else " differs"
            found.append(f"{key}{values}")
    return ", ".join(found)


# -- verdicts

Name = tuple[str, ...]


def keyed(rows: Iterable[Row]) -> dict[Name, Row]:
    """Rows by name (their first eight fields); if a run has several of one name, a failing one."""
    found: dict[Name, Row] = {}
    for row in rows:
        key = row[:8]
        if key not in found or (row.verdict == "fail" and found[key].verdict != "fail"):
            found[key] = row
    return found


def verdicts(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[Change], int]:
    """Changes of verdict, and the number of measurements whose verdict did not change.

    A measurement that is gone is a regression, because it is no longer checked. A target that is gone
    or new as a whole is one change.
    """
    one, two = keyed(before), keyed(after)
    whole_before, whole_after = ({key[:4] for key in found} for found in (one, two))
    changes = [gone_or_new("gone", key, one) for key in sorted(whole_before - whole_after)]
    changes += [gone_or_new("new", key, two) for key in sorted(whole_after - whole_before)]
    same = 0
    keys = dict.fromkeys([*one, *two])
    check = Row._fields.index("check")
    for key in sorted(keys, key=lambda key: key[check] != "local"):  # causes before what inherits them
        if key[:4] not in whole_before & whole_after:
            continue
        a, b = one.get(key), two.get(key)
        if a and b and a.verdict == b.verdict:
            same += 1
            continue
        if change := changed(a, b):
            changes.append(change)
    return changes, same


def grouped(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[Cause], set[Change]]:
    """The causes of what newly fails and of what no longer does; and the changes that they explain.

    verdict/explain.py finds the causes of each target; where several targets have the same, it is one.
    Only targets that both runs have: one that is new or gone is a change of its own.
    """
    one, two = keyed(before), keyed(after)
    both = {key[:4] for key in one} & {key[:4] for key in two}
    causes: list[Cause] = []
    explained: set[Change] = set()
    for kind, was, now in (("worse", one, two), ("better", two, one)):
        failing = [key for key, row in now.items() if row.verdict == "fail" and key[:4] in both]
        news = [key for key in failing if key not in was or was[key].verdict != "fail"]
        kept = set(failing) - set(news)
        causes += causes_of(kind, [now[key] for key in now if key not in kept and key[:4] in both])
        explained |= {change for key in news if (change := changed(one.get(key), two.get(key)))}
    return causes, explained


def causes_of(kind: str, rows: Sequence[Row]) -> list[Cause]:
    """The causes of all failures among rows; targets whose operations fail alike have one cause."""
    alike: dict[Any, dict[str, list[explain.Finding]]] = defaultdict(dict)
    for name, found in explain.findings(rows).items():
        named = [each for each in found if each.where] or found
        alike[tuple((each.where, each.mistake) for each in named)][name] = found
    failures = Counter(label(row) for row in rows if row.verdict == "fail")
    return [
        Cause(
            kind, list(same), [each.text for each in next(iter(same.values()))],
            sum(failures[name] for name in same),
        )
        for same in alike.values()
    ]  # fmt: skip


def condensed(changes: Sequence[Change]) -> list[Change]:
    """Changes with those of one kind, target and check as one, if there are more than FEW of them."""
    groups: dict[tuple[str, str, str], list[Change]] = defaultdict(list)
    for change in changes:
        single = change.kind in TIMED or not change.where
        check = change.where if single else change.where.partition(" ")[0]
        groups[change.kind, change.who, check].append(change)
    found = []
    for (kind, who, check), same in groups.items():
        if len(same) > FEW:
            found.append(Change(kind, who, f"{check}: {len(same)} measurements", "", "", same[0].note))
        else:
            found += same
    return found


def gone_or_new(kind: str, key: Name, rows: dict[Name, Row]) -> Change:
    """A target that only one of the runs has. A new target that fails counts as worse, not new."""
    own = [row for row in rows.values() if row[:4] == key]
    counts = results.headline(own)
    if kind == "new":
        failed = any(row.verdict == "fail" for row in own)
        return Change("worse" if failed else "new", label(own[0]), "whole target", "", counts, "new")
    return Change("gone", label(own[0]), "whole target", counts, "", "it was not run")


def changed(a: Row | None, b: Row | None) -> Change | None:
    """One measurement whose verdict changed, or that only one run has."""
    row = b or a
    if row is None:
        return None
    before, after = (f"{r.verdict}: {explain.measured(r)}" if r else "" for r in (a, b))
    if b and b.verdict == "fail":
        kind = "worse"
    elif b is None:
        kind = "gone" if a and a.verdict == "pass" else "better"
    elif a is None:
        kind = "new"
    elif b.verdict == "pass":
        kind = "better"
    else:
        kind = "worse" if a.verdict == "pass" else "changed"
    note = (explain.diagnosis(b) or explain.detail(b)) if b else "no longer measured"
    return Change(kind, label(row), f"{explain.location(row)} {row.metric}".strip(), before, after, note)


def drift(before: Sequence[Row], after: Sequence[Row]) -> list[Drift]:
    """By target and check: how far errors moved, as the median of their ratios."""
    one, two = keyed(before), keyed(after)
    groups: dict[tuple[str, str], list[tuple[Row, Row]]] = defaultdict(list)
    for key, row in one.items():
        if key in two and row.value and two[key].value and row.value * (two[key].value or 0) > 0:
            groups[label(row), row.check].append((row, two[key]))
    found = []
    for (who, check), pairs in groups.items():
        ratio = median((b.value or 0) / (a.value or 1) for a, b in pairs)
        if any(a.value != b.value for a, b in pairs):
            sides = (max(cells.severity(row) for row in side) for side in zip(*pairs, strict=True))
            found.append(Drift(who, check, len(pairs), ratio, *map(cells.times, sides)))
    return found


# -- speed and memory


def speeds(one: Run, two: Run, names: tuple[str, str]) -> tuple[list[Change], int, list[str]]:
    """Changes of speed and memory, the number of unchanged rows, and notes on the comparison."""
    if one.bench is None and two.bench is None:
        return [], 0, []
    if one.bench is None or two.bench is None:
        kind = "gone" if one.bench else "new"
        return (
            [Change(kind, "all", runs.BENCH, "", "", f"only one of the runs has {runs.BENCH}")],
            0,
            [],
        )
    made = [run.bench.get("environment", {}) for run in (one, two) if run.bench]
    comparable(made[0], made[1], names)
    notes = [] if one.results and two.results else code_notes(made[0], made[1])
    alike = all(made[0].get(key) == made[1].get(key) for key in ("machine", "threads"))
    if not alike:
        notes.append("Machine or threads differ: speed is shown but not judged.")
    rows = [
        {tuple(row[k] for k in runs.WHICH): row for row in run.bench["rows"]}
        for run in (one, two)
        if run.bench
    ]
    changes, same = [], 0
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        change = timed(rows[0].get(key), rows[1].get(key), alike)
        if change:
            changes.append(change)
        else:
            same += 1
    return changes, same, notes


def timed(a: dict[str, Any] | None, b: dict[str, Any] | None, alike: bool) -> Change | None:
    """One row of a benchmark, before and after; None if nothing changed that matters."""
    row = b or a or {}
    who = "-".join(str(row[name]) for name in runs.WHICH[:3])
    where = speed.title_of(*(row[name] for name in runs.WHICH[4:]))
    before, after = (figure(r) for r in (a, b))
    if a is None or b is None:
        bad = row["verdict"] in BAD
        kind = ("worse" if bad else "new") if a is None else "better" if bad else "gone"
        return Change(kind, who, where, before, after, row["detail"])
    if a["verdict"] != b["verdict"]:
        kind = "better" if b["verdict"] in GOOD else "worse" if a["verdict"] in GOOD else "changed"
        return Change(kind, who, where, before, after, b["detail"])
    if b["verdict"] not in GOOD:
        return None
    ratio = Ratio.of(a["samples"], b["samples"])
    if ratio.least_p > ALPHA:
        few = f"{len(a['samples'])} and {len(b['samples'])} samples"
        note = f"{ratio}: {few} are too few for any test at {ALPHA:g}"
        return Change("cannot tell", who, where, before, after, note)
    if ratio.p > ALPHA or 1 / WORTH < ratio.middle < WORTH:
        return None
    kinds = ("slower", "faster") if row["unit"] == "seconds" else ("larger", "smaller")
    kind = kinds[ratio.middle < 1] if alike else "changed"
    return Change(kind, who, where, before, after, f"{ratio}; rank test p = {ratio.p:.2g}")


def figure(row: dict[str, Any] | None) -> str:
    """The median of a row, or its verdict if it has no verified figure."""
    if row is None:
        return ""
    verified = row["verdict"] in GOOD and row["median"] is not None
    return cells.quantity(row["median"], row["unit"]) if verified else str(row["verdict"])


class Ratio(NamedTuple):
    """The ratio of the second set of samples to the first, with its interval from the rank test."""

    middle: float
    low: float
    high: float
    p: float  # two-sided, of the rank test
    least_p: float  # the smallest p that this number of samples could give

    def __str__(self) -> str:
        if self.least_p > ALPHA:
            return f"{self.middle:.3g} times"
        return f"{self.middle:.3g} times ({self.low:.3g} to {self.high:.3g} at {1 - ALPHA:.0%})"

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> "Ratio":
        """The ratio b / a of positive samples. Without samples on both sides it is NaN, with p = 1."""
        n, m = len(a), len(b)
        if not n or not m or min(*a, *b) <= 0:
            return cls(math.nan, 0.0, math.inf, 1.0, 1.0)
        steps = sorted(math.log(y / x) for x in a for y in b)
        chances = rank_distribution(n, m)
        # U counts pairs in which b is greater; ties count half, rounded towards no difference
        u = sum(step > 0 for step in steps) + sum(step == 0 for step in steps) / 2
        tail = sum(chances[: math.ceil(min(u, n * m - u)) + 1])
        cut = next((k for k in range(n * m) if sum(chances[: k + 1]) > ALPHA / 2), 0)
        low, high = (math.exp(steps[max(cut - 1, 0)]), math.exp(steps[-max(cut, 1)]))
        return cls(math.exp(median(steps)), low, high, min(1.0, 2 * tail), min(1.0, 2 * chances[0]))


@cache
def rank_distribution(n: int, m: int) -> tuple[float, ...]:
    """The probability of each value 0 ... n m of Mann and Whitney's U if nothing differs.

    It counts the ways to draw n of n + m ranks by their sum: the coefficients of the Gaussian
    binomial, as exact integers.
    """
    ways = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for k in range(n * m, m + i - 1, -1):  # times 1 - q^(m + i)
            ways[k] -= ways[k - m - i]
        for k in range(i, n * m + 1):  # divided by 1 - q^i
            ways[k] += ways[k - i]
    total = sum(ways)
    return tuple(way / total for way in ways)


# -- as text


def summary(found: Comparison) -> str:
    """The number of changes of each kind, and of unchanged measurements."""
    counts = [(kind, sum(change.kind == kind for change in found.changes)) for kind in KINDS]
    return ", ".join([*(f"{n} {kind}" for kind, n in counts if n), f"{found.same} unchanged"])


def job_summary(found: Comparison) -> str:
    """The comparison as Markdown for a job summary, within its size limit."""
    clip = markdown.clip
    lines = [f"# {clip(found.names[0])} and {clip(found.names[1])}", "", verdict(found), ""]
    lines += [f"{clip(note)}\n" for note in found.notes]
    for cause in found.causes:
        lines += [f"**{markdown.escape(cause_title(cause))}**", ""]
        lines += [f"{clip(text)}\n" for text in cause.texts]
    lines += markdown.table(
        ["", "implementation", "what", "before", "after", "note"],
        [[sign(change), *map(clip, change[1:])] for change in found.changes[:MOST]],
    )
    if len(found.changes) > MOST:
        lines += ["", f"... and {len(found.changes) - MOST} more"]
    if found.drifts:
        lines += ["", "## How far errors moved", ""]
        lines += markdown.table(
            DRIFT, [[clip(text) for text in drift_cells(drift)] for drift in found.drifts[:MOST]]
        )
    return markdown.fit("\n".join(lines) + "\n", results.NAME)


MOST = 200  # changes listed
DRIFT = ["implementation", "check", "measurements", "after / before, median", "at worst before", "after"]


def drift_cells(drift: Drift) -> list[str]:
    return [drift.who, drift.check, str(drift.n), f"{drift.ratio:.3g}", drift.before, drift.after]


def verdict(found: Comparison) -> str:
    """One line: regressed or not, and the counts."""
    return f"{'REGRESSION' if found.regressed else 'NO REGRESSION'}: {summary(found)}"


def cause_title(cause: Cause) -> str:
    """Before the paragraphs of a cause: what they explain, and in which targets."""
    what = "no longer fail; before" if cause.kind == "better" else "newly fail"
    return f"{cause.n} measurements of {', '.join(cause.who)} {what}:"


def sign(change: Change) -> str:
    """The kind of a change after a sign that is readable without colour."""
    return f"{'✘' if KINDS[change.kind] else '✔' if change.kind != 'cannot tell' else '?'} {change.kind}"


def html(found: Comparison) -> str:
    """The comparison as a page in the style of report.html."""
    return page.template("compare.html.j2").render(
        found=found, verdict=verdict(found), summary=summary(found), header=DRIFT, most=MOST,
        causes=[(cause_title(cause), cause) for cause in found.causes],
        changes=[(KINDS[c.kind], sign(c), c) for c in found.changes[:MOST]],
        others=[(KINDS[c.kind], sign(c), c) for c in condensed(found.others)[:MOST]],
        drifts=[drift_cells(drift) for drift in found.drifts],
    )  # fmt: skip


def write(found: Comparison, out: Path) -> None:
    """Write compare.md and compare.html into out. Raises CannotJudge if that fails."""
    atomic.write_text(out / "compare.md", job_summary(found))
    atomic.write_text(out / "compare.html", html(found))
