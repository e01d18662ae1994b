"""What a run leaves behind: results.json, junit.xml, report.md, report.html, all from the same rows."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import mapped, story, strict_json
from harness.checks import CHECKS
from harness.checks.precision import WIDER
from harness.contract import CannotJudge
from harness.judge import Row, label
from harness.run import Results

if TYPE_CHECKING:  # pandas takes half a second to import; a verdict does not need it
    import pandas as pd

SCHEMA = 1
NAME = "results.json"
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not even as &#...;
FILES = (NAME, "junit.xml", "report.md", "report.html")
VERDICTS = ("pass", "fail", "known", "inconclusive", "unlocalised", "skipped")


def write(results: Results, out: Path) -> None:
    """Write all four files into out, each all or nothing. Raises CannotJudge where that fails."""
    from harness.report import page, runs  # they need this module, and what draws takes a second

    document = {
        "schema": SCHEMA,
        "environment": results.environment,
        "rows": [row._asdict() for row in results.rows],
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    whole = text.encode("utf-8", "replace").decode()  # half a surrogate is no text
    mapped.write_text(out / NAME, whole)
    mapped.write_text(out / "junit.xml", junit(results.rows))
    mapped.write_text(out / "report.md", markdown(results))
    mapped.write_text(out / "report.html", page.html([runs.Run(out.name, results)]))


def read(directory: Path | str) -> "pd.DataFrame":
    """The rows of a run as a tidy frame, one row a measurement; frame.attrs has the environment.

    Raises CannotJudge where results.json is missing, not JSON, or of another schema.
    """
    import pandas as pd

    found = load(Path(directory))
    try:
        frame = pd.DataFrame(found.rows, columns=list(Row._fields))
    except ValueError as error:
        raise CannotJudge(f"{directory}: {NAME} holds what is no text ({error})") from error
    frame.attrs.update(found.environment)
    return frame


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


def junit(rows: Sequence[Row]) -> str:
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
    cells = grid(rows)
    for name, suite in suites.items():
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
        properties = ET.Element("properties")  # the share of each limit used, as in the reports
        for check, value in cells[name].items():
            ET.SubElement(properties, "property", name=check, value=value)
        suite.insert(0, properties)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
    return NO_XML.sub(lambda found: ascii(found[0])[1:-1], text)


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


def markdown(results: Results) -> str:
    """The report for a job summary: verdicts, failures first, the grid, what the run was made with.

    It stays below MOST_BYTES, whatever the run: long lists and long words are cut, and say so.
    """
    rows, names = results.rows, columns(results.rows)
    lines = [f"# GPT-2 parity: {escape(str(results.environment['model']))}", "", headline(rows), ""]
    failures = [row for row in rows if row.verdict == "fail"]
    if failures:
        for name, told in story.tell(rows).items():
            lines += [f"## {escape(name)}", "", *(f"{clip(paragraph)}\n" for paragraph in told[:MOST])]
        lines += [f"## Failures: {len(failures)}", "", *map(failure_line, failures[:MOST]), ""]
        if len(failures) > MOST:
            lines += [f"... and {len(failures) - MOST} more in {NAME}", ""]
    if told := notes(rows):
        lines += ["## Known, or to be known", "", *(f"- {clip(line)}" for line in told[:MOST]), ""]
    lines += ["## Share of each limit used", ""]
    lines += table(
        ["", *names], [[clip(name), *pick(cells, names)] for name, cells in grid(rows).items()]
    )
    lines += ["", "## Greedy text after the seed prompt", ""]
    lines += table(["", "text"], [[clip(name), clip(text)] for name, text in greedy_texts(rows).items()])
    made_with = json.dumps(results.environment, indent=1).replace("`", "'")
    lines += ["", "## Made with", "", "```json", made_with, "```", ""]
    return fit("\n".join(lines))


MOST = 60  # failures listed in a report; results.json has them all
MOST_BYTES = 1_000_000  # a GitHub job summary holds 1 MiB
LONGEST = 1000  # characters of any one text in report.md


def clip(text: str) -> str:
    """Text escaped for Markdown, cut where it is very long."""
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def fit(text: str) -> str:
    """A report cut at the end of a line where it would be too large."""
    data = text.encode(errors="backslashreplace")  # half a surrogate is no text
    if len(data) <= MOST_BYTES:
        return data.decode()
    note = f"\n\n... cut here: {NAME} has all of it\n"
    kept = data[: MOST_BYTES - len(note)].decode(errors="ignore")
    return kept[: kept.rfind("\n")] + note


def failure_line(row: Row) -> str:
    return f"- **{clip(label(row))}** {clip(place(row))}: {clip(said(row))}"


def place(row: Row) -> str:
    """Where a row was measured: check, case and scope."""
    return " ".join(part for part in (row.check, row.case, row.scope) if part)


def said(row: Row) -> str:
    """What was measured, with the detail."""
    return say(row) if row.value is None or not row.detail else f"{say(row)} ({row.detail})"


def pick(cells: dict[str, Any], names: list[str]) -> list[str]:
    return [cells.get(name, "") for name in names]


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def table(header: list[str], body: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]
