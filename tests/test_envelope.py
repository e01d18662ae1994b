"""The envelope: what reports say about how far a verdict holds, and what was not looked at."""

import io
import json
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

import gpt2_parity
from gpt2_parity.checks.search import Search
from gpt2_parity.checks.search.judge import Judged
from gpt2_parity.checks.search.trial import Step, Trial
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.rows import NOT_ASKED, Results, Row
from gpt2_parity.report import compare, envelope, files, notebook, operations, page, results, terminal
from gpt2_parity.report.runs import Run
from gpt2_parity.verdict import explain

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "results.schema.json").read_text())
WHO = "mine-cpu-float32"
MADE = {"model": "micro", "seed": 1, "cuda": NOT_ASKED}
FOUND = {
    "trials": 20,
    "calls": 500,
    "axes": {
        "batch": [[1, 36], [40, 40]],
        "queries": [[1, 70], [112, 112], [200, 200], [1020, 1020]],
        "queries with a cache": [[1, 33]],
        "keys": [[1, 75], [1023, 1025]],
        "n_embd": [[1, 1], [8, 8], [24, 24], [165, 165]],
        "head size": [[1, 1], [8, 8]],
        "n_head": [[1, 3]],
        "n_layer": [[1, 3], [8, 8]],
        "n_vocab": [[2, 2], [61, 61], [1000, 1000]],
        "n_ctx": [[1, 75], [1023, 1085]],
        "generate": [[4, 6]],
    },
    "pairs": {"batch x queries": 30, "batch x keys": 50, "queries x keys": 40},
    "ranges": {
        "GELU inputs": [-26.5, 27.25],
        "residuals": [1e-05, 2500.0],
        "variances": [0.0, 395.6],
    },
    "extremes": {"gelu_inputs": 0, "residuals": 2, "means": 0},
    "largest_model": 335610,
    "rarest_race": 0.0092,
    "outside": 0,
    "refused": [],
    "n_refused": 0,
}
SEARCH = {"seed": 7, "seconds": 3.0, "trials": 20, "failed": 0}
PASS = Row("mine", "cpu", "float32", "micro", "seed", "logits", "logits", "noise_units", 1.0, 8.0, 0.125,
           "pass", "measured", "", "", {})  # fmt: skip


def found(
    who="mine", search=(), scopes=("prefill", "decode", "generate", "gradients"), taps=True, **change
):
    """The rows of a target that was searched; change: of the envelope."""
    rows = [PASS._replace(implementation=who)]
    leaves = [(name, "rounding_units") for name in explain.every_operation() if taps]
    for scope, metric in [*leaves, *((scope, "noise_units") for scope in scopes)]:
        evidence = {"search": SEARCH | dict(search)}
        if scope == "prefill":
            evidence["envelope"] = FOUND | change
        names = {"check": "search", "case": "search", "scope": scope, "metric": metric}
        rows.append(rows[0]._replace(**names, evidence=evidence))
    return rows


def words(rows) -> str:
    """All lines on how far the verdicts hold."""
    return "\n".join(f"{who}: {text}" for who, texts in envelope.lines(rows) for text in texts)


def printed(rows) -> str:
    """What the terminal shows, in a file."""
    out = io.StringIO()
    terminal.show(Console(file=out, width=180), Results(rows, MADE))
    return out.getvalue()


# ---- facts


@pytest.mark.parametrize(
    ("spans", "left"),
    [
        ([[1, 40]], []),
        ([[3, 4], [8, 8]], [[1, 2], [5, 7]]),
        ([[1, 4], [6, 9]], [[5, 5]]),
        ([[0, 4]], []),
    ],
)
def test_gaps_are_what_lies_between_and_below(spans, left):
    assert envelope.gaps(spans) == left


def test_a_power_of_two_is_seen_with_both_neighbours_in_part_or_not():
    assert envelope.powers([[7, 9], [16, 16], [63, 63], [127, 127]]) == {
        "whole": [8], "part": [16, 64, 128], "not": [32]
    }  # fmt: skip


def test_what_is_beyond_another_run_is_in_bands_that_it_did_not_reach():
    assert envelope.beyond([[1, 20], [33, 40]], [[1, 9]]) == [[16, 20], [33, 40]]
    assert envelope.beyond([[1, 20]], [[1, 30]]) == []
    assert envelope.beyond([[0, 1]], [[2, 3]]) == [[0, 1]]


