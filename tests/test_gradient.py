"""The float64 gradient is right, shown in two ways; and the check requires every promised gradient."""

import numpy as np
import pytest

from examine import FLOAT32, examine
from faults import FAULTS, plant
from gpt2_parity.checks.gradients import GRADIENT
from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.implementation.discovery import find
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model import synthetic
from gpt2_parity.reference import gradient, oracle
from gpt2_parity.reference.distance import log_softmax, max_abs
from gpt2_parity.verdict import explain

HPARAMS = HParams(n_vocab=30, n_ctx=8, n_embd=12, n_head=3, n_layer=2)
TOKENS = np.random.default_rng(1).integers(0, 30, (2, 7)).astype(np.int32)


def loss(params) -> float:
    """Written anew, from the logits of the oracle."""
    log_probs = log_softmax(oracle.forward(params, HPARAMS, TOKENS))
    return -np.mean([log_probs[i, j, TOKENS[i, j + 1]] for i in range(2) for j in range(6)])


def test_the_gradient_is_the_slope_of_the_loss():
    """By central differences along a random direction of each weight."""
    params = {name: w.astype(np.float64) for name, w in synthetic.generate(HPARAMS).items()}
    rng = np.random.default_rng(2)
    found = dict(gradient.backward(params, HPARAMS, TOKENS))
    assert found.keys() == {"loss", *parameter_shapes(HPARAMS)}
    assert float(found["loss"]) == pytest.approx(loss(params), rel=1e-14)
    for name, w in params.items():
        direction = rng.normal(size=w.shape)
        step = 1e-5 / np.sqrt(np.mean(direction**2))
        ahead, behind = (loss({**params, name: w + sign * step * direction}) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        assert np.sum(found[name] * direction) == pytest.approx(slope, rel=1e-6, abs=1e-9), name


@pytest.mark.xdist_group("tensorflow")  # it takes seconds to import, and so once is enough
def test_tensorflow_in_float64_agrees_with_the_gradient(prepared):
    """Automatic differentiation against derivation by hand, within the noise of float64."""
    pytest.importorskip("tensorflow")
    checkpoint, tokens = prepared.checkpoint, prepared.at("float32")[-1].tokens
    impl = find("tensorflow").load()
    model = impl.load(checkpoint.params, checkpoint.hparams, device="cpu", dtype="float64")
    value, grads = impl.loss_and_grads(model, tokens)
    given = {"loss": np.array(value)} | {name: grad.numpy() for name, grad in grads.items()}
    assert given.keys() == {"loss", *checkpoint.params}
    for name, want, unit in gradient.measure(
        checkpoint.params, checkpoint.hparams, tokens, "float64", seed=0
    ):
        assert given[name].dtype == np.float64
        assert max_abs(given[name], want) <= GRADIENT.most * unit, name


def judged(prepared, **functions):
    """Rows of the check gradients on the fresh case, of the NumPy specimen with functions besides."""
    from types import SimpleNamespace

    real = find("numpy").load()
    names = ("targets", "load", "forward", "numpy")
    offered = {name: getattr(real, name) for name in names} | {"__name__": "wrapped"}
    impl = SimpleNamespace(**offered, **functions)
    return examine(impl, prepared, FLOAT32, only={"fresh"}, checks={"gradients"})


def truth(model, tokens):
    """The oracle's own loss and gradients, in float32."""
    found = dict(gradient.backward(model.params, model.hparams, tokens))
    return float(found.pop("loss")), {name: grad.astype(np.float32) for name, grad in found.items()}


def test_a_forward_spoilt_by_the_loss_is_seen_by_this_check_alone(prepared):
    """As in a resumed run: this process has computed nothing before."""
    from types import SimpleNamespace

    real, called = find("numpy").load(), []

    def forward(model, tokens, past=None, tap=None):
        logits, present = real.forward(model, tokens, past, tap)
        return (logits * 1.01 if called else logits), present

    def loss_and_grads(model, tokens):
        called.append(True)
        return truth(model, tokens)

    offered = {"load": real.load, "numpy": real.numpy, "__name__": "wrapped"}
    impl = SimpleNamespace(**offered, forward=forward, loss_and_grads=loss_and_grads, TAPS=())
    checkpoint, record = prepared.checkpoint, prepared.at("float32")[-1]
    loaded = Loaded.load(impl, FLOAT32, checkpoint.weights, checkpoint.hparams, [record])
    found = {each.scope: each for each in CHECKS["gradients"].measure(loaded, loaded.plan(CAPABILITIES))}
    assert found["forward_after"].value > 1e3
    assert found["kept"].value == 0


def test_nothing_is_asked_of_who_offers_no_gradients(prepared):
    assert judged(prepared) == []


def test_the_loss_and_every_weight_are_measured(prepared):
    rows = judged(prepared, loss_and_grads=truth)
    assert {row.scope for row in rows} == {"loss", *prepared.checkpoint.params, "forward_after", "kept"}
    assert {row.verdict for row in rows} == {"pass"}
    assert max(row.ratio for row in rows) > 0, "float32 is not float64"


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda loss, grads: grads, "loss_and_grads returned dict,"),
        (lambda loss, grads: (loss, list(grads)), "the contract says"),
        (
            lambda loss, grads: (loss, grads | {"head": grads["wte"]}),
            "'head', which is not the name of a weight",
        ),
        (lambda loss, grads: (loss, grads | {"wpe": grads["wpe"].T}), "the gradient by wpe is float32"),
        (lambda loss, grads: (loss, grads | {"wpe": None}), "numpy(x) returned|the gradient by wpe"),
        (lambda loss, grads: ("a lot", grads), "a lot"),
    ],
    ids=["no_pair", "no_mapping", "unknown", "misshapen", "none", "no_number"],
)
def test_what_is_not_the_contracts_is_said(prepared, returned, words):
    rows = judged(prepared, loss_and_grads=lambda *args: returned(*truth(*args)))
    assert {row.verdict for row in rows} == {"fail"}
    assert any(word in explain.detail(row) for row in rows for word in words.split("|"))


def test_where_the_error_comes_in_is_said(prepared):
    def spoilt(model, tokens):
        loss, grads = truth(model, tokens)
        late = ("h1/", "h0/", "wte", "wpe")  # as if the way back were wrong below layer 2
        return loss, {n: g * (1.01 if n.startswith(late) else 1) for n, g in grads.items()}

    rows = judged(prepared, loss_and_grads=spoilt)
    wrong = [row for row in rows if row.verdict == "fail"]
    assert {row.scope.partition("/")[0] for row in wrong} == {"h1", "h0", "wte", "wpe"}
    text = "in the backward pass, gradients are wrong from h1/mlp/c_proj/w on"
    assert {explain.diagnosis(row) for row in wrong} == {text}
    assert {row.blame for row in wrong} == {"gradients"}


@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if "gradients" in fault.blame],
    ids=lambda fault: fault.name,
)
def test_a_fault_of_the_way_back_is_caught_by_what_it_gives_and_not_by_a_crash(
    fault, prepared, tmp_path
):
    beside = {"logits", "kv_cache", "gradients", "bad_tokens"}
    rows = examine(plant(fault, tmp_path), prepared, only={"full_context", "fresh"}, checks=beside)
    wrong = [row for row in rows if row.verdict == "fail"]
    assert {row.check for row in wrong} <= {"gradients", "bad_tokens"}  # where forward is spoilt as well
    assert {row.blame for row in wrong} == {"gradients"}
    crashed = [row.evidence for row in wrong if row.status == "error"]
    assert not crashed or "mixed_up" in fault.name
