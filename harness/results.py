"""What a run leaves behind: results.json, junit.xml and report.md, all from the same rows."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import mapped, story
from harness.checks import CHECKS
from harness.contract import CannotJudge
from harness.judge import Row
from harness.run import Results

if TYPE_CHECKING:  # pandas takes half a second to import; a verdict does not need it
    import pandas as pd

SCHEMA = 1
NAME = "results.json"


def write(results: Results, out: Path) -> None:
    """Write all three files into out, each all or nothing. Raises CannotJudge where that fails."""
    document = {
        "schema": SCHEMA,
        "environment": results.environment,
        "rows": [row._asdict() for row in results.rows],
    }
    try:
        mapped.write_text(out / NAME, json.dumps(document, indent=1, allow_nan=False) + "\n")
        mapped.write_text(out / "junit.xml", junit(results.rows))
        mapped.write_text(out / "report.md", markdown(results))
    except OSError as error:
        raise CannotJudge(f"{out}: results cannot be written ({error})") from error


def clear(out: Path) -> None:
    """Remove the files of an earlier run: should this run break off, they must not pass for its own."""
    for name in (NAME, "junit.xml", "report.md"):
        (out / name).unlink(missing_ok=True)


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a run as a tidy frame, one row a measurement; frame.attrs has the environment.

    Raises CannotJudge where results.json is missing, not JSON, or of another schema.
    """
    import pandas as pd

    path = Path(directory) / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable results ({error})") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CannotJudge(f"{path}: not results of schema {SCHEMA}; run parity verify --out anew")
    frame = pd.DataFrame(document["rows"], columns=list(Row._fields))
    frame.attrs = document["environment"]
    return frame


def label(row: Row) -> str:
    """Implementation and target as one name: torch-cpu-float32."""
    return "-".join(part for part in (row.implementation, row.device, row.dtype) if part)


def junit(rows: Iterable[Row]) -> str:
    """JUnit XML: a suite for each implementation and target, a test case for each row."""
    root = ET.Element("testsuites", name="gpt2-parity")
    suites: dict[str, ET.Element] = {}
    for row in rows:
        name = label(row)
        suite = suites.setdefault(name, ET.SubElement(root, "testsuite", name=name))
        test = ".".join(part for part in (row.case, row.scope, row.metric) if part) or row.check
        case = ET.SubElement(suite, "testcase", classname=f"{name}.{row.check}", name=test)
        if row.verdict == "fail":
            failure = ET.SubElement(case, "failure", message=say(row))
            failure.text = row.detail
        elif row.verdict != "pass":
            ET.SubElement(case, "skipped", message=f"{row.verdict}: {row.detail}")
    for suite in suites.values():
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


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
    shares = [row.ratio for row in rows if row.verdict == "pass" and row.ratio is not None]
    if shares:
        return f"{max(shares):.0%}"
    return rows[0].verdict


def headline(rows: list[Row]) -> str:
    """How many measurements came to which verdict."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))


def columns(rows: Iterable[Row]) -> list[str]:
    """The checks that have rows, in order of execution; what is no check (load, process) comes last."""
    seen = {row.check for row in rows}
    return [name for name in CHECKS if name in seen] + sorted(seen - set(CHECKS))


def greedy_texts(rows: Iterable[Row]) -> dict[str, str]:
    """What each implementation said after the seed prompt, running freely."""
    wanted = ("seed", "free_running", "wrong_tokens")
    return {label(row): row.detail for row in rows if (row.case, row.scope, row.metric) == wanted}


def markdown(results: Results) -> str:
    """The report: verdicts, failures first, then the grid and what the run was made with."""
    rows, names = results.rows, columns(results.rows)
    lines = [f"# GPT-2 parity: {results.environment['model']}", "", headline(rows), ""]
    failures = [row for row in rows if row.verdict == "fail"]
    if failures:
        for name, told in story.tell(rows).items():
            lines += [f"## {escape(name)}", "", *(f"{escape(paragraph)}\n" for paragraph in told)]
        lines += [f"## Failures: {len(failures)}", "", *map(failure_line, failures[:MOST]), ""]
        if len(failures) > MOST:
            lines += [f"... and {len(failures) - MOST} more in {NAME}", ""]
    lines += ["## Share of each limit used", ""]
    lines += table(["", *names], [[name, *pick(cells, names)] for name, cells in grid(rows).items()])
    lines += ["", "## Greedy text after the seed prompt", ""]
    lines += table(["", "text"], [[name, escape(text)] for name, text in greedy_texts(rows).items()])
    lines += ["", "## Made with", "", "```json", json.dumps(results.environment, indent=1), "```", ""]
    return "\n".join(lines)


MOST = 60  # failures listed in the report; results.json has them all


def failure_line(row: Row) -> str:
    where = " ".join(part for part in (row.check, row.case, row.scope) if part)
    said = say(row) if row.value is None else f"{say(row)} ({row.detail})"
    return f"- **{escape(label(row))}** {escape(where)}: {escape(said)}"


def pick(cells: dict[str, Any], names: list[str]) -> list[str]:
    return [cells.get(name, "") for name in names]


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def table(header: list[str], body: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]