def test_a_target_without_a_search_has_an_empty_envelope():
    assert envelope.by_target([PASS]) == {WHO: {}}


@pytest.mark.parametrize(
    "row",
    [
        PASS._replace(check="load", verdict="fail", status="error", case="", scope=""),
        PASS._replace(check="load", verdict="skipped", status="not_asked", case="", scope=""),
    ],
)
def test_a_target_that_was_not_examined_has_none(row):
    assert envelope.by_target([row]) == {}


def test_a_target_that_ended_early_has_none():
    assert envelope.by_target([PASS, PASS._replace(check="process", verdict="fail")]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"axes": {"keys": [[1, "x"]]}},
        {"axes": {"keys": [[1, 10**30]]}},
        {"calls": None},
        {"ranges": {"logits": ["nan", 1.0]}},
        {"rarest_race": 0},
        {"rarest_race": 1e-320},
        {"refused": {"a": 1}},
    ],
)
def test_an_envelope_that_cannot_be_read_counts_as_not_searched(change):
    rows = found(**change)
    assert envelope.by_target(rows) == {WHO: {}}
    assert explain.NOT_SEARCHED in printed(rows)


@pytest.mark.parametrize("spans", [[], [[5, 2]], [[0, 0]], [[9, 9], [1, 1]]])
def test_odd_spans_do_no_harm(spans):
    rows = found(axes=FOUND["axes"] | {"keys": spans})
    assert "seen right" in printed(rows)
    assert page.html([Run("x", Results(rows, MADE))])


# ---- in words


def test_a_pass_says_what_was_seen_right_and_what_was_not_looked_at():
    [(who, [right, rest])] = envelope.lines(found())
    assert who == WHO
    assert right == (
        "seen right in the search: 1 to 36 and 40 rows; 1 to 70 and some up to 1,020 queries; "
        "1 to 33 queries with a cache; 1 to 75 and 1,023 to 1,025 keys; n_embd 1 to 165 (4 values); "
        "1 to 3 and 8 layers; n_vocab 2, 61 and 1,000; 500 calls"
    )
    assert rest == (
        "not looked at in the search: more than 40 rows, 1,020 queries, 33 queries with a cache, "
        "1,025 keys, 8 layers; n_embd above 165, n_vocab above 1,000; extreme GELU inputs, means; "
        "what is wrong in fewer than 1 of 108 calls"
    )


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (found(scopes=("prefill", "generate")), "loss_and_grads (not offered)"),
        (found(scopes=("prefill",)), "generate and loss_and_grads (not offered)"),
        (found(taps=False), "single operations (no taps)"),
        ([row for row in found() if row.scope != "h*/mlp/gelu"], "h*/mlp/gelu alone (no tap)"),
        (found(n_refused=1), "1 model that it refused to load"),
        (found(n_refused=3), "3 models that it refused to load"),
        (found(outside=2), "2 trials in which the declared dtype may overflow"),
    ],
)
def test_what_could_not_be_asked_is_told(rows, text):
    assert text in words(rows)
    assert text not in words(found())


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([[5, 5]], "5 keys"),
        ([[1, 2], [4, 6]], "1, 2 and 4 to 6 keys"),
        ([[1, 9], [11, 11], [13, 13], [1023, 1024]], "1 to 9 and some up to 1,024 keys"),
        ([[1, 2], [4, 4], [6, 6], [8, 9]], "1 to 9 keys (6 values)"),
    ],
)
def test_an_axis_in_few_words(runs, text):
    assert explain.reach("keys", runs) == text


def test_without_a_search_nothing_beyond_the_listed_cases_is_claimed():
    assert envelope.lines([PASS]) == [("", [explain.NOT_SEARCHED])]
    others = [PASS, PASS._replace(implementation="other")]
    assert envelope.lines(others) == [("", [explain.NOT_SEARCHED])]


def test_one_target_that_was_not_searched_is_named():
    lines = dict(envelope.lines([*found(), PASS._replace(implementation="other")]))
    assert lines["other-cpu-float32"] == [explain.NOT_SEARCHED]
    assert len(lines[WHO]) == 2


def test_where_trials_failed_nothing_says_that_they_did_not_look():
    rows = found(search={"trials": 23, "failed": 3})
    assert "right in 20 of 23 trials of the search: " in words(rows)
    assert "not seen right in the search: more than 40 rows" in words(rows)
    assert "not looked at" not in words(rows)
    assert envelope.sections(rows)[0].header[-1] == "not seen right"


