"""Comparing two runs: worse, slower or missing measurements are regressions; chance is not."""

import json
import random
from collections import Counter

import pytest
from scipy import stats

from commands import parity
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.report import compare, results
from gpt2_parity.report.compare import Ratio
from gpt2_parity.report.runs import BENCH
from test_report import Page, row, timing

MODEL = {"model": "m", "checkpoint_sha256": {"a": "1"}, "seed": 1}
PASS = row(value=1.0, ratio=0.125, verdict="pass", blame="")


def save(folder, rows=None, bench=None, **environment):
    """A folder with a run in it."""
    folder.mkdir(parents=True)
    made = MODEL | environment
    if rows is not None:
        document = {"schema": 2, "environment": made, "rows": [found._asdict() for found in rows]}
        (folder / results.NAME).write_text(json.dumps(document))
    if bench is not None:
        made = {"machine": "one", "threads": 2} | made
        (folder / BENCH).write_text(json.dumps({"schema": 1, "environment": made, "rows": bench}))
    return folder


def against(tmp_path, before, after):
    return compare.compare(save(tmp_path / "a", **before), save(tmp_path / "b", **after))


def kinds(found):
    return [change.kind for change in found.changes]


@pytest.mark.parametrize(
    ("before", "after", "kind", "regressed"),
    [
        ([PASS], [PASS], [], False),
        ([PASS], [row()], ["worse"], True),
        ([row()], [PASS], ["better"], False),
        ([row()], [row(value=90.0)], [], False),
        ([PASS], [PASS._replace(verdict="inconclusive")], ["worse"], True),
        ([PASS, PASS._replace(scope="s")], [PASS], ["gone"], True),
        ([PASS], [PASS, PASS._replace(scope="s")], ["new"], False),
        ([PASS], [PASS, row(scope="s")], ["worse"], True),
        ([PASS], [PASS, PASS._replace(implementation="y")], ["new"], False),
        ([PASS], [PASS, row(implementation="y")], ["worse"], True),
        ([PASS, PASS._replace(implementation="y")], [PASS], ["gone"], True),
        ([PASS], [], ["gone"], True),
        ([PASS], [PASS, row()], ["worse"], True),
        ([PASS], [PASS._replace(value=7.9, ratio=0.99)], [], False),
    ],
)
def test_verdicts_are_compared_one_by_one(tmp_path, before, after, kind, regressed):
    found = against(tmp_path, {"rows": before}, {"rows": after})
    assert (kinds(found), found.regressed) == (kind, regressed)


def test_what_introduces_an_error_stands_before_what_inherits_it(tmp_path):
    rows = [PASS._replace(check=check) for check in ("logits", "local", "lengths")]
    wrong = [row(check=found.check) for found in rows]
    found = against(tmp_path, {"rows": rows}, {"rows": wrong})
    assert [change.where.split()[0] for change in found.changes] == ["local", "logits", "lengths"]


def wrong_epsilon(name):
    """A right and a wrong run of one implementation: its layer norms fail, and the logits inherit it."""
    mistake, explained = "layer_norm_epsilon", {"explained": {"before": 90.0, "after": 1.0}}
    right = [PASS._replace(implementation=name, case=f"c{i}") for i in range(50)]
    wrong = [row(implementation=name, case=f"c{i}", blame="h0/ln_1") for i in range(50)]
    for scope in ("h0/ln_1", "h1/ln_1", "h0/mlp/gelu", "h1/mlp/gelu"):
        local = {"implementation": name, "check": "local", "scope": scope, "metric": "rounding_units"}
        right.append(PASS._replace(**local))
        bad = row(value=90.0, blame=scope, mistake=mistake, evidence=explained, **local)
        wrong.append(bad if scope.endswith("ln_1") else right[-1])
    return right, wrong


def test_changes_of_one_cause_are_told_once_over_layers_checks_and_targets(tmp_path):
    (right, wrong), (right_too, wrong_too) = wrong_epsilon("x"), wrong_epsilon("y")
    before = save(tmp_path / "a", rows=right + right_too)
    after = save(tmp_path / "b", rows=wrong + wrong_too)
    done = parity("compare", before, after, "--out", tmp_path / "out")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert lines[0] == "104 measurements of x-cpu-float32, y-cpu-float32 newly fail:"
    assert lines[1].startswith("h*/ln_1 introduces an error")
    assert len(lines) < 10
    assert lines[-1] == "REGRESSION: 104 worse, 4 unchanged"
    everything = parity("compare", before, after, "--all").stdout
    assert everything.count("✘ worse") == 104
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert markdown.count("| ✘ worse |") == 104  # for machines: every change
    assert "newly fail" in markdown
    assert "h*/ln_1 introduces an error" in Page((tmp_path / "out" / "compare.html").read_text()).words
    back = parity("compare", after, before)
    assert back.returncode == 0
    assert "no longer fail; before:" in back.stdout.splitlines()[0]


def test_a_cause_hides_nothing_that_it_does_not_explain(tmp_path):
    right, wrong = wrong_epsilon("x")
    gone = [PASS._replace(case=f"gone{i}", check="batch") for i in range(5)]
    tie = PASS._replace(case="tie", check="greedy")
    before = {"rows": [*right, *gone, tie]}
    found = against(tmp_path, before, {"rows": [*wrong, tie._replace(verdict="inconclusive")]})
    assert [(cause.n, len(cause.texts)) for cause in found.causes] == [(52, 2)]
    assert Counter(change.kind for change in found.others) == {"gone": 5, "worse": 1}
    told = compare.condensed(found.others)
    assert [(change.kind, change.where) for change in told] == [
        ("worse", "greedy tie logits noise_units"),
        ("gone", "batch: 5 measurements"),
    ]


