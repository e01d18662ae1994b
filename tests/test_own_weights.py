"""weights(model): a model is judged by the weights it multiplies with, and the verdict says so."""

import numpy as np
import pytest

from examine import examine
from faults import BLACK_BOX, Plain
from faults.own_weights import int8, those_of
from gpt2_parity.checks.bad_tokens import questions
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.dtypes import round_nearest
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.plan import CaseShape, Plan
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.implementation import own_weights, signatures
from gpt2_parity.mistakes.products import quantised
from gpt2_parity.reference import grids, oracle
from gpt2_parity.reference.distance import log_softmax
from gpt2_parity.report import results
from gpt2_parity.verdict import explain

SOME = {"seed", "batch"}
DECLARED = {"converted": int8, "weights": those_of, "WEIGHTS": "quantized"}


@pytest.fixture(scope="module")
def declared(prepared):
    return examine(Plain.with_("q8", **DECLARED), prepared, only=SOME)


def test_honest_int8_passes_by_its_own_weights(declared):
    assert [row for row in declared if row.verdict == "fail"] == []
    assert {row.check for row in declared} >= {"local", "logits", "sizes", "overflow", "own_weights"}


def test_the_verdict_says_that_they_are_not_the_checkpoints(declared):
    [note] = explain.notes(declared)
    assert note.startswith(
        "q8-cpu-float32 computes its own weights rightly; they are not the checkpoint's"
    )
    assert "16 arrays differ (16: 8 bits, one scale for each group of 32 inputs)" in note
    assert results.headline(declared).endswith(
        "; by its own weights, not the checkpoint's: q8-cpu-float32"
    )


def test_what_they_cost_is_measured_against_the_checkpoint(declared, prepared):
    """The same figures from the oracle, with the same weights."""
    checkpoint = prepared.checkpoint
    own = int8(checkpoint.params, checkpoint.hparams, "float32")
    records = [record for record in prepared.records if record.name in SOME]
    kl, changed, both = [], [], []
    for record in records:
        got = oracle.forward(own, checkpoint.hparams, record.tokens)
        p, q = log_softmax(record.logits), log_softmax(got)
        kl.append((np.exp(p) * (p - q)).sum(-1).ravel())
        changed.append((p.argmax(-1) != q.argmax(-1)).ravel())
        text = np.concatenate([record.tokens, record.arrays["greedy"]], axis=1)
        both.append([nll(params, checkpoint.hparams, text) for params in (own, checkpoint.params)])
    costs = {row.metric: row for row in declared if row.case == "all_cases"}
    assert costs["kl_nats"].value == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)
    assert costs["kl_nats"].evidence["greatest"] == pytest.approx(np.concatenate(kl).max(), rel=1e-3)
    assert costs["top1_changed_share"].value == pytest.approx(np.concatenate(changed).mean())
    mine, right = (np.exp(np.concatenate([pair[i] for pair in both]).mean()) for i in range(2))
    assert costs["perplexity"].value == pytest.approx(mine, rel=1e-5)
    assert costs["perplexity"].evidence["of_the_checkpoint"] == pytest.approx(right, rel=1e-9)
    assert mine != pytest.approx(right, rel=1e-5)


def nll(params, hparams, text):
    logs = log_softmax(oracle.forward(params, hparams, text)[:, :-1])
    return -np.take_along_axis(logs, text[:, 1:, None], -1).ravel()


def test_they_are_judged_even_where_nothing_is_tapped(prepared):
    rows = examine(Plain.with_("box", **DECLARED, **BLACK_BOX), prepared, only=SOME)
    assert exit_code(rows) == 0
    assert "not the checkpoint's" in explain.notes(rows)[0]


def test_undeclared_they_are_a_failure_that_names_the_grid(prepared):
    rows = examine(Plain.with_("q8", converted=int8, weights=those_of), prepared, only=SOME)
    [found] = explain.findings(rows)["q8-cpu-float32"]
    assert found.where == "weights"
    assert "8 bits, one scale for each group of 32 inputs" in found.text
    assert 'declare WEIGHTS = "quantized"' in found.text
    assert not [row for row in rows if row.check == "local" and row.verdict == "fail"]
    assert [row for row in rows if row.check == "logits" and row.verdict == "fail"]


