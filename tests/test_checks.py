"""Every check passes on what is right and fails on a fault; none passes on nothing."""

import numpy as np
import pytest
from examine import examine
from faults import FAULTS, SPECIMEN, Fault, plant, source

from harness.checks import CHECKS
from harness.contract import Target, tap_names
from harness.discover import find
from harness.judge import exit_code

QUICK = {"seed", "batch", "full_context"}  # cases enough to trip every fault


def failed(rows):
    return {row.check for row in rows if row.verdict == "fail"}


def test_the_specimen_as_it_is_passes_everything(prepared):
    rows = examine(find("numpy").load(), prepared)
    assert failed(rows) == set()
    assert {row.check for row in rows if row.verdict == "pass"} == set(CHECKS)
    assert exit_code(rows) == 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_trips_its_checks(fault: Fault, prepared, tmp_path):
    rows = examine(plant(fault, tmp_path), prepared, only=QUICK)
    assert failed(rows) >= fault.trips
    assert exit_code(rows) == 1
    if fault.first:
        wrong = {row.scope for row in rows if row.check == "activations" and row.verdict == "fail"}
        assert next(name for name in tap_names(4) if name in wrong) == fault.first


def test_every_check_has_a_fault_that_trips_it():
    assert set().union(*(fault.trips for fault in FAULTS)) == set(CHECKS)


def test_a_fault_that_does_not_apply_is_an_error():
    with pytest.raises(ValueError, match="0 times"):
        source(FAULTS[0], SPECIMEN.read_text().replace("tanh", "erf"))


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_compares_nothing_fails(name, prepared, monkeypatch):
    monkeypatch.setattr(CHECKS[name], "measure", lambda subject, plan: iter(()))
    rows = examine(find("numpy").load(), prepared, only=QUICK)
    assert failed(rows) == {name}
    assert all("missing" in row.detail for row in rows if row.verdict == "fail")


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_breaks_off_fails_and_the_others_are_kept(name, prepared, monkeypatch):
    original = CHECKS[name].measure

    def measure(subject, plan):
        yield next(iter(original(subject, plan)))
        raise RuntimeError("broke off")

    monkeypatch.setattr(CHECKS[name], "measure", measure)
    rows = examine(find("numpy").load(), prepared, only=QUICK)
    assert failed(rows) == {name}
    assert any("broke off" in row.detail for row in rows if row.verdict == "fail")


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_expects_something_of_micro_and_says_what_it_establishes(name, prepared):
    rows = [row for row in examine(find("numpy").load(), prepared, only=QUICK) if row.check == name]
    assert rows
    assert (CHECKS[name].__doc__ or "").splitlines()[0].endswith((".", ","))


def wrapped(forward, **extra):
    """The NumPy specimen with another forward, as a namespace that looks like its module."""
    from types import SimpleNamespace

    real = find("numpy").load()
    names = ("targets", "load", "numpy", "generate", "TAPS")
    chosen = {name: getattr(real, name) for name in names} | {"__name__": "wrapped"} | extra
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return SimpleNamespace(**chosen, forward=lambda *args, **kw: forward(real.forward, *args, **kw))


def test_short_logits_fail_by_shape(prepared):
    def last_only(real, model, tokens, past=None, tap=None):
        logits, present = real(model, tokens, past, tap)
        return logits[:, -1:], present

    rows = examine(wrapped(last_only), prepared, only=QUICK)
    assert "logits" in failed(rows)
    assert any("the contract says" in row.detail for row in rows)


def test_a_tap_of_an_unknown_name_fails(prepared):
    def renamed(real, model, tokens, past=None, tap=None):
        other = tap and (lambda name, value: tap(name.replace("h1/", "h01/"), value))
        return real(model, tokens, past, other)

    rows = examine(wrapped(renamed), prepared, only=QUICK)
    assert {"activations", "taps"} <= failed(rows)
    assert any("'h01/ln_1' is not in the contract" in row.detail for row in rows)


def test_a_black_box_is_judged_by_its_answer_and_says_what_was_not_localised(prepared):
    def silent(real, model, tokens, past=None, tap=None):
        return real(model, tokens, past)

    rows = examine(wrapped(silent, TAPS=None, generate=None), prepared)
    assert failed(rows) == set()
    silent_taps = {row.scope for row in rows if row.verdict == "unlocalised"}
    assert silent_taps == set(tap_names(4))
    assert exit_code(rows) == 0


def test_a_tap_that_comes_only_sometimes_fails(prepared):
    def fickle(real, model, tokens, past=None, tap=None):
        some = tap and (lambda name, x: tap(name, x) if tokens.shape[0] == 1 or name != "ln_f" else None)
        return real(model, tokens, past, some)

    rows = examine(wrapped(fickle, TAPS=None), prepared)
    missing = {(row.case, row.scope) for row in rows if row.verdict == "fail"}
    assert missing == {("batch", "ln_f"), ("fresh", "ln_f")}


def test_a_promise_of_unknown_taps_fails(prepared):
    rows = examine(wrapped(lambda real, *args: real(*args), TAPS=["h9/ln_1"]), prepared)
    assert [row.verdict for row in rows] == ["fail"]
    assert "h9/ln_1" in rows[0].detail


def test_memorised_golden_logits_do_not_pass(prepared):
    """Right answers for every golden case, without computing anything: the fresh case finds out."""
    known = {record.tokens.tobytes(): record.logits for record in prepared.records[:-1]}

    def parrot(real, model, tokens, past=None, tap=None):
        logits, present = real(model, np.zeros_like(tokens), past, tap)
        return known.get(tokens.tobytes(), logits).astype(np.float32), present

    rows = examine(wrapped(parrot), prepared)
    assert any(row.case == "fresh" and row.verdict == "fail" for row in rows if row.check == "logits")


def test_an_unloadable_target_fails(prepared):
    rows = examine(find("numpy").load(), prepared, Target("cpu", "bfloat16"))
    assert [(row.check, row.verdict) for row in rows] == [("load", "fail")]
    assert "bfloat16" in rows[0].detail
