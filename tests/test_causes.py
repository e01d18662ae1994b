"""One cause, one paragraph; and a mistake is named only if it explains every failure it stands for."""

import math

import numpy as np
import pytest

from examine import examine
from faults import BLACK_BOX, Plain, named, plant
from faults.own_weights import int8, those_of
from faults.shelf import altered, only_at
from gpt2_parity.checks import local
from gpt2_parity.checks.local import LocalResult
from gpt2_parity.contract.architecture import graph
from gpt2_parity.contract.dtypes import round_nearest
from gpt2_parity.implementation.discovery import find
from gpt2_parity.mistakes.registry import MISTAKES, NEAR, Match, Scene
from gpt2_parity.verdict import explain

SOME = {"seed", "batch"}


def found(prepared, module):
    [findings] = explain.findings(examine(module, prepared, only=SOME)).values()
    return findings


@pytest.mark.parametrize("name", ["epsilon_0.001", "erf_gelu", "no_bias"])
def test_a_mistake_made_everywhere_is_told_once(name, prepared):
    first, *rest = found(prepared, plant(named(name)))
    assert first.mistake == named(name).diagnosis
    assert [finding.where for finding in rest] == [""]  # what inherits it
    assert first.text.count("explains it") == 1


def test_a_coarser_precision_is_told_first_and_once(prepared):
    """All products, and what else was computed as coarsely."""

    def coarse(x):
        return round_nearest(np.asarray(x, np.float32), "bfloat16")

    module = Plain.with_(
        "autocast",
        linear=lambda x, w, b, at: Plain.linear(coarse(x), coarse(w), b, at),
        layer_norm=lambda *given: coarse(Plain.layer_norm(*given)),
    )
    first, *rest = found(prepared, module)
    assert "is computed in bfloat16, declared float32: 16 of 17 products" in first.text
    assert "h*/ln_1, h*/ln_2, ln_f are as large as that precision makes them" in first.text
    assert [finding.where for finding in rest] == [""]


def test_a_single_coarse_product_is_no_matter_of_the_whole(prepared):

    def wrong(*given):
        return round_nearest(Plain.linear(*given), "bfloat16")

    only = Plain.with_("one", linear=only_at("h1/mlp/c_fc", "linear", wrong))
    first, *_ = found(prepared, only)
    assert first.where == "h1/mlp/c_fc"
    assert "declared float32" not in first.text


OP = graph(2)[1]  # h0/ln_1


def finding(value: float, left: dict[str, float], op=OP, metric="rounding_units") -> LocalResult:
    return LocalResult("seed", op, metric, value, {}, 4.0, left, 20)


def concluded(*findings):
    return [(m.mistake, m.evidence.get("nearest")) for m in local.conclude(list(findings))]


def test_a_mistake_has_to_explain_every_case():
    """True of one case only, it is a coincidence."""
    assert concluded(finding(900, {"a": 0.5}), finding(800, {"a": 0.7})) == [("a", None)] * 2
    assert concluded(finding(900, {"a": 0.5}), finding(800, {"a": 700.0})) == [("", {})] * 2


def test_two_layers_may_have_mistakes_of_their_own():
    other = next(op for op in graph(2) if op.name == "h1/ln_1")
    both = (finding(900, {"a": 0.5, "b": 850.0}), finding(800, {"a": 700.0, "b": 0.1}, other))
    assert [mistake for mistake, _ in concluded(*both)] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "after", "explains"),
    [
        (4.41, 3.1, False),  # just above the limit, any small fall would do
        (13.0, 3.9, True),
        (1.7e9, 1.5e5, False),  # far below, and far above rounding
        (1e4, 20.0, True),
        (math.inf, 1.0, True),
    ],
)
def test_what_falls_to_rounding_level_is_explained(value, after, explains):
    [(mistake, _)] = concluded(finding(value, {"a": after}))
    assert bool(mistake) == explains


@pytest.mark.parametrize(
    ("before", "after", "named"), [(78.4, 78.4, False), (900, 100, False), (900, 80, True)]
)
def test_the_nearest_is_named_only_if_it_is_near(before, after, named):
    measurement = finding(before, {}).measurement
    assert bool(Match("a", False, before, after).on(measurement).evidence["nearest"]) == named
    assert before / NEAR >= after or not named


def test_without_a_near_one_no_mistake_is_named(prepared):
    strange = Plain.with_("odd", gelu=lambda x, at: Plain.gelu(x, at) + np.sin(x))
    [first, *_] = found(prepared, strange)
    assert "no known mistake explains it." in first.text


def test_a_model_that_a_second_one_breaks_is_told_as_that(prepared):
    """The process has not ended: state is shared between models."""

    class Shared(Plain):
        generate = loaded = None

        def load(self, params, hparams, **target):
            self.loaded = super().load(params, hparams, **target)
            return self.loaded

        def forward(self, model, *given, **named):
            if model is not self.loaded:
                raise RuntimeError("freed")
            return super().forward(model, *given, **named)

    first, *_ = found(prepared, Shared())
    assert "has raised on every call since the check sizes" in first.text
    assert "loads a second model beside the first" in first.text
    assert "ended" not in first.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("transposed_c_proj", "w is used transposed explains it: if it is made at attn/c_proj in every"),
        ("logits_shifted", "the logits of a position are all off by the same amount explains it"),
        ("whole_tf32", "the factors of all products are rounded to TF32 (or float16) explains it"),
        ("whole_bfloat16_factors", "the factors of all products are rounded to bfloat16 explains it"),
        ("whole_bfloat16", "everything is computed in bfloat16 explains it: the errors are as large"),
        ("whole_float16", "everything is computed in float16 explains it"),
    ],
)
def test_the_logits_alone_tell_it(name, text, prepared):
    [only] = found(prepared, plant(named(f"{name}_in_a_black_box")))
    assert only.where == "logits"
    assert text in only.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_real_engine_in_another_precision_is_told_though_it_rounds_elsewhere(dtype, prepared):
    """PyTorch's kernels round in other places than the evaluation that it is compared with."""
    torch = find("torch").load()
    members = {
        "TAPS": (),
        "targets": lambda self: [("cpu", "float32")],
        "load": lambda self, params, hparams, **target: torch.load(
            params, hparams, device="cpu", dtype=dtype
        ),
        "forward": lambda self, model, tokens, past=None, tap=None: torch.forward(model, tokens, past),
        "numpy": lambda self, x: torch.numpy(x),
        "__name__": "coarse",
    }
    [only] = found(prepared, type("Coarse", (), members)())
    assert only.mistake == f"whole_{dtype}"


