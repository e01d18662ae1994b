"""The judge fails closed: only a measurement within its limit passes."""

import math

import pytest

from gpt2_parity.checks.greedy import CAPABILITY as GENERATE
from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.limits import limit_of, near_tie
from gpt2_parity.contract.plan import CHECKPOINT, QUANTIZED, Asked, CaseShape, Plan
from gpt2_parity.contract.rows import Measurement, exit_code
from gpt2_parity.reference import rounding
from gpt2_parity.reference.rounding import NARROW, WIDE
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.judge import Judge, expected

HPARAMS = HParams(n_vocab=10, n_ctx=8, n_embd=4, n_head=2, n_layer=1)
PLAN = Plan(HPARAMS, (CaseShape("one", 2, 8, 3),), ("embed", "ln_f"), (GENERATE,))


def perfect():
    return [
        (check, Measurement(*key, value=0.0)) for check, keys in expected(PLAN).items() for key in keys
    ]


def rows(measured, errors=None, lost="", plan=PLAN):
    return Judge("x", Target("cpu", "float32"), "micro").rows(plan, measured, errors or {}, lost)


def swap(measured, value, check="logits", **change):
    """The measurements with the first one of a check replaced."""
    i = next(i for i, (name, _) in enumerate(measured) if name == check)
    changed = measured[i][1]._replace(value=value, **change)
    return [*measured[:i], (check, changed), *measured[i + 1 :]]


def test_perfect_measurements_pass():
    found = [row for row in rows(perfect()) if row.verdict != "unlocalised"]
    assert {row.verdict for row in found} == {"pass"}
    assert exit_code(found) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 8.1])
def test_nan_infinity_and_more_than_the_limit_fail(value):
    found = rows(swap(perfect(), value))
    assert [row.verdict for row in found].count("fail") == 1
    assert exit_code(found) == 1


def test_the_limit_itself_passes_and_reports_its_share():
    row = rows(swap(perfect(), 8.0))[0]
    assert (row.verdict, row.ratio, row.limit) == ("pass", 1.0, 8.0)


def test_nothing_measured_fails_everything():
    found = [row for row in rows([]) if row.verdict != "unlocalised"]
    assert {row.verdict for row in found} == {"fail"}


def test_no_rows_are_no_pass():
    assert exit_code([]) == 2


def test_a_measurement_short_fails_with_its_name():
    found = [row for row in rows(perfect()[1:]) if row.verdict == "fail"]
    assert [(row.case, row.scope, row.metric) for row in found] == [("one", "logits", "noise_units")]


def test_names_match_exactly():
    found = [row for row in rows(swap(perfect(), 0.0, scope="Logits")) if row.verdict == "fail"]
    assert {row.scope for row in found} == {"logits", "Logits"}


def test_measured_twice_fails():
    assert exit_code(rows([*perfect(), perfect()[0]])) == 1


def test_an_error_after_the_last_measurement_still_fails():
    found = rows(perfect(), errors={"logits": "late"})
    assert [explain.detail(row) for row in found if row.verdict == "fail"] == ["late"]


def test_what_never_came_is_no_evidence_against_a_mechanism():
    """If every call is refused for the same reason, determinism is not at fault."""
    every = [check for check, keys in expected(PLAN).items() if keys]
    nothing = rows([], errors=dict.fromkeys(every, "logits is a list"))
    assert {row.blame for row in nothing if row.verdict == "fail" and row.check == "greedy"} == {
        "logits"
    }
    alone = [(check, m) for check, m in perfect() if check != "kv_cache"]
    broken = rows(alone, errors={"kv_cache": "refused"})  # where there is no other
    assert {row.blame for row in broken if row.verdict == "fail"} == {"cache"}
    lacking = [(check, m) for check, m in perfect() if check != "determinism"]
    wrong = rows(swap(lacking, 99.0, check="causality"), errors={"determinism": "refused"})
    assert {row.blame for row in wrong if row.verdict == "fail"} == {"causality"}


@pytest.mark.parametrize(
    ("first", "blamed"),
    [("teacher_forced", "logits"), ("free_running", "cache"), ("generate", "generate")],
)
def test_greedy_decoding_is_blamed_on_where_it_goes_wrong_first(first, blamed):
    scopes = ("teacher_forced", "free_running", "generate")
    wrong = {(scope, "wrong_tokens") for scope in scopes[scopes.index(first) :]}
    found = rows([(check, m._replace(value=float(m[1:3] in wrong))) for check, m in perfect()])
    assert {row.blame for row in found if row.verdict == "fail"} == {blamed}
    none_came = rows([(check, m) for check, m in perfect() if m[1:3] not in wrong])
    assert {row.blame for row in none_came if row.verdict == "fail"} == {blamed}


