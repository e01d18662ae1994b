"""How often an implementation's load() is called, and what RELOADS = "slow" leaves out."""

import json
import re
from collections import Counter

import pytest

from commands import module, parity
from examine import examined
from faults import Plain
from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.implementation import signatures
from gpt2_parity.report import durations, runs
from gpt2_parity.verdict import explain

LEFT_OUT = {
    "sizes": {"deep_model", "long_model"},
    "overflow": {"large_residuals", "large_logits"},
    "greedy": {"large_logits"},
}


class Counting(Plain):
    """Counts its loads, by sizes."""

    def __init__(self):
        super().__init__()
        self.loads = []

    def load(self, params, hparams, **target):
        self.loads.append(hparams.n_ctx)
        return super().load(params, hparams, **target)


class Slow(Counting):
    RELOADS = "slow"


@pytest.fixture(scope="module")
def states(prepared):
    found = {}
    for kind in (Counting, Slow):
        made = kind()
        found[kind] = made, examined(made, prepared, only={"seed"})
    return found


def test_auxiliary_models_are_loaded_once_each(states):
    """One of other sizes, a deep one, a long one, and three with large values, beside the model."""
    made, state = states[Counting]
    assert exit_code(state.rows) == 0
    assert len(made.loads) == 7
    assert {row.check for row in state.rows} >= {"greedy", "sizes"}  # which need the same ones


def test_slow_loads_are_three_and_what_is_left_out_is_said(states):
    made, state = states[Slow]
    assert exit_code(state.rows) == 0
    assert len(made.loads) == 3
    skipped = [row for row in state.rows if row.verdict == "skipped"]
    found = {check: {row.case for row in skipped if row.check == check} for check in LEFT_OUT}
    assert found == LEFT_OUT
    assert {row.check for row in skipped} == LEFT_OUT.keys()
    [note] = explain.notes(state.rows)
    assert 'not looked at, because RELOADS = "slow": ' in note
    for check, cases in LEFT_OUT.items():
        assert re.search(
            rf"{check} on [^;]*{', '.join(sorted(cases, reverse=check == 'overflow'))}", note
        )
    assert "was not loaded, because" in explain.detail(skipped[0])


def test_gradients_on_large_logits_are_left_out_too(states):
    check = CHECKS["gradients"]
    plan = next(iter(states[Counting][1].targets.values())).plan
    plan = plan._replace(offers=(*plan.offers, check.capability))
    whole, slow = (set(check.expected(plan._replace(reloads=each))) for each in ("", "slow"))
    assert {case for case, _, _ in whole - slow} == {"large_logits"}
    assert not slow - whole
    assert "second_model" in {case for case, _, _ in slow}


def test_nothing_else_is_left_out(states):
    """Every measurement of the whole run is there: measured, or said not to be."""
    keys = [
        Counter((row.case, row.check, row.scope, row.metric) for row in state.rows)
        for _, state in states.values()
    ]
    assert keys[0] == keys[1]


def test_a_check_of_the_slow_still_has_something_that_passes(states):
    rows = states[Slow][1].rows
    passed = {row.check for row in rows if row.verdict == "pass"}
    assert passed >= LEFT_OUT.keys()


@pytest.mark.parametrize("value", ["Slow", "fast", None, True, ["slow"]])
def test_another_value_of_reloads_is_refused(value):
    odd = type("Odd", (Plain,), {"RELOADS": value})()
    with pytest.raises(ContractBroken, match=re.escape(f'RELOADS is {value!r}; expected "slow"')):
        signatures.check(odd, CAPABILITIES)
    signatures.check(Slow(), CAPABILITIES)


def test_calls_and_seconds_of_load_are_in_results_and_report(tmp_path, prepared):
    path, out = module(tmp_path, "mine", 'RELOADS = "slow"\n'), tmp_path / "out"
    done = parity("gate", path, "--target", "cpu-float32", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "results.json").read_text())["environment"]["loads"]
    assert found["mine-cpu-float32"]["calls"] == 3
    assert found["mine-cpu-float32"]["seconds"] > 0
    for text in (done.stdout, (out / "report.md").read_text().replace("\\", "")):
        assert 'mine-cpu-float32: not looked at, because RELOADS = "slow"' in text
    page = (out / "report.html").read_text()
    assert "not looked at, because RELOADS" in page
    table = durations.durations(runs.read([out]))
    assert table.columns[-1] == "of that, loads"
    assert re.fullmatch(r"3 in [\d.e-]+ s", table.rows[0][1][-1].text)
    assert table.rows[0][1][-1].text in page


@pytest.mark.parametrize("odd", [3, {"a": 1}, {"a": {"calls": "many"}}, {"a": {}}])
def test_odd_loads_of_others_are_left_out(odd):
    assert durations.loads_of({"loads": odd}) == {}