def test_an_error_of_the_same_size_is_not_taken_for_a_precision(prepared):
    """It has to be correlated with what that precision does, at each position."""
    noise = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    module = Plain.with_("noisy", head=altered("head", lambda y: y + 0.02 * noise), **BLACK_BOX)
    [only] = found(prepared, module)
    assert only.mistake == ""
    assert "no known mistake explains it" in only.text


def test_float64_of_a_black_box_that_declares_float32_is_told(prepared):
    wide = Plain.with_("wide", converted=lambda p, h, _: Plain.converted(p, h, "float64"), **BLACK_BOX)
    rows = examine(wide, prepared, only=SOME)
    assert not [row for row in rows if row.verdict == "fail"]
    assert explain.notes(rows) == [
        "wide-cpu-float32 logits: measured float64, declared float32: wider than declared"
    ]
    shown = Plain.with_("shown", numpy=lambda self, x: np.asarray(x, np.float64), **BLACK_BOX)
    assert explain.notes(examine(shown, prepared, only=SOME)) == []


def by_tensor(x):
    """In int8, with one scale for all that a call is given."""
    scale = np.abs(x).max() / np.float32(127)
    return np.round(x / scale) * scale


MIXED = {"linear": lambda x, w, b, at: Plain.linear(by_tensor(x), w, b, at)}


@pytest.mark.parametrize("sealed", [{}, BLACK_BOX], ids=["tapped", "black_box"])
def test_one_scale_for_a_tensor_breaks_causality_and_batch_on_its_own(sealed, prepared):
    """That later tokens change earlier results is no matter of how large an error is."""
    rows = examine(Plain.with_("dynamic", **MIXED, **sealed), prepared, only=SOME)
    [findings] = explain.findings(rows).values()
    assert findings[0].mistake == "int8_inputs_by_tensor"
    assert {finding.where for finding in findings} >= {"causality", "batch"}
    for row in rows:
        if row.verdict == "fail" and row.check in ("causality", "batch"):
            assert row.blame == row.check


def test_so_it_is_where_the_weights_in_int8_are_declared(prepared):
    module = Plain.with_("both", **MIXED, converted=int8, weights=those_of, WEIGHTS="quantized")
    findings = found(prepared, module)
    assert findings[0].mistake == "int8_inputs_by_tensor"
    assert {finding.where for finding in findings} >= {"causality", "batch"}


def test_causality_that_a_wrong_mask_breaks_is_not_blamed(prepared):
    rows = examine(plant(named("mask_too_weak")), prepared, only=SOME)
    blamed = {row.blame for row in rows if row.verdict == "fail" and row.check == "causality"}
    assert blamed == {"h*/attn/heads"}


def test_without_attention_an_unknown_mistake_cannot_break_causality(prepared):
    mixes = Plain.with_("mixes", gelu=lambda x, at: Plain.gelu(x, at) + 0.01 * np.sin(x * x.max()))
    findings = found(prepared, mixes)
    assert findings[0].where == "h*/mlp/gelu"
    assert findings[0].mistake == ""
    assert "causality" in {finding.where for finding in findings}


@pytest.mark.parametrize("levels", [1, 2])
def test_a_fast_product_is_lawful_but_less_accurate(levels, prepared):
    """Its error has the size of rounding, but not of each element's own."""
    rows = examine(plant(named(f"strassen_of_{levels}_levels")), prepared)
    failed = [row for row in rows if row.verdict == "fail"]
    assert {row.check for row in failed} == {"local"}
    assert {row.mistake for row in failed} == {"fast_product"}
    [[only]] = explain.findings(rows).values()
    assert "which is lawful but less accurate" in only.text


def scene_with(error, size):
    op = next(op for op in graph(1) if op.kind == "linear")
    exact = np.ones_like(error)
    return Scene(op, [], exact + error, exact, size, {}, {}, None, np.zeros((1, len(error[0])), int))


@pytest.mark.parametrize(
    ("kind", "told"), [("fast", True), ("proportional", False), ("rank_one", False), ("large", False)]
)
def test_only_noise_as_large_as_the_greatest_bound_is_a_fast_product(kind, told):
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(size=(1, 60, 80))) * 1e-7
    noise = rng.normal(size=size.shape)
    error = {
        "fast": 0.3 * noise * size.max(),
        "proportional": 3 * noise * size,
        "rank_one": 0.3 * noise[..., :1] * noise[:, :1] * size.max(),
        "large": 30 * noise * size.max(),
    }[kind]
    [mistake] = [each for each in MISTAKES if each.name == "fast_product"]
    assert bool(list(mistake.alter(scene_with(error, size)))) == told
