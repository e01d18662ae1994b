"""results.json: write and read it, and give its rows as a data frame or a grid."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import msgspec

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import OUTCOMES, STATUSES, VERDICTS, Results, Row, exit_code, label
from gpt2_parity.files import strict_json
from gpt2_parity.report import results_v1
from gpt2_parity.verdict import explain

if TYPE_CHECKING:  # pandas is optional, and takes half a second to import
    import pandas as pd

SCHEMA = 2
NAME = "results.json"
FILES = (NAME, "junit.xml", "report.md", "report.html")
MOST = 60  # failures listed in a report; results.json has them all


WORDS = {"verdict": Literal[VERDICTS], "status": Literal[STATUSES], "evidence": dict[str, Any]}
FIELDS = [(name, WORDS.get(name, kind)) for name, kind in get_type_hints(Row).items()]
RowEntry = msgspec.defstruct("RowEntry", FIELDS, forbid_unknown_fields=True)  # a Row as JSON has it
Document = msgspec.defstruct(
    "Document",
    [("schema", Literal[2]), ("environment", dict[str, Any]), ("rows", GenericAlias(list, (RowEntry,)))],
)


def encode(outcome: Results) -> str:
    """The text of results.json. Raises ValueError for a number that is not finite."""
    document = {
        "schema": SCHEMA,
        "environment": outcome.environment,
        "rows": [row._asdict() for row in outcome.rows],
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded


def load(path: Path) -> Results:
    """The results in a folder, or in a results.json file of any name, of schema 2 or 1.

    Raises CannotJudge if the file is missing, not JSON, of another schema or malformed.
    """
    path = path / NAME if path.is_dir() or not path.exists() else path
    document = parse(path, (SCHEMA, results_v1.SCHEMA))
    try:
        if document["schema"] == results_v1.SCHEMA:
            return results_v1.converted(document)
        found: Any = msgspec.convert(document, Document)
    except (msgspec.ValidationError, ValueError) as error:
        raise CannotJudge(f"{path}: malformed results ({error}); run the verification again") from error
    rows = [Row(**msgspec.structs.asdict(entry)) for entry in found.rows]
    return Results(rows, found.environment)


def parse(path: Path, schemas: Sequence[int]) -> dict[str, Any]:
    """A JSON document with one of these schema versions.

    Raises CannotJudge if it is missing, not JSON, or of another schema.
    """
    try:
        document = strict_json.read(path)
    except FileNotFoundError as error:
        remedy = "no such file; give the --out folder of a finished verify, gate or bench"
        raise CannotJudge(f"{path}: {remedy}") from error
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable results ({error})") from error
    known = isinstance(document, dict) and type(document.get("schema")) is int
    if not known or document["schema"] not in schemas:
        raise CannotJudge(f"{path}: not results of schema {schemas[0]}; run the command again")
    return dict(document)


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a run as a tidy data frame, one row a measurement; frame.attrs has the environment.

    Two more columns have the texts that reports show: detail, and diagnosis (why it fails).
    Raises CannotJudge as load does, and where pandas is not installed.
    """
    return frame(load(Path(directory)))


def pandas() -> ModuleType:
    """pandas, which only frames need. Raises CannotJudge where it is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise CannotJudge(
            f'a frame needs pandas: pip install "gpt2-parity[report]" ({error})'
        ) from error
    return pd


def frame(outcome: Results) -> "pd.DataFrame":
    """The data frame that read returns, from results in memory."""
    try:
        table = pandas().DataFrame(outcome.rows, columns=list(Row._fields))
        table["detail"] = [explain.detail(row) for row in outcome.rows]
        table["diagnosis"] = [explain.diagnosis(row) for row in outcome.rows]
    except ValueError as error:
        raise CannotJudge(f"{NAME} has a text that is not valid Unicode ({error})") from error
    table.attrs.update(outcome.environment)
    return table


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
    """The number of measurements with each verdict: "3 fail, 1540 pass".

    It names the targets that were judged by weights of their own.
    """
    verdicts = [row.verdict for row in rows]
    text = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))
    others = explain.with_own_weights(rows)
    return f"{text}; by its own weights, not the checkpoint's: {', '.join(others)}" if others else text


def counts(found: Results) -> str:
    """The headline, which names the checks if only some were made."""
    return f"{headline(found.rows)}{selection(found.environment)}"


def outcome(found: Results) -> str:
    """PASS, FAIL or NO VERDICT on a run; PASS IN PART if only some checks were made."""
    word = OUTCOMES[exit_code(found.rows)]
    return f"{word} IN PART" if word == OUTCOMES[0] and found.environment.get("only") else word


def selection(environment: Mapping[str, Any]) -> str:
    """The end of a headline: which checks were made if not all were; "" if all were."""
    by_target = {name: ", ".join(checks) for name, checks in environment.get("only", {}).items()}
    if len(set(by_target.values())) > 1:
        text = "; ".join(f"{name}: {checks}" for name, checks in by_target.items())
    else:
        text = next(iter(by_target.values()), "")
    return f" (selected checks only: {text})" if text else ""


def merged(parts: Sequence[Results]) -> Results:
    """Several runs on one model with one seed as one run; parts: at least one."""
    made_with = {**parts[0].environment}
    environments = [part.environment for part in parts]
    keys = (
        "versions",
        "implementation_sha256",
        "implementation_files",
        "packages",
        "seconds_by_check",
        "loads",
    )
    for key in keys:
        made_with[key] = {
            name: value for each in environments for name, value in each.get(key, {}).items()
        }
    made_with["commands"] = {
        name: text for each in environments for name, text in each.get("commands", {}).items()
    }
    made_with["seconds"] = round(sum(each["seconds"] for each in environments), 1)
    made_with["cuda"] = next(
        (e["cuda"] for e in environments if e["cuda"] == "present"), made_with["cuda"]
    )
    if any("only" in each for each in environments):
        made_with["only"] = {
            name: each.get("only", {}).get(name, list(CHECKS))
            for each in environments
            for name in each["seconds_by_check"]
        }
    if len(parts) > 1:
        made_with.pop("command", None)
    return Results([row for part in parts for row in part.rows], made_with)


def columns(rows: Iterable[Row]) -> list[str]:
    """The checks that have rows, in order of execution; load, process and ledger come last."""
    seen = {row.check for row in rows}
    return [name for name in CHECKS if name in seen] + sorted(seen - set(CHECKS))


def greedy_texts(rows: Iterable[Row]) -> dict[str, str]:
    """The text that each implementation generates after the seed prompt, by target."""
    wanted = ("seed", "free_running", "wrong_tokens")
    return {
        label(row): explain.detail(row) for row in rows if (row.case, row.scope, row.metric) == wanted
    }


def pick(cells: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The cells of these checks, in order; "" where there is none."""
    return [cells.get(name, "") for name in names]
