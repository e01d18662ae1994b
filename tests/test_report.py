"""The reports agree with the rows, whatever those are; and hostile text in them does no harm."""

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from commands import SPECIMEN, here
from faults import named, write
from gallery import CRASH
from gpt2_parity.checks.greedy import CAPABILITY as GENERATE
from gpt2_parity.commands.report import note_on_figures
from gpt2_parity.contract.architecture import HParams, tap_names
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.plan import CaseShape, Plan
from gpt2_parity.contract.rows import STATUSES, VERDICTS, Measurement, Results, Row
from gpt2_parity.contract.rows import label as label_of
from gpt2_parity.model import catalogue
from gpt2_parity.reference import golden
from gpt2_parity.reference.records import CONTINUATION, PROMPT
from gpt2_parity.report import (
    durations,
    files,
    measurements,
    plots,
    results,
    terminal,
    texts,
    tokens,
    verdicts,
)
from gpt2_parity.report import page as pages
from gpt2_parity.report import runs as folders
from gpt2_parity.report.cells import UNITS
from gpt2_parity.report.markdown import MOST_BYTES
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.judge import Judge, expected

pytestmark = pytest.mark.xdist_group("report")  # one worker makes what all of these share

DOCS = Path(__file__).parent.parent / "docs"
SCHEMA = json.loads((DOCS / "results.schema.json").read_text(encoding="utf-8"))
HPARAMS = HParams(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, prepared):
    """Real runs by name, each a folder: clean, one with a planted fault, one with a crash."""
    folder = tmp_path_factory.mktemp("runs")
    write(named("erf_gelu"), folder)
    (folder / "crashes.py").write_text(SPECIMEN + CRASH, encoding="utf-8")
    for name, impls in {"clean": [], "fault": ["erf_gelu.py"], "crash": ["crashes.py"]}.items():
        chosen = [word for impl in [*impls, "numpy"] for word in ("--impl", impl)]
        done = here(
            "verify", *chosen, "--target", "cpu-float32", "--seed", "7", "--out", name, cwd=folder
        )
        assert done.returncode == (1 if impls else 0), done.stderr
    return {name: folder / name for name in ("clean", "fault", "crash")}


@pytest.fixture(scope="module")
def micro_record():
    model = catalogue.locate("micro")
    return next(record for record in golden.read(model)[1] if record.name == "seed")


