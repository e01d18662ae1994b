"""One cause, one paragraph; and a mistake is named only if it explains every failure it stands for."""

import math

import numpy as np
import pytest

from examine import examine
from faults import Plain, named, plant
from faults.shelf import only_at
from gpt2_parity.checks import local
from gpt2_parity.checks.local import LocalResult
from gpt2_parity.contract.architecture import graph
from gpt2_parity.contract.dtypes import round_nearest
from gpt2_parity.mistakes.registry import NEAR, Match
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