@pytest.mark.parametrize(("wrong", "blamed"), [({"long"}, "lengths"), ({"long", "short"}, "logits")])
def test_lengths_are_at_fault_only_where_nothing_shorter_is_wrong(wrong, blamed):
    shapes = (CaseShape("long", 1, 8, 0), CaseShape("short", 1, 4, 0), CaseShape("tiny", 1, 1, 0))
    plan = PLAN._replace(cases=shapes)
    measured = [
        (check, Measurement(*key, value=99.0 * (key[0] in wrong and check in ("logits", "lengths"))))
        for check, keys in expected(plan).items()
        for key in keys
    ]
    assert {row.blame for row in rows(measured, plan=plan) if row.verdict == "fail"} == {blamed}


def test_logits_whose_input_was_not_tapped_say_so():
    found = rows([(check, m) for check, m in perfect() if (check, m.scope) != ("local", "logits")])
    assert {row.evidence["reason"] for row in found if row.verdict == "fail"} == {"input_not_tapped"}


def test_a_loss_is_named_in_every_missing_row():
    found = [row for row in rows(perfect()[:3], lost="was killed by SIGSEGV") if row.verdict == "fail"]
    assert len(found) == len(perfect()) - 3
    assert all("SIGSEGV" in explain.detail(row) for row in found)


def test_inconclusive_is_neither_pass_nor_fail():
    measured = [
        (check, m._replace(conclusive=False) if check == "greedy" else m) for check, m in perfect()
    ]
    found = rows(measured)
    assert {row.verdict for row in found if row.metric == "wrong_tokens"} == {"inconclusive"}
    all_open = [row for row in found if row.metric != "near_ties"]
    assert exit_code(all_open) == 2  # a check left wholly open has not passed


def test_missing_taps_are_told():
    silent = [row.scope for row in rows(perfect()) if row.verdict == "unlocalised"]
    assert "h0/ln_1" in silent
    assert "embed" not in silent


def test_rows_of_the_embedding_that_were_not_looked_up_are_told():
    """Through a small black box every token goes; through a large one that would take long."""

    def of_weights(taps, n_vocab):
        plan = PLAN._replace(taps=taps, hparams=HPARAMS._replace(n_vocab=n_vocab))
        found = rows([], plan=plan)
        return [explain.detail(r) for r in found if (r.check, r.verdict) == ("weights", "unlocalised")]

    assert of_weights(("embed", "ln_f"), 10**6) == []
    assert of_weights(("ln_f",), 10) == []
    (detail,) = of_weights(("ln_f",), 10**6)
    assert "wte and wpe" in detail


@pytest.mark.parametrize("taps", [PLAN.taps, ()])
def test_every_metric_has_a_limit_with_a_reason(taps):
    for check, keys in expected(PLAN._replace(taps=taps, offers=CAPABILITIES)).items():
        for _, scope, metric in set(keys):
            limit = limit_of(CHECKS[check].limits, scope, metric, "float32")
            assert len(limit.reason) > 40, (check, metric)


def test_limits_below_float32_are_no_looser_and_have_reasons_of_their_own():
    limits = CHECKS["local"].limits
    for kind, single in WIDE.items():
        for dtype in ("bfloat16", "float16"):
            narrow = rounding.LIMITS.of(kind, dtype)
            assert narrow.most <= single.most
            assert limit_of(limits, "h0/mlp/gelu", "rounding_units_decode", dtype) == NARROW["gelu"]
            assert narrow == single or narrow.reason != single.reason
        assert rounding.LIMITS.of(kind, "float32") == rounding.LIMITS.of(kind, "float64") == single


def test_no_limit_without_a_measurement():
    used = {
        (check, key[2].removesuffix("_decode"))
        for taps, weights in ((("embed", "h0", "ln_f"), CHECKPOINT), ((), QUANTIZED))
        for check, keys in expected(
            PLAN._replace(taps=taps, offers=CAPABILITIES, weights=weights, asked=Asked(search=1))
        ).items()
        for key in keys
    }
    assert {(check.name, metric) for check in CHECKS.values() for metric in check.limits} <= used


def test_a_metric_without_a_limit_cannot_be_judged():
    assert limit_of(CHECKS["logits"].limits, "logits", "cosine", "float32") is None
    [row] = [r for r in rows([*perfect(), ("logits", Measurement("one", "logits", "cosine", 1.0))])
             if r.metric == "cosine"]  # fmt: skip
    assert row.verdict == "fail"


def test_near_ties_scale_with_noise_only():
    assert near_tie(2.0) == 2 * near_tie(1.0) > 0


def test_a_check_that_expects_the_same_twice_is_refused(monkeypatch):
    key = ("one", "logits", "noise_units")
    doubled = CHECKS["logits"]._replace(expected=lambda plan: [key, key])
    monkeypatch.setitem(CHECKS, "logits", doubled)
    with pytest.raises(ValueError, match="twice"):
        expected(PLAN)