class Page(HTMLParser):
    """What is on a page: the texts of table rows by table class, of other elements, and all tags."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.items: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.table = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self.open.append(tag)
        if tag == "table":
            self.table = (dict(attrs).get("class") or "").split(" ")[-2 if "sticky" in str(attrs) else 0]
            self.tables.setdefault(self.table, [])
        elif tag == "tr":
            self.tables[self.table].append([])
        elif tag in ("td", "th"):
            self.tables[self.table][-1].append("")
        elif tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if {"td", "th"} & set(self.open) and self.tables[self.table]:
            self.tables[self.table][-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data


def page_of(rows, environment=None, bench=None) -> str:
    made = {"model": "m", **(environment or {})}
    return pages.html([folders.Run("run", Results(rows, made), bench)])


def row(**change) -> Row:
    usual = Row("x", "cpu", "float32", "m", "c", "logits", "logits", "noise_units", 9.0, 8.0, 9 / 8,
                "fail", "measured", "logits", "", {"note": "words"})  # fmt: skip
    return usual._replace(**change)


@pytest.mark.parametrize("name", ["clean", "fault", "crash"])
def test_all_four_files_have_the_same_numbers(runs, name):
    out = runs[name]
    assert sorted(path.name for path in out.iterdir()) == sorted(results.FILES)
    document = json.loads((out / results.NAME).read_text())
    rows = [Row(**entry) for entry in document["rows"]]
    page = Page((out / "report.html").read_text())
    markdown = (out / "report.md").read_text().replace("\\", "")
    junit = ET.parse(out / "junit.xml").getroot()
    labels = list(dict.fromkeys(label_of(row) for row in rows))
    checks = list(dict.fromkeys(row.check for row in rows))

    # counts: computed here from the JSON, and read from each of the others
    for label in labels:
        own = [row for row in rows if label_of(row) == label]
        count = Counter(row.verdict for row in own)
        suite = next(suite for suite in junit if suite.get("name") == label)
        assert int(suite.get("tests")) == len(own) == len(suite.findall("testcase"))
        assert int(suite.get("failures")) == count["fail"] == len(suite.findall("testcase/failure"))
        shown = next(cells for cells in page.tables["verdicts"] if cells[0] == label)
        assert {word.split()[1]: int(word.split()[0]) for word in shown[3].split(", ")} == count
    total = Counter(row.verdict for row in rows)
    for words in (markdown, page.words):
        said = re.search(r"(?:^|: )((?:\d+ [a-z]+(?:, )?)+)\.?$", words, re.MULTILINE)[1]
        assert {part.split()[1]: int(part.split()[0]) for part in said.split(", ")} == total

    # the matrix: from the JSON, by other means than results.cell
    header, *matrix = page.tables["matrix"]
    md_header, md_matrix = md_table(markdown, labels)
    assert [name.replace(" ", "_") for name in header[1:]] == md_header == results.columns(rows)
    for label in labels:
        in_html = dict(zip(md_header, next(c for c in matrix if c[0] == label)[1:], strict=True))
        in_md = dict(zip(md_header, md_matrix[label], strict=True))
        suite = next(suite for suite in junit if suite.get("name") == label)
        in_junit = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
        for check in checks:
            own = [row for row in rows if label_of(row) == label and row.check == check]
            failed = sum(row.verdict == "fail" for row in own)
            shares = [row.ratio for row in own if row.verdict == "pass" and row.ratio is not None]
            want = f"FAIL {failed}/{len(own)}" if failed else f"{max(shares):.0%}" if own else ""
            assert in_html[check] == in_md[check] == in_junit.get(check, "") == want, (label, check)

    # failures: each listed value is one of the JSON's, and the three say it in the same words
    failed = [row for row in rows if row.verdict == "fail"]
    said = Counter(f"{explain.location(row)} {explain.measured_and_seen(row)}" for row in failed)
    listed = [item for item in page.items if item.startswith(tuple(checks)) and item != "local"]
    assert len(listed) == min(len(failed), results.MOST)
    assert not Counter(listed) - said
    in_md = re.findall(r"^- \*\*.+?\*\* (.+)$", markdown, re.MULTILINE)
    md_said = {
        f"{explain.location(row)}: {explain.measured_and_seen(row)}".replace("\\", "") for row in failed
    }
    assert len(in_md) == min(len(failed), results.MOST)
    assert set(in_md) <= md_said
    messages = Counter(failure.get("message") for failure in junit.iter("failure"))
    assert messages == Counter(explain.measured(row) for row in failed)

    # every operation's worst error, in the maps of the page
    for label, cells in zip(
        [t.label for t in verdicts.targets(rows) if t.heat], maps(page), strict=True
    ):
        for scope, text in cells.items():
            values = [
                row.value
                for row in rows
                if (label_of(row), row.check, row.scope) == (label, "local", scope) and row.value
            ]
            assert float(re.search(r"[\d.e-]+", text)[0]) == pytest.approx(max(values), rel=0.06), scope


def maps(page):
    """The maps of layers and operations: text by scope, one for each table that was shown last."""
    found, current, names = [], None, []
    for header, *cells in page.tables.get("heat", []):
        if header == "layer":
            names, current = cells, {}
            found.append(current)
        elif len(cells) == 1:
            current[header] = cells[0]
        else:
            leaves = [f"{header}/{name}" if name != "output" else header for name in names]
            current |= dict(zip(leaves, cells, strict=True))
    n = len(found)
    return found[-(n - n // 2) :] if n > 2 else found[-n:]


def md_table(markdown, labels):
    """The header and the rows of report.md's table of shares."""
    lines = markdown.partition("## Share of each limit used")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return cells[0][1:], {line[0]: line[1:] for line in cells if line[0] in labels and len(line) > 3}