def test_where_everything_failed_nothing_was_seen_right():
    rows = found(search={"trials": 8, "failed": 8}, trials=0, calls=0, axes={}, rarest_race=1.0)
    assert words(rows) == f"{WHO}: nothing was seen right in 8 trials of the search"
    assert envelope.sections(rows)[0].axes == []


# ---- in the reports


def test_the_terminal_has_it_before_the_verdict():
    text = printed(found())
    assert text.index(f"- {WHO}: seen right in the search: 1 to 36") < text.index("  not looked at in")
    assert text.index("not looked at in") < text.index("PASS: ")
    assert f"- {explain.NOT_SEARCHED}\n" in printed([PASS])


def test_the_table_has_every_axis_magnitude_and_count():
    [section] = envelope.sections(found())
    table = {name: cells for name, *cells in section.axes}
    assert set(table) >= {"batch rows", *(set(FOUND["axes"]) - {"batch", "generate"}), *FOUND["ranges"]}
    assert table["batch rows"] == ["1 to 36, 40", "8, 16, 32 ± 1", "above 40; between: 37 to 39"]
    assert table["keys"][1] == "8, 16, 32, 64, 1024 ± 1; not 128, 256, 512"
    assert table["n_layer"][1] == "8 in part"
    assert table["GELU inputs"] == ["-26.5 to 27.2", "", "below -26.5; above 27.2"]
    assert table["residuals"][2] == "above 2.5e+03"
    assert table["trials and calls"][0] == "20 of 20 trials (seed 7, 3 s), 500 calls"
    assert table["largest model"][0] == "335,610 parameters"
    assert table["extreme weights in trials"][0] == "residuals 2"
    assert table["besides"][2] == "extreme GELU inputs, means"


def test_pairs_are_a_triangle_of_shares():
    pairs = envelope.sections(found())[0].pairs
    assert pairs.names == ["batch rows", "queries"]
    shown = [(name, [cell.text for cell in cells]) for name, cells in pairs.rows]
    # bands of batch: 1 to 32-63, 6; of queries: 1 to 64-127, 128-255, 512-1023, 9; of keys: 9
    assert shown == [("queries", ["30/54"]), ("keys", ["50/54", "40/81"])]
    assert [cell.shade for cell in pairs.rows[1][1]] == ["ok2", "ok1"]


def test_the_page_and_the_summary_have_the_table(tmp_path):
    rows = found(refused=["<b>no</b>: too wide"], n_refused=1)
    files.write(Results(rows, MADE), tmp_path)
    html, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert '<section id="envelope">' in html
    assert '<a href="#envelope">' in html
    assert html.count("1 to 36, 40</td>") == 1
    assert "&lt;b&gt;no&lt;/b&gt;: too wide" in html
    assert "<b>no</b>" not in html
    assert "| batch rows | 1 to 36, 40 | 8, 16, 32 ± 1 | above 40; between: 37 to 39 |" in markdown
    assert "  - not looked at in the search: more than 40 rows" in markdown


def test_page_summary_and_notebook_say_that_there_was_no_search(tmp_path):
    files.write(Results([PASS], MADE), tmp_path)
    assert explain.NOT_SEARCHED in (tmp_path / "report.html").read_text()
    assert f"- {explain.NOT_SEARCHED}" in (tmp_path / "report.md").read_text()
    assert explain.NOT_SEARCHED in notebook.html(Results([PASS], MADE))


def test_a_notebook_has_the_two_lines():
    html = notebook.html(Results(found(), MADE))
    assert "seen right in the search: 1 to 36 and 40 rows" in html
    assert "<br>not looked at in the search: more than 40 rows" in html


# ---- two runs


def test_a_comparison_tells_what_only_one_run_has_seen():
    less = FOUND["axes"] | {"keys": [[1, 75]], "n_layer": [[1, 13]]}
    before, after = found(), found(scopes=("prefill", "generate"), axes=less, taps=False)
    [line] = envelope.differences(before, after)
    assert line == (
        f"{WHO}: seen right only before: 1,023 to 1,025 keys, loss_and_grads, single operations; "
        "seen right only after: 4 to 7 layers"
    )
    [line] = envelope.differences(after, before)
    assert "seen right only after: 1,023 to 1,025 keys, loss_and_grads, single operations" in line