def test_what_moves_within_its_limit_is_shown_as_drift(tmp_path):
    after = PASS._replace(value=4.0, ratio=0.5)
    found = against(tmp_path, {"rows": [PASS]}, {"rows": [after]})
    assert [(d.check, d.n, d.ratio) for d in found.drifts] == [("logits", 1, 4.0)]
    assert found.same == 1


@pytest.mark.parametrize("change", [{"model": "n"}, {"checkpoint_sha256": {"a": "2"}}])
def test_runs_of_different_models_are_not_compared(tmp_path, change):
    with pytest.raises(CannotJudge, match="not comparable"):
        against(tmp_path, {"rows": [PASS]}, {"rows": [PASS], **change})
    with pytest.raises(CannotJudge, match="not comparable"):
        compare.compare(
            save(tmp_path / "c", bench=[timing()]), save(tmp_path / "d", bench=[timing()], **change)
        )


def times(scale, n=12, seed=0):
    draw = random.Random(seed)
    found = [scale * draw.lognormvariate(0, 0.03) for _ in range(n)]
    return timing(samples=found, median=sorted(found)[n // 2])


CRASHED = timing(verdict="crashed", samples=[], median=None)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (times(1.0), times(1.3, seed=1), ["slower"]),
        (times(1.0), times(0.7, seed=1), ["faster"]),
        (times(1.0), times(1.0, seed=1), []),
        (times(1.0), times(1.01, n=60, seed=1), []),  # sure, and not worth anybody's time
        (times(1.0, n=3), times(9.0, n=3, seed=1), ["cannot tell"]),
        (times(1.0), times(9.0, n=1, seed=1), ["cannot tell"]),
        (times(1.0) | {"unit": "bytes"}, times(1.3, seed=1) | {"unit": "bytes"}, ["larger"]),
        (times(1.0), timing(verdict="wrong output", samples=[], median=None), ["worse"]),
        (CRASHED, times(1.0), ["better"]),
        (CRASHED, CRASHED, []),
    ],
)  # fmt: skip
def test_times_are_compared_as_far_as_the_samples_allow(tmp_path, before, after, kind):
    found = against(tmp_path, {"bench": [before]}, {"bench": [after]})
    assert kinds(found) == kind
    assert found.regressed == (kind in (["slower"], ["larger"], ["worse"]))


def test_speed_on_another_machine_is_shown_and_not_judged(tmp_path):
    slower = {"bench": [times(2.0, seed=1)], "machine": "another"}
    found = against(tmp_path, {"bench": [times(1.0)]}, slower)
    assert (kinds(found), found.regressed) == (["changed"], False)
    assert "not judged" in found.notes[0]


def test_a_benchmark_that_is_missing_is_gone(tmp_path):
    found = against(tmp_path, {"rows": [PASS], "bench": [timing()]}, {"rows": [PASS]})
    assert (kinds(found), found.regressed) == (["gone"], True)
    with pytest.raises(CannotJudge, match="one is a verification"):
        compare.compare(save(tmp_path / "c", rows=[PASS]), save(tmp_path / "d", bench=[timing()]))


@pytest.mark.parametrize("sizes", [(2, 3), (5, 7), (12, 9), (25, 25)])
def test_the_rank_test_is_mann_and_whitneys(sizes):
    draw = random.Random(sizes[0])
    a, b = ([draw.lognormvariate(0.1 * i, 0.2) for _ in range(n)] for i, n in enumerate(sizes))
    found = Ratio.of(a, b)
    assert found.p == pytest.approx(stats.mannwhitneyu(a, b, method="exact").pvalue)
    assert found.low <= found.middle <= found.high
    if found.least_p <= compare.ALPHA:  # the interval and the test agree on whether 1 is possible
        assert (found.p <= compare.ALPHA) == (not found.low <= 1 <= found.high)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    draw = random.Random(1)
    hits = 0
    for _ in range(1000):
        a, b = ([draw.lognormvariate(shift, 0.1) for _ in range(8)] for shift in (0, 0.05))
        found = Ratio.of(a, b)
        hits += found.low <= 1.0512711 <= found.high
    assert 980 <= hits <= 999  # 990 expected, 3.1 its standard deviation; never all


def test_the_command_tells_in_three_ways_and_exits_1_on_a_regression(tmp_path):
    one = save(tmp_path / "a", rows=[PASS], bench=[times(1.0)])
    two = save(
        tmp_path / "b", rows=[row(evidence={"note": "<script>|"})], bench=[times(1.5, seed=1)], seed=2
    )
    done = parity("compare", one, two, "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    page = Page((tmp_path / "out" / "compare.html").read_text())
    markdown = (tmp_path / "out" / "compare.md").read_text()
    for text in (done.stdout, page.words, markdown):
        assert "1 worse, 1 slower, 0 unchanged" in text
        assert "The seeds differ" in text
    assert [cells[0] for cells in page.tables["changes"][1:]] == ["✘ worse", "✘ slower"]
    assert [cells[0] for cells in page.tables["others"][1:]] == ["✘ slower"]  # no cause explains it
    assert page.tags["script"] == 0
    assert "<script>" not in markdown
    assert parity("compare", one, one).returncode == 0
    assert parity("compare", one / results.NAME, one / results.NAME).returncode == 0  # a saved baseline
    assert parity("compare", one, tmp_path / "nowhere").returncode == 2