def test_the_planted_fault_is_told_at_the_top(runs):
    """What, where and why come before anything else on the page."""
    page = Page((runs["fault"] / "report.html").read_text())
    top = page.words[: page.words.index("Verdict on each implementation")]
    assert "1 of 2 is wrong" in top
    for words in (
        "erf_gelu-cpu-float32",
        "h*/mlp/gelu",
        "erf instead of tanh GELU",
        "the tanh form of GELU",
    ):
        assert words in top
    blamed = [text for cells in page.tables["heat"] for text in cells if text.startswith("✘")]
    assert len(blamed) == 2 * 4  # in four layers: in the card, and in the map below
    assert "✘ mlp/gelu" in page.words


def test_a_crash_is_told_as_one_and_blames_no_mechanism(runs):
    page = Page((runs["crash"] / "report.html").read_text())
    top = page.words[: page.words.index("Verdict on each implementation")]
    assert "1 of 2 crashed" in top
    assert "was killed by SIGSEGV" in top
    assert "during the check local" in top
    assert "determinism" not in top
    assert "472" in top or re.search(r"\d+ measurements are missing", top)


def test_one_page_has_every_part_and_asks_for_nothing(runs):
    text = (runs["fault"] / "report.html").read_text()
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {"faults", "verdicts", "checks", "operations", "noise", "texts", "precision", "made"} <= set(
        ids
    )
    assert page.tags["script"] == page.tags["img"] == page.tags["iframe"] == 0
    loads = [v for n, v in page.attributes if n in ("src", "href", "action", "srcset") and v]
    assert all(value.startswith(("#", "data:")) for value in loads), loads
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text
    assert page.tags["figure"] == 12
    anchors = {value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")}
    assert anchors <= set(ids)


def test_the_command_repeats_the_run(runs):
    frame = results.read(runs["fault"])
    command = frame.attrs["command"]
    assert command == (
        "parity verify --impl erf_gelu.py --impl numpy --target cpu-float32 --model micro --seed 7 "
        "--search 0"
    )
    assert command in Page((runs["fault"] / "report.html").read_text()).words
    again = here(*command.split()[1:], "--out", "again", cwd=runs["fault"].parent)
    assert again.returncode == 1
    repeated = results.read(runs["fault"].parent / "again")
    assert repeated.equals(frame)
    assert repeated.attrs["implementation_sha256"] == frame.attrs["implementation_sha256"]


def asked(page):
    """The commands of the table of measurements."""
    heads = [cells[0] for cells in page.tables["measured"] if len(cells) == 1]
    return [head[head.index("parity verify") :].strip() for head in heads if "parity verify" in head]


def test_each_measurement_has_an_address_of_its_own_that_stays(runs):
    frame = results.load(runs["fault"])
    texts = [(runs[name] / "report.html").read_text() for name in ("fault", "clean")]
    found, others = (set(re.findall(r'<tr id="(m[0-9a-f]{8})"', text)) for text in texts)
    assert len(found) == len(frame.rows)
    assert all(f'<a href="#{name}">¶</a>' in texts[0] for name in found)
    assert len(found & others) == len(others)  # numpy is in both runs
    failures = texts[0][texts[0].index('<ul class="failures">') :].partition("</ul>")[0]
    linked = re.findall(r'<a href="#(m\w+)"><code>', failures)
    assert len(linked) == results.MOST
    assert set(linked) <= found


def test_the_command_of_a_measurement_makes_its_check_again_alone(runs, tmp_path):
    page = Page((runs["fault"] / "report.html").read_text())
    command = next(text for text in asked(page) if "erf_gelu" in text and "--only logits" in text)
    arguments = command.split()[1:]
    done = here(*arguments, "--out", tmp_path / "again", cwd=runs["fault"].parent)
    assert done.returncode == 1, done.stderr
    whole = [row for row in results.load(runs["fault"]).rows if row.implementation == "erf_gelu"]
    values = {row[:8]: row.value for row in whole if row.check == "logits"}
    assert {row[:8]: row.value for row in results.load(tmp_path / "again").rows} == values
    top = page.words[: page.words.index("Verdict on each implementation")]
    assert command.replace("--only logits", "--only local") in top  # of the fault that is told


def test_a_run_without_commands_names_none():
    page = Page(page_of([row()]))
    assert "¶ c logits" in page.words
    assert asked(page) == []


def test_measurements_that_are_not_listed_are_counted_and_failures_come_first(monkeypatch):
    monkeypatch.setattr(measurements, "MOST", 80)
    many = [row(case=f"c{i}", verdict="pass", ratio=0.1) for i in range(measurements.MOST)]
    page = Page(page_of([*many, *(row(case=f"bad{i}") for i in range(10))]))
    assert "and 10 more, in results.json" in page.words
    assert sum(cells[0].startswith("¶ bad") for cells in page.tables["measured"]) == 10


def test_every_filter_has_its_rule(runs):
    """Each radio button but "all" is in a selector of the style sheet, and what it keeps exists."""
    text = (runs["fault"] / "report.html").read_text()
    buttons = set(re.findall(r'<input type="radio" name="\w+" id="([\w-]+)">', text))
    assert buttons == {"v-fails", "l", *(f"l{i}" for i in range(4)), *(f"c{i}" for i in range(15))}
    assert all(f":has(#{name}:checked)" in text for name in buttons)
    assert all(f'class="fails L{layer}"' in text for layer in range(4))
    rows = results.load(runs["fault"]).rows
    failing = sum(row.verdict == "fail" for row in rows)
    assert len(re.findall(r'<tr id="m\w+" class="fails L\d?"', text)) == failing


def test_units_are_explained_wherever_they_are_used(runs):
    text = (runs["fault"] / "report.html").read_text()
    parts = dict(zip(*[iter(re.split(r'<section id="(\w+)">', text)[1:])] * 2, strict=True))
    told = {"rounding units": ("faults", "operations", "measurements")}
    told["noise units"] = ("noise", "texts", "measurements")
    for unit, sections in told.items():
        for section in sections:
            visible = re.sub(r'title="[^"]*"', "", parts[section])
            assert UNITS[unit] in visible, section


def test_tokens_show_the_error_and_the_margin_at_their_position(runs, micro_record):
    record, rows = micro_record, results.load(runs["clean"]).rows
    (own,) = [
        row for row in rows if row.metric == "noise_units" and row[4:7] == ("seed", "logits", "logits")
    ]
    figures = own.evidence["by_token"]
    first_two = np.sort(record.logits[0], axis=-1)[:, -2:]
    unit = record.noise("float32")
    assert figures["margins"] == pytest.approx((first_two[:, 1] - first_two[:, 0]) / unit, rel=0.01)
    assert max(figures["errors"]) == pytest.approx(own.value, rel=0.01)
    assert "".join(figures["tokens"]) == PROMPT
    (strip,) = tokens.strips(rows)["seed"]
    assert "".join(cell.text for cell in strip.new) == CONTINUATION
    assert {cell.shade.split()[1] for cell in strip.prompt + strip.new} == {"m2"}  # it was memorised
    page = (runs["clean"] / "report.html").read_text()
    worst = max(strip.prompt, key=lambda cell: float(cell.title.split()[1].rstrip(",")))
    assert f'<span class="{worst.shade}" title="{worst.title}">{worst.text}</span>' in page


def test_a_token_is_shaded_by_its_error_and_its_margin():
    figures = {"tokens": ["a", "b\n", "c"], "errors": [0.1, 80.0, "nan"], "margins": [15, 17, 1e4]}
    shades = [cell.shade for cell in tokens.token_cells(figures, 8.0)]
    assert shades == ["ok0 m0", "bad1 m1", "bad3 m2"]
    assert tokens.token_cells({"tokens": ["a"], "errors": [], "margins": []}, 8.0) == []
    assert tokens.token_cells("of another check", 8.0) == []


NOT_TEXT = ("value", "limit", "ratio", "status", "evidence")
HOSTILE = "$\\foo$ <script>alert(1)</script><img src=x onerror=alert(1)>\"'&]]>--> #010101 \x00\x1b"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (n, HOSTILE)
            for n in Row._fields
            if n not in ("value", "limit", "ratio", "status", "evidence")
        ),
        ("evidence", {HOSTILE: HOSTILE}),
        ("evidence", {"text": HOSTILE, "golden": HOSTILE, "first_difference": HOSTILE}),
    ],
)
def test_hostile_text_is_inert_wherever_it_stands(field, value):
    rows = [row(), row(**{field: value})]
    if field not in ("check", "scope"):  # where the page has tables of their own for these
        rows.append(
            row(check="local", scope="h0/mlp/gelu", metric="rounding_units")._replace(**{field: value})
        )
        rows.append(
            row(check="greedy", scope="free_running", metric="wrong_tokens")._replace(**{field: value})
        )
    inert(page_of(rows))