def test_extremes_that_only_one_run_reached_are_told():
    [line] = envelope.differences(
        found(), found(extremes={"gelu_inputs": 1, "residuals": 1, "means": 3})
    )
    assert line == f"{WHO}: seen right only after: extreme GELU inputs, means"


def test_equal_runs_and_runs_of_other_targets_have_no_difference():
    assert envelope.differences(found(), found()) == []
    assert envelope.differences(found(), found("other")) == []
    assert envelope.differences([PASS], [PASS]) == []


def test_a_run_without_a_search_is_told():
    assert envelope.differences(found(), [PASS]) == [f"{WHO}: searched before, not searched after"]
    assert envelope.differences([PASS], found()) == [f"{WHO}: not searched before, searched after"]


def test_the_line_is_in_all_forms_of_a_comparison(tmp_path):
    paths = []
    for name, rows in {"a": found("[b]x"), "b": [PASS._replace(implementation="[b]x")]}.items():
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        (paths[-1] / results.NAME).write_text(results.encode(Results(rows, MADE)))
    between = compare.compare(*paths)
    line = "[b]x-cpu-float32: searched before, not searched after"
    assert line in between.notes
    out = io.StringIO()
    terminal.show_comparison(Console(file=out, width=180), between)
    assert line in out.getvalue()
    assert line in compare.html(between)
    assert line.replace("[", "\\[").replace("]", "\\]") in compare.job_summary(between)


# ---- rows of a search in other tables


def test_the_scope_for_all_layers_is_no_layer():
    wrong = [
        PASS._replace(check="local", scope=f"h{i}/mlp/gelu", metric="rounding_units", value=99.0,
                      limit=16.0, verdict="fail", blame=f"h{i}/mlp/gelu")
        for i in range(2)
    ]  # fmt: skip
    [finding] = explain.findings([*wrong, *found()])[WHO]
    assert finding.where == "h*/mlp/gelu"


def test_the_heat_map_has_only_the_layers_of_the_model():
    local = PASS._replace(check="local", scope="h1/mlp/gelu", metric="rounding_units")
    heat = operations.heat([local, *found()])
    assert [name for name, _ in heat.rows] == ["embed", "h0", "h1", "ln_f", "logits"]
    assert operations.heat(found()) is None


def test_a_search_is_named_once():
    row = found()[1]
    assert explain.location(row) == "search embed"
    assert explain.location(PASS) == "logits seed logits"


# ---- a real one


def test_trials_that_may_overflow_are_counted_and_not_judged():
    search = Search(None, None)  # keep needs neither model nor plan
    trial = Trial(HParams(31, 5, 8, 2, 1), (Step(n=5),), ("gains",))
    search.keep(0, trial, Judged([], outside=True))
    assert (search.made, search.envelope.outside, search.envelope.trials) == (0, 1, 0)
    search.keep(1, trial, Judged([]))
    assert (search.made, search.envelope.outside, search.envelope.trials) == (1, 1, 1)
    assert search.envelope.as_json()["extremes"]["gains"] == 1


def test_a_real_search_is_told_and_fits_the_schema():
    verdict = gpt2_parity.verify("numpy", targets="cpu-float32", seed=7, only=["search"], search=0.5)
    assert verdict.passed
    [(who, seen)] = verdict.envelope().items()
    assert who == "numpy-cpu-float32"
    assert (seen["seed"], seen["seconds"], seen["made"], seen["failed"]) == (7, 0.5, seen["trials"], 0)
    assert seen["not_offered"] == ["loss_and_grads"]
    assert seen["untapped"] == []
    assert seen["calls"] >= seen["trials"] >= 2
    [(_, [right, rest])] = envelope.lines(verdict.rows)
    assert f"; {seen['calls']:,} calls" in right
    assert f"more than {seen['axes']['batch'][-1][1]:,} rows" in rest
    validator = jsonschema.Draft202012Validator(SCHEMA)
    document = json.loads(results.encode(verdict.results))
    validator.validate(document)
    evidence = next(row for row in document["rows"] if row["scope"] == "prefill")["evidence"]
    evidence["envelope"]["axes"]["keys"] = [[1]]
    assert not validator.is_valid(document)


def test_a_selection_without_the_search_is_not_searched():
    verdict = gpt2_parity.verify("numpy", targets="cpu-float32", seed=7, only=["lengths"], search=0.5)
    assert verdict.envelope() == {"numpy-cpu-float32": {}}
    assert envelope.lines(verdict.rows) == [("", [explain.NOT_SEARCHED])]
