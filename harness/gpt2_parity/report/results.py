"""What a run left behind, read again from results.json, and the words in which it is told everywhere."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_parity.checks import CHECKS
from gpt2_parity.checks.precision import WIDER
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Results, Row, label
from gpt2_parity.files import strict_json

if TYPE_CHECKING:  # pandas takes half a second to import; a verdict does not need it
    import pandas as pd

SCHEMA = 1
NAME = "results.json"
FILES = (NAME, "junit.xml", "report.md", "report.html")
MOST = 60  # failures listed in a report; results.json has them all
VERDICTS = ("pass", "fail", "known", "inconclusive", "unlocalised", "skipped")


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a run as a tidy frame, one row a measurement; frame.attrs has the environment.

    Raises CannotJudge where results.json is missing, not JSON, or of another schema.
    """
    try:
        return frame(load(Path(directory)))
    except ValueError as error:
        raise CannotJudge(f"{directory}: {NAME} holds what is no text ({error})") from error


def frame(found: Results) -> "pd.DataFrame":
    """Results as a tidy frame, one row a measurement; frame.attrs has the environment.

    Raises ValueError where a text cannot be encoded in UTF-8.
    """
    import pandas as pd

    table = pd.DataFrame(found.rows, columns=list(Row._fields))
    table.attrs.update(found.environment)
    return table


def load(path: Path) -> Results:
    """The results in a folder, or in a results.json of any name. Raises CannotJudge as read does."""
    path = path / NAME if path.is_dir() or not path.exists() else path
    document = parse(path, SCHEMA)
    rows, made_with = document.get("rows"), document.get("environment")
    if not isinstance(rows, list) or not isinstance(made_with, dict):
        raise CannotJudge(f"{path}: lacks its rows or its environment; run parity verify --out anew")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != set(Row._fields):
            raise CannotJudge(f"{path}: row {i} has not the columns {', '.join(Row._fields)}")
        if not well_formed(Row(**row)):
            raise CannotJudge(f"{path}: row {i} is none that a run writes")
    return Results([Row(**row) for row in rows], made_with)


def parse(path: Path, schema: int) -> dict[str, Any]:
    """A JSON document of a schema. Raises CannotJudge where it is missing, not JSON, or another's."""
    try:
        document = strict_json.read(path)
    except FileNotFoundError as error:
        told = "no such file; give the --out folder of a verify, gate or bench that has ended"
        raise CannotJudge(f"{path}: {told}") from error
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable results ({error})") from error
    known = isinstance(document, dict) and type(document.get("schema")) is int
    if not known or document["schema"] != schema:
        raise CannotJudge(f"{path}: not results of schema {schema}; make them anew")
    return dict(document)


def well_formed(row: Row) -> bool:
    """Words where there are words, finite numbers or nothing where there are numbers."""
    numbers = (row.value, row.limit, row.ratio)
    words = (*row[:8], *row[11:])
    return (
        all(isinstance(word, str) for word in words)
        and all(n is None or (type(n) in (int, float) and math.isfinite(n)) for n in numbers)
        and row.verdict in VERDICTS
    )


def say(row: Row) -> str:
    """What was measured and what was allowed, in a few words."""
    if row.value is None:
        return row.detail or "not measured"
    allowed = "" if row.limit is None else f", allowed {row.limit:g}"
    return f"{row.value:.4g} {row.metric.replace('_', ' ')}{allowed}"


def grid(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """Implementations x checks: the share of the limit used, or how many measurements failed."""
    by_cell: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_cell.setdefault(label(row), {}).setdefault(row.check, []).append(row)
    return {
        name: {check: cell(found) for check, found in checks.items()} for name, checks in by_cell.items()
    }


def cell(rows: list[Row]) -> str:
    """One cell of the grid."""
    failed = sum(row.verdict == "fail" for row in rows)
    if failed:
        return f"FAIL {failed}/{len(rows)}"
    known = sum(row.verdict == "known" for row in rows)
    if known:
        return f"known {known}/{len(rows)}"
    shares = [row.ratio for row in rows if row.verdict == "pass" and row.ratio is not None]
    if shares:
        return f"{max(shares):.0%}"
    return rows[0].verdict


def headline(rows: list[Row]) -> str:
    """How many measurements came to which verdict."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know although it does not fail: known disagreements, and too wide products."""
    wide = Counter(
        (label(row), row.detail)
        for row in rows
        if row.check == "precision" and row.verdict == "pass" and row.detail.endswith(WIDER)
    )
    known = Counter(
        (label(row), row.check, row.detail.partition(". ")[0].rstrip("."))
        for row in rows
        if row.verdict == "known"
    )
    told = [f"{name} {check}: {why} ({n} measurements)" for (name, check, why), n in known.items()]
    return told + [f"{name} precision: {words} ({n} products)" for (name, words), n in wide.items()]


def columns(rows: Iterable[Row]) -> list[str]:
    """The checks that have rows, in order of execution; what is no check (load, process) comes last."""
    seen = {row.check for row in rows}
    return [name for name in CHECKS if name in seen] + sorted(seen - set(CHECKS))


def greedy_texts(rows: Iterable[Row]) -> dict[str, str]:
    """What each implementation said after the seed prompt, running freely."""
    wanted = ("seed", "free_running", "wrong_tokens")
    return {label(row): row.detail for row in rows if (row.case, row.scope, row.metric) == wanted}


def place(row: Row) -> str:
    """Where a row was measured: check, case and scope."""
    return " ".join(part for part in (row.check, row.case, row.scope) if part)


def said(row: Row) -> str:
    """What was measured, with the detail."""
    return say(row) if row.value is None or not row.detail else f"{say(row)} ({row.detail})"


def pick(cells: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [cells.get(name, "") for name in names]
