"""Known failures, listed in a file (the ledger).

Unlisted failures fail; so do entries that no longer occur. The file has one entry a line:

    # target              | check | blame          | at most | reason
    mine-cpu-float32      | local | h0/mlp/gelu    | 500     | erf GELU until release 2.1

The first three fields are those of results.json (implementation-device-dtype, check, blame) and match
exactly. "at most" is a multiple of the limit: with 500, a failure of 500 times its limit is known, and
one of 501 times is not. "lost" also allows measurements that are missing, NaN or infinite. Where the
limit is zero, "at most" is the number of violations.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.verdict.judge import Judge

ROOM = 2.0  # factor on suggested values of "at most": other fresh tokens give other figures
REASON = "..."  # placeholder for the reason in suggested lines
FORM = "target | check | blame | at most | reason"


class Known(NamedTuple):
    """One entry."""

    target: str
    check: str
    blame: str
    at_most: float  # multiple of the limit; infinite: lost measurements too
    reason: str
    line: int

    @property
    def id(self) -> tuple[str, str, str]:
        return self.target, self.check, self.blame


def read(path: Path) -> list[Known]:
    """The entries of a ledger.

    Raises CannotJudge if the file cannot be read, or has a malformed or duplicate line, which it names.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CannotJudge(f"ledger {path}: cannot be read ({error})") from error
    entries: list[Known] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            known = parse(line, number, path)
            if known.id in {other.id for other in entries}:
                raise CannotJudge(f"{path}:{number}: {' | '.join(known.id)} is listed twice")
            entries.append(known)
    return entries


def parse(line: str, number: int, path: Path) -> Known:
    """One entry from its line. Raises CannotJudge if the line does not have the form FORM."""
    parts = [part.strip() for part in line.split("|", 4)]
    if len(parts) != 5 or not all(parts):
        raise CannotJudge(f"{path}:{number}: expected five fields: {FORM}")
    try:
        at_most = float("inf") if parts[3] == "lost" else float(parts[3])
    except ValueError:
        at_most = 0.0
    if parts[4] == REASON:
        raise CannotJudge(f"{path}:{number}: replace {REASON} by the reason")
    if not at_most > 1:
        raise CannotJudge(
            f'{path}:{number}: "at most" is {parts[3]!r}, expected a number above 1, or lost'
        )
    return Known(parts[0], parts[1], parts[2], at_most, parts[4], number)


def apply(rows: Sequence[Row], ledger: Sequence[Known]) -> list[Row]:
    """The rows with listed failures marked as known, plus a failure for every stale entry.

    An entry about a target that these rows do not contain is ignored: the target was not examined.
    """
    by_id = {known.id: known for known in ledger}
    needed: set[tuple[str, str, str]] = set()
    marked = []
    for row in rows:
        known = by_id.get((label(row), row.check, row.blame)) if row.verdict == "fail" else None
        if known is not None:
            needed.add(known.id)
            row = accept(row, known)
        marked.append(row)
    stale = [known for known in ledger if known.id not in needed]
    return marked + [failure for known in stale if (failure := complain(rows, known))]


def accept(row: Row, known: Known) -> Row:
    """A listed failure: known if it is as small as its entry allows, otherwise still a failure."""
    if size(row) <= known.at_most:
        evidence = {**row.evidence, "known": {"reason": known.reason, "line": known.line}}
        return row._replace(verdict="known", evidence=evidence)
    beyond = {"line": known.line, "at_most": known.at_most}
    return row._replace(evidence={**row.evidence, "beyond": beyond})


def size(row: Row) -> float:
    """How large a failure is: a multiple of its limit, or the value itself where the limit is 0.

    Infinite where nothing finite was measured.
    """
    if row.value is not None and row.limit == 0:
        return row.value
    return float("inf") if row.ratio is None else row.ratio


def complain(rows: Iterable[Row], known: Known) -> Row | None:
    """A failure for an entry that matched nothing; None if its target was not examined."""
    for row in rows:
        if label(row) == known.target and row.verdict != "skipped":
            stale = {"line": known.line, "id": list(known.id)}
            return Judge.of(row).failure("ledger", "out of date", stale=stale)
    return None


def suggest(rows: Iterable[Row]) -> list[str]:
    """Ledger lines for the failures in these rows. A person must fill in the reasons."""
    worst: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if row.verdict == "fail" and row.check != "ledger":
            key = (label(row), row.check, row.blame)
            worst[key] = max(worst.get(key, 0.0), size(row))
    return [
        " | ".join([*key, "lost" if most == float("inf") else f"{ROOM * most:.2g}", REASON])
        for key, most in worst.items()
    ]
