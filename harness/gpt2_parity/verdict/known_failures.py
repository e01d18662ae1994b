"""Known disagreements: a ledger that is strict both ways.

One id a line, with how far it may go and the reason why it is there:

    # target              | check | blame          | at most | reason
    mine-cpu-float32      | local | h0/mlp/gelu    | 500     | erf GELU until release 2.1

The first three are as results.json has them (implementation-device-dtype, check, blame) and match
exactly. "at most" is in limits: a failure of 500 times its limit is known, one of 501 times is not;
"lost" stands for a measurement that is missing, NaN or infinite. Where the limit is 0 it is the count
itself. A line that is not needed any more is a failure.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.verdict.judge import Judge

ROOM = 2.0  # in what is suggested: other fresh tokens give other figures
REASON = "..."  # in what is suggested
FORM = "target | check | blame | at most | reason"


class Known(NamedTuple):
    """One line."""

    target: str
    check: str
    blame: str
    at_most: float  # in limits; infinite: lost measurements too
    reason: str
    line: int

    @property
    def id(self) -> tuple[str, str, str]:
        return self.target, self.check, self.blame


def read(path: Path) -> list[Known]:
    """The lines of a ledger. Raises CannotJudge, naming the line, for a malformed or double one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CannotJudge(f"ledger {path}: cannot be read ({error})") from error
    found: list[Known] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            known = parse(line, number, path)
            if known.id in {other.id for other in found}:
                raise CannotJudge(f"{path}:{number}: {' | '.join(known.id)} is there twice")
            found.append(known)
    return found


def parse(line: str, number: int, path: Path) -> Known:
    """One line. Raises CannotJudge where it is not what FORM says."""
    parts = [part.strip() for part in line.split("|", 4)]
    if len(parts) != 5 or not all(parts):
        raise CannotJudge(f"{path}:{number}: expected {FORM}, all five")
    try:
        at_most = float("inf") if parts[3] == "lost" else float(parts[3])
    except ValueError:
        at_most = 0.0
    if parts[4] == REASON:
        raise CannotJudge(f"{path}:{number}: {REASON} stands where the reason is to be")
    if not at_most > 1:
        raise CannotJudge(
            f'{path}:{number}: "at most" is {parts[3]!r}, expected a number above 1, or lost'
        )
    return Known(parts[0], parts[1], parts[2], at_most, parts[4], number)


def apply(rows: Sequence[Row], ledger: Sequence[Known]) -> list[Row]:
    """The rows, with failures that the ledger knows marked as known, and a failure for every stale line.

    A line about a target that these rows do not have is left alone: it was not examined.
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
    """A failure as the ledger has it: known, or, where it has grown, still a failure that says so."""
    if size(row) <= known.at_most:
        evidence = {**row.evidence, "known": {"reason": known.reason, "line": known.line}}
        return row._replace(verdict="known", evidence=evidence)
    beyond = {"line": known.line, "at_most": known.at_most}
    return row._replace(evidence={**row.evidence, "beyond": beyond})


def size(row: Row) -> float:
    """How far a failure goes, in limits; infinite where nothing was measured."""
    if row.value is not None and row.limit == 0:
        return row.value
    return float("inf") if row.ratio is None else row.ratio


def complain(rows: Iterable[Row], known: Known) -> Row | None:
    """A failure for a line that nothing needed, where its target was examined."""
    for row in rows:
        if label(row) == known.target and row.verdict != "skipped":
            stale = {"line": known.line, "id": list(known.id)}
            return Judge.of(row).failure("ledger", "out of date", stale=stale)
    return None


def suggest(rows: Iterable[Row]) -> list[str]:
    """Lines for what fails in these rows, but for the reasons, which are a person's to give."""
    worst: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if row.verdict == "fail" and row.check != "ledger":
            key = (label(row), row.check, row.blame)
            worst[key] = max(worst.get(key, 0.0), size(row))
    return [
        " | ".join([*key, "lost" if most == float("inf") else f"{ROOM * most:.2g}", REASON])
        for key, most in worst.items()
    ]