def test_hostile_text_is_inert_in_environment_and_benchmark():
    bench = {
        "schema": 1,
        "environment": {HOSTILE: HOSTILE},
        "rows": [timing(implementation=HOSTILE, detail=HOSTILE)],
    }
    bench["rows"].append(timing(verdict=HOSTILE, samples=[], median=None, low=None, high=None))
    inert(
        page_of([row()], {HOSTILE: HOSTILE, "command": HOSTILE, "versions": {HOSTILE: [HOSTILE]}}, bench)
    )


def inert(text):
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.words + "".join(str(value) for _, value in page.attributes)


def timing(**change):
    usual = {
        "implementation": "numpy", "device": "cpu", "dtype": "float32", "model": "m", "phase": "prefill",
        "metric": "seconds", "n_past": 0, "n": 128, "batch": 1, "samples": [0.2, 0.21, 0.22],
        "median": 0.21, "low": 0.2, "high": 0.22, "unit": "seconds", "tokens_per_second": 610.0,
        "roofline": 0.5, "verdict": "verified", "detail": "",
    }  # fmt: skip
    return usual | change


def test_benchmarks_are_drawn_with_their_roofline_and_only_where_verified():
    wrong = timing(implementation="fast", verdict="wrong output", detail="h0 is off", samples=[],
                   median=None, low=None, high=None, roofline=None, tokens_per_second=None)  # fmt: skip
    load = timing(phase="load", roofline=None)
    memory = timing(phase="memory", metric="peak_rss", unit="bytes", median=1.2e9, low=None, high=None,
                    samples=[1.2e9], roofline=None, tokens_per_second=None)  # fmt: skip
    bench = {"schema": 1, "environment": {"model": "m"}, "rows": [timing(), wrong, load, memory]}
    text = pages.html([folders.Run("run", None, bench)])
    page = Page(text)
    assert page.tables["timed"][1:] == [
        ["fast-cpu-float32", "✘ wrong", "wrong output: h0 is off", "0 of 1 measured"],
        ["numpy-cpu-float32", "✔ right", "right before, during and after", "3 measured"],
    ]
    assert '<h1 class="wrong"><span aria-hidden="true">✘</span> 1 of 2 is wrong</h1>' in text
    figure = text[text.index("<svg", text.index('id="speed"')) :]
    assert figure.index("fast-cpu-float32") < figure.index("numpy-cpu-float32")  # failures first
    assert "prefill of 128 tokens" in page.words
    assert "of which loading the weights" in page.words
    assert "210 ms · 50% of roofline" in page.words
    assert "wrong output" in page.words
    assert "1200 MB" in page.words
    assert page.tags["figure"] == 3
    roofless = pages.html([folders.Run("run", None, bench | {"rows": [timing(roofline=None)]})])
    assert text.count("stroke-dasharray: 3.2") == 1 > roofless.count("stroke-dasharray: 3.2")