def test_the_checkpoints_own_need_no_declaration(prepared):
    rows = examine(Plain.with_("same", weights=those_of), prepared, only=SOME)
    assert exit_code(rows) == 0
    assert explain.notes(rows) == []
    assert "own weights" not in results.headline(rows)


def load_fails(prepared, answer):
    module = Plain.with_("bad", weights=lambda self, model: answer(dict(model.params)))
    [row] = [row for row in examine(module, prepared, only=SOME) if row.check == "load"]
    return row.evidence["error"]


def one_less(params):
    del params["h0/mlp/c_fc/w"]
    return params


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (one_less, "weights(model) lacks h0/mlp/c_fc/w (1 names)"),
        (lambda p: p | {"lm_head": p["wte"]}, "weights(model) has unknown lm_head (1 names)"),
        (lambda p: p | {"wpe": p["wpe"].T}, "weights(model)['wpe'] is float32 array (128, 256)"),
        (lambda p: p | {"wpe": p["wpe"] * np.nan}, "weights(model)['wpe'] is not finite"),
        (lambda p: p | {"wpe": p["wpe"].astype(int)}, "weights(model)['wpe'] is int64 array"),
        (lambda p: list(p), "weights(model) returned list, the contract says arrays by name"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_by_name(prepared, answer, text):
    assert text in load_fails(prepared, answer)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"WEIGHTS": "int8"}, "WEIGHTS is 'int8'; expected \"quantized\""),
        ({"WEIGHTS": "quantized"}, "so it must have weights(model)"),
        ({"weights": lambda self: {}}, "cannot be called as weights(model)"),
    ],
)
def test_a_declaration_is_checked(members, text):
    with pytest.raises(ContractBroken) as raised:
        signatures.check(type("Odd", (Plain,), members)(), CAPABILITIES)
    assert text in str(raised.value)


def test_it_is_asked_for_no_bad_tokens(prepared):
    [weights] = [each for each in CAPABILITIES if each.name == "weights"]
    plan = Plan(prepared.hparams, (CaseShape("seed", 1, 9, 0),), (), (weights,))
    assert not [scope for scope in questions(plan) if scope.endswith("weights")]


def test_what_the_dtype_rounds_is_no_difference(prepared):
    params = {name: np.asarray(w) for name, w in prepared.checkpoint.params.items()}
    rounded = {name: round_nearest(w, "bfloat16") for name, w in params.items()}
    assert not own_weights.differ(rounded, params, "bfloat16")
    assert own_weights.differ(rounded, params, "float16")


CHOICES = [
    {},
    {"axis": 0},
    {"axis": 1},
    {"axis": 0, "group": 32},
    {"axis": 0, "group": 64, "half": True},
]
NAMES = [("tensor", 0), ("column", 0), ("row", 0), ("group", 32), ("group", 64)]


@pytest.mark.parametrize(("most", "bits"), [(127, 8), (127.5, 8), (7, 4), (1, 2)])
@pytest.mark.parametrize(("choice", "name"), list(zip(CHOICES, NAMES, strict=True)), ids=str)
def test_a_grid_is_recognised(prepared, most, bits, choice, name):
    """axis 0 of quantised is that along which one scale holds: a column's."""
    w = np.asarray(prepared.checkpoint.params["h1/mlp/c_fc/w"])
    assert grids.grid_of(w) is None
    assert grids.grid_of(round_nearest(w, "float16")) is None
    found = grids.grid_of(quantised(w, most, **choice).astype(np.float32))
    assert found == grids.Grid(bits, *name)


def test_a_grid_may_have_an_offset():
    w = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    low, step = w.min(0), np.ptp(w, axis=0) / 15
    assert grids.grid_of((low + np.round((w - low) / step) * step).astype(np.float32)) == grids.Grid(
        4, "column"
    )


def test_an_exchanged_row_is_no_quantising(prepared):
    w = np.asarray(prepared.checkpoint.params["h1/mlp/c_fc/w"])
    turned = w.copy()
    turned[[3, 90]] = w[[90, 3]]
    assert own_weights.relative_difference(turned, w) > own_weights.DIFFERENCE.most
    assert own_weights.relative_difference(quantised(w, 7, 0), w) < own_weights.DIFFERENCE.most
