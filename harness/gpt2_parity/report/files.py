"""Write the files of a run from its rows: results.json, junit.xml, report.md, report.html."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from gpt2_parity.contract.rows import Results, Row, label
from gpt2_parity.files import atomic
from gpt2_parity.report import envelope, page, results, runs
from gpt2_parity.report.markdown import clip, escape, fit, table
from gpt2_parity.report.results import MOST, NAME, columns, grid, pick
from gpt2_parity.verdict import explain

# characters that XML forbids, even as &#...;
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(outcome: Results, out: Path) -> None:
    """Write all four files into out, each atomically. Raises CannotJudge if that fails."""
    atomic.write_text(out / NAME, results.encode(outcome))
    atomic.write_text(out / "junit.xml", junit(outcome.rows))
    atomic.write_text(out / "report.md", job_summary(outcome))
    atomic.write_text(out / "report.html", page.html([runs.Run(out.name, outcome)]))


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
            failure = ET.SubElement(case, "failure", message=explain.measured(row))
            failure.text = explain.detail(row)
        elif row.verdict != "pass":
            ET.SubElement(case, "skipped", message=f"{row.verdict}: {explain.detail(row)}")
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


def job_summary(outcome: Results) -> str:
    """report.md: the outcome, the counts, what is wrong, the failures, the grid, and the environment.

    A job summary has a size limit: long lists and texts are cut, with a note.
    """
    rows, names = outcome.rows, columns(outcome.rows)
    title = escape(str(outcome.environment["model"]))
    verdict = results.outcome(outcome)
    lines = [f"# {verdict}: GPT-2 parity, {title}", "", escape(results.counts(outcome)), ""]
    failures = [row for row in rows if row.verdict == "fail"]
    if failures:
        for name, paragraphs in explain.paragraphs(rows).items():
            shown = [f"{clip(paragraph)}\n" for paragraph in paragraphs[:MOST]]
            lines += [f"## {escape(name)}", "", *shown]
        lines += [f"## Failures: {len(failures)}", "", *map(failure_line, failures[:MOST]), ""]
        if len(failures) > MOST:
            lines += [f"... and {len(failures) - MOST} more in {NAME}", ""]
    if notes := explain.notes(rows):
        lines += ["## Known failures and notes", "", *(f"- {clip(line)}" for line in notes[:MOST]), ""]
    if held := envelope.lines(rows):
        lines += ["## How far it holds", ""]
        for who, (first, *rest) in held:
            lines += [f"- **{clip(who)}**: {clip(first)}" if who else f"- {clip(first)}"]
            lines += [f"  - {clip(text)}" for text in rest]
        lines.append("")
    lines += ["## Share of each limit used", ""]
    lines += table(
        ["", *names],
        [[clip(name), *pick(cells, names)] for name, cells in grid(rows).items()],
    )
    lines += ["", "## Greedy text after the seed prompt", ""]
    lines += table(
        ["", "text"], [[clip(name), clip(text)] for name, text in results.greedy_texts(rows).items()]
    )
    for part in envelope.sections(rows):
        if part.axes:
            cells = [[clip(text) for text in row] for row in part.axes]
            lines += ["", f"## What was seen right: {clip(part.label)}", ""]
            lines += table(part.header, cells)
    made_with = json.dumps(outcome.environment, indent=1).replace("`", "'")
    lines += ["", "## Environment", "", "```json", made_with, "```", ""]
    return fit("\n".join(lines), NAME)


def failure_line(row: Row) -> str:
    return (
        f"- **{clip(label(row))}** {clip(explain.location(row))}: {clip(explain.measured_and_seen(row))}"
    )