def test_who_passes_and_is_wrong_when_it_is_timed_is_wrong():
    passed = row(implementation="numpy", verdict="pass", value=1.0, ratio=0.1)
    bench = {"schema": 1, "environment": {}, "rows": [timing(verdict="wrong output")]}
    assert "✘ It is wrong" in Page(page_of([passed], bench=bench)).words
    assert "✔ It is right" in Page(page_of([passed], bench=bench | {"rows": [timing()]})).words


def test_an_operation_that_gave_nothing_is_told_so_in_words():
    lost = {"check": "local", "scope": "h0/ln_1", "metric": "rounding_units"}
    pieces = page_of([row(**lost, value=None, ratio=None, status="nan", evidence={})]).split(
        "<figcaption>"
    )
    assert any("no number at h0/ln_1: missing or not finite; limit 8" in text for text in pieces)
    sane = page_of([row(**lost)])
    assert "no number at" not in sane
    assert "at most 9 at h0/ln_1, limit 8" in sane


def synthetic(n_impls: int, value=0.7, hparams=HPARAMS) -> list[Row]:
    """Rows as a run of so many implementations on a large model writes them."""
    cases = [CaseShape(name, 1, 40, 16) for name in ("seed", "one", "two", "fresh")]
    plan = Plan(hparams, tuple(cases), tap_names(hparams.n_layer), (GENERATE,))
    keys = expected(plan)
    rows = []
    for i in range(n_impls):
        judge = Judge(f"implementation_{i}", Target("cpu", "float32"), "1558M")
        measured = [
            (
                check,
                Measurement(
                    *key, value if "units" in key[2] else 0.0, {"at": [0, 1, 2], "got": 1, "right": 2}
                ),
            )
            for check, found in keys.items()
            for key in found
        ]
        rows += judge.rows(plan, measured, {})
    return rows


@pytest.mark.parametrize("value", [0.7, 1e6])
def test_five_implementations_of_48_layers_stay_below_3_megabytes(value):
    rows = synthetic(5, value)
    assert len(rows) > 20_000
    text = page_of(rows)
    assert len(text.encode()) < 3_000_000
    assert "h47" in text


def test_markdown_stays_below_a_megabyte_whatever_the_run():
    rows = [
        row(implementation=f"{'n' * 3000}{i}", evidence={"é" * 5000: "d" * 5000}, scope="s" * 900)
        for i in range(3000)
    ]
    environment = {"model": "m" * 10_000, "versions": {f"v{i}": "1" * 500 for i in range(5000)}}
    text = files.job_summary(Results(rows, environment))
    assert len(text.encode()) <= MOST_BYTES
    assert "cut here" in text
    assert "cut here" not in files.job_summary(Results(rows[:5], {"model": "m"}))


def test_several_runs_merge_and_what_has_the_same_name_is_told_apart(runs, tmp_path):
    out = tmp_path / "both.html"
    done = here("report", runs["clean"], runs["fault"], "--out", out)
    assert done.returncode == 0, done.stderr
    page = Page(out.read_text())
    names = [cells[0] for cells in page.tables["verdicts"][1:]]
    assert sorted(names) == [
        "erf_gelu-cpu-float32", "numpy [clean 1]-cpu-float32", "numpy [fault 2]-cpu-float32"
    ]  # fmt: skip
    assert "1 of 3 is wrong" in page.words
    assert page.tags["pre"] == 2
    commands = {
        f"parity verify --impl {impl} --model micro --seed 7 --search 0"
        for impl in ("erf_gelu.py", "numpy")
    }
    assert commands == {text.split(" --target")[0] for text in asked(page)}


def test_what_is_held_against_forward_alone_is_no_text_of_golden():
    """Regression: the page of a clean run claimed that texts differ, because such a row has no text."""
    row = Row(
        "x",
        "cpu",
        "float32",
        "m",
        "seed",
        "greedy",
        "generate",
        "wrong_tokens",
        0,
        0,
        0,
        "pass",
        "measured",
        "",
        "",
        {"text": "a"},
    )
    itself = row._replace(scope="generate_by_forward", evidence={})
    [found] = texts.texts([row, itself])["seed"]
    assert (found.same, found.note) == ("a", "as golden")


def test_a_report_made_again_says_the_same(runs, tmp_path):
    again = tmp_path / "again.html"
    assert here("report", runs["clean"], "--out", again).returncode == 0
    assert Page(again.read_text()).words == Page((runs["clean"] / "report.html").read_text()).words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the --out folder"),
        (
            '{"schema": 2, "environment": {}, "rows": [{"implementation": "x"}]}',
            "missing required field `device` - at `$.rows[0]`",
        ),
        ('{"schema": 1, "environment": {}, "rows": [{"blame": 1}]}', "at `$.rows[0]"),
        ('{"schema": 2, "environment": {}, "rows": [NaN]}', "NaN is not a JSON number"),
        ('{"schema": 3, "environment": {}, "rows": []}', "not results of schema 2"),
        ("[1]", "not results of schema 2"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, content, message):
    if content:
        (tmp_path / results.NAME).write_text(content)
    done = here("report", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_benchmark_is_refused(tmp_path):
    (tmp_path / folders.BENCH).write_text('{"schema": 1, "environment": {}, "rows": [{"n": 1}]}')
    with pytest.raises(CannotJudge, match="missing required field `implementation`"):
        folders.read([tmp_path])


@pytest.mark.parametrize("name", ["clean", "fault", "crash"])
def test_real_runs_are_valid_by_the_published_schema(runs, name):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(json.loads((runs[name] / results.NAME).read_text()))


def test_the_schema_has_the_columns_and_verdicts_and_refuses_others(runs):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    described = SCHEMA["$defs"]["row"]
    assert tuple(described["properties"]) == tuple(described["required"]) == Row._fields
    assert tuple(described["properties"]["verdict"]["enum"]) == VERDICTS
    assert tuple(described["properties"]["status"]["enum"]) == STATUSES
    assert tuple(results.RowEntry.__struct_fields__) == Row._fields
    assert SCHEMA["properties"]["schema"]["const"] == results.SCHEMA
    assert SCHEMA["$id"] == f"urn:gpt2-parity:results:{results.SCHEMA}"
    good = json.loads((runs["clean"] / results.NAME).read_text())
    assert {*good["environment"], "only", "lost_workers"} == set(
        SCHEMA["properties"]["environment"]["properties"]
    )
    for change in (
        {"verdict": "ok"},
        {"value": None},
        {"blame": "h0"},
        {"extra": 1},
        {"status": "fine"},
        {"evidence": "words"},
        {"ratio": "1"},
    ):
        bad = good | {"rows": [good["rows"][0] | change]}
        assert not validator.is_valid(bad), change
    assert not validator.is_valid(good | {"schema": 1})


def old_row(**change):
    """A row of results.json of schema 1."""
    names = "implementation device dtype model case check scope metric value limit ratio verdict blame"
    words = ("x", "cpu", "float32", "m", "seed", "local", "h0/mlp/gelu", "rounding_units")
    values = (*words, 99.0, 16.0, 6.2, "fail", "h0/mlp/gelu")
    usual = dict(zip(names.split(), values, strict=True))
    return usual | {"diagnosis": "", "detail": "at [0, 1, 2]"} | change


def test_results_of_schema_1_are_still_read(tmp_path):
    rows = [
        old_row(
            diagnosis="erf_gelu: erf instead of tanh GELU explains it: 99 rounding units fall to 0.6"
        ),
        old_row(scope="ln_f", value=None, ratio=None, detail="NaN: a comparison with NaN"),
        old_row(scope="h1", value=None, ratio=None, detail="missing: it broke off"),
        old_row(scope="h2", value=None, limit=None, ratio=None, verdict="unlocalised", detail="no tap"),
    ]
    document = {"schema": 1, "environment": {"model": "m"}, "rows": rows}
    (tmp_path / results.NAME).write_text(json.dumps(document))
    found = results.load(tmp_path).rows
    assert [row.status for row in found] == ["measured", "nan", "missing", "not_asked"]
    assert [row.mistake for row in found] == ["erf_gelu", "", "", ""]
    assert [explain.detail(row) for row in found] == [row["detail"] for row in rows]
    assert "<b>erf instead of tanh GELU</b> explains it" in page_of(found)


@pytest.fixture
def without(monkeypatch):
    """A function that makes a module look as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_the_page_has_its_tables_and_says_what_is_missing(runs, without, tmp_path):
    name = "fault"
    drawn = Page((runs[name] / "report.html").read_text())
    without("matplotlib")
    pages.write([runs[name]], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert drawn.tags["svg"] > 5
    assert page.tags["svg"] == 0
    assert page.tables == drawn.tables
    assert page.tags["details"] == drawn.tags["details"]
    assert Counter(page.attributes)["open", None] > Counter(drawn.attributes)["open", None]  # the tables
    assert plots.MISSING in page.words
    assert plots.MISSING not in drawn.words


def test_without_matplotlib_the_command_says_so(runs, without, capsys):
    note_on_figures(Console())
    assert capsys.readouterr().out == ""
    without("matplotlib")
    note_on_figures(Console())
    assert capsys.readouterr().out.strip() == plots.MISSING


def test_without_pandas_a_frame_says_what_to_install(runs, without):
    assert len(results.read(runs["clean"]))
    without("pandas")
    with pytest.raises(CannotJudge, match=r'a frame needs pandas: pip install "gpt2-parity\[report\]"'):
        results.read(runs["clean"])


def test_a_page_is_small_and_names_no_folder_of_whoever_made_it(runs):
    for name, folder in runs.items():
        text = (folder / "report.html").read_text(encoding="utf-8")
        assert len(text) < 400_000
        assert not re.search(r"/(tmp|home|work|root)/", text), name


def test_the_picture_of_the_readme_is_there_and_small():
    assert 10_000 < (DOCS / "images" / "planted_fault.png").stat().st_size < 200_000


def test_the_page_shows_where_the_time_went(runs):
    document = json.loads((runs["clean"] / results.NAME).read_text())
    measured = document["environment"]["seconds_by_check"]
    header, *rows = Page((runs["clean"] / "report.html").read_text()).tables["durations"]
    assert {row[0] for row in rows} == measured.keys()
    for label, *cells, total, loads in rows:
        shown = dict(zip((name.replace(" ", "_") for name in header[1:-1]), cells, strict=False))
        assert re.fullmatch(r"7 in \S+ s", loads)
        assert set(shown) == measured[label].keys() >= {"load", "logits", "greedy"}
        assert all(
            float(shown[name]) == pytest.approx(s, rel=0.06) for name, s in measured[label].items()
        )
        assert float(total) == pytest.approx(sum(measured[label].values()), rel=0.01)


@pytest.mark.parametrize(
    "value", [3, [], {"numpy-cpu-float32": 3}, {"numpy-cpu-float32": {"logits": "x"}}]
)
def test_seconds_that_are_none_are_left_out(value):
    run = folders.Run("it", Results([], {"seconds": 1.0, "seconds_by_check": value}))
    assert durations.durations([run]) is None


def test_paragraphs_on_a_terminal_break_between_words_and_are_indented(runs):
    found = results.load(runs["fault"])
    screen = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    terminal.show(screen, found)
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (paragraph, *_) = next(iter(explain.paragraphs(found.rows).values()))
    assert len(paragraph) > 160
    first = next(i for i, line in enumerate(lines) if line.startswith(f"  {paragraph[:40]}"))
    shown: list[str] = []
    while sum(len(line) + 1 for line in shown) < len(paragraph):
        line = lines[first + len(shown)]
        assert line.startswith("  ")
        shown.append(line.strip())
    assert " ".join(shown) == paragraph


def test_a_pipe_gets_each_paragraph_as_one_line(runs):
    found = results.load(runs["fault"])
    pipe = Console(width=80, file=io.StringIO())
    terminal.show(pipe, found)
    (paragraph, *_) = next(iter(explain.paragraphs(found.rows).values()))
    assert f"  {paragraph}" in pipe.file.getvalue().splitlines()


@pytest.mark.parametrize(("name", "outcome"), [("clean", "PASS"), ("fault", "FAIL"), ("crash", "FAIL")])
def test_a_job_summary_begins_with_the_outcome(runs, name, outcome):
    assert (runs[name] / "report.md").read_text().startswith(f"# {outcome}: ")
