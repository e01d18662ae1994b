"""Properties of the specimens themselves; the checks establish that they are right."""

import ast
import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from gpt2_parity.contract.architecture import HParams, variable_shapes
from gpt2_parity.implementation import discovery

NAMES = discovery.names()
HPARAMS = HParams(n_vocab=50, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
FRAMEWORK = {
    "numpy": {"numpy"},
    "naive": {"numpy"},
    "jax": {"jax", "numpy"},
    "torch": {"torch"},
    "tensorflow": {"tensorflow"},
}


def params(hparams=HPARAMS):
    rng = np.random.default_rng(0)
    shapes = variable_shapes(hparams)
    squeezed = {name: shape[1:] if name.endswith("/w") else shape for name, shape in shapes.items()}
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in squeezed.items()}


def path(name):
    return discovery.IMPLS / f"{discovery.PREFIX}{name}.py"


def test_the_four_specimens_are_there():
    assert {"numpy", "jax", "torch", "tensorflow"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_its_framework_and_nothing_of_ours(name):
    """So that the file can be copied and run alone."""
    tree = ast.parse(path(name).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) == FRAMEWORK[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_short(name):
    # both have the gradients besides, and PyTorch three ways to multiply and two to attend
    most = {"jax": 295, "torch": 275}.get(name, 215)
    assert len(path(name).read_text().splitlines()) <= most


# What follows runs in a process of its own per framework, so that none is imported here. First the
# known values.
LAYERS = """
import sys, json, numpy as np
from gpt2_parity.implementation import discovery
m = discovery.find(sys.argv[1]).load()
if sys.argv[1] == "torch":
    import torch; array = lambda x: torch.tensor(x)
elif sys.argv[1] == "tensorflow":
    import tensorflow as tf; array = lambda x: tf.constant(x)
elif sys.argv[1] == "jax":
    import jax.numpy as jnp; array = lambda x: jnp.asarray(x)
else:
    array = lambda x: np.asarray(x, np.float32)
linear = getattr(m, "linear_without_mkl", m.linear)  # of PyTorch, what its float32 on a CPU takes
row, w, b = [64.0, 1.0, 2.0], array([[1.0, 2.0]] * 3), array([0.5, -0.5])
ones, zeros = array([1.0, 1.0, 1.0]), array([0.0, 0.0, 0.0])
print(json.dumps([
    m.numpy(m.gelu(array([[1.0, 2.0], [-2.0, 0.5]]))).tolist(),
    m.numpy(m.softmax(array([[2.0, 100.0], [-5.0, 0.0]]))).tolist(),
    m.numpy(m.layer_norm(array([[2.0, 2.0, 3.0], [-5.0, 0.0, 1.0]]), ones, zeros)).tolist(),
    *(m.numpy(f(array([row] * rows), w, b)).tolist() for f in (m.linear, linear) for rows in (1, 2)),
    m.numpy(m.softmax(array([[2.0, 10.0], [-1.0, 0.0]]))).tolist(),
]))
"""


# Each of these texts is run by itself; what it raised and what it printed, by its name.
RUN_EACH = """
import contextlib, io, json, sys, traceback
found = {}
for name, code in json.loads(sys.argv[2]).items():
    error, said = "", io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(code, name, "exec"), {})
    except Exception:
        error = traceback.format_exc()
    found[name] = error, said.getvalue()
print(json.dumps(found))
"""


@functools.cache
def all_ran(name):
    """All texts, run in one process, because a framework takes seconds to import."""
    texts = json.dumps({"LAYERS": LAYERS, "BRANCHES": BRANCHES, "LAYOUTS": LAYOUTS})
    arguments = [sys.executable, "-c", RUN_EACH, name, texts]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TOGETHER = [pytest.param(name, marks=pytest.mark.xdist_group(f"specimen_{name}")) for name in NAMES]


def ran(name, text):
    """The traceback of a text with a specimen, "" if it raised nothing, and what it printed."""
    return all_ran(name)[text]


@pytest.mark.parametrize("name", TOGETHER)
def test_the_layers_answer_the_known_values(name):
    error, said = ran(name, "LAYERS")
    assert error == "", error
    gelu, far, layer_norm, *linear, near = json.loads(said)
    np.testing.assert_allclose(gelu, [[0.84119, 1.9546], [-0.0454, 0.34571]], atol=5e-5)
    # A widely copied tutorial prints these figures under the input [[2, 100], [-5, 0]]; they belong
    # to [[2, 10], [-1, 0]]. Both inputs are held to what they really give.
    np.testing.assert_allclose(near, [[0.00034, 0.99966], [0.26894, 0.73106]], atol=5e-6)
    np.testing.assert_allclose(far, [[0, 1], [0.0066929, 0.9933071]], atol=5e-7)
    np.testing.assert_allclose(
        layer_norm, [[-0.70709, -0.70709, 1.41418], [-1.397, 0.508, 0.889]], atol=5e-4
    )
    assert [len(rows) for rows in linear] == [1, 2, 1, 2]
    for rows in linear:
        np.testing.assert_allclose(rows, [[67.5, 133.5]] * len(rows), rtol=1e-6)


# One cache continued in two ways by turns; what was tapped meanwhile is looked at once more in the end.
BRANCHES = """
import sys, numpy as np
from gpt2_parity.implementation import discovery
from gpt2_parity.model import synthetic
from gpt2_parity.contract.architecture import HParams
m, h = discovery.find(sys.argv[1]).load(), HParams(50, 16, 8, 2, 2)
model = m.load(synthetic.generate(h), h, device="cpu", dtype="float32")
taps = []
def tap(name, x):
    taps.append((name, m.numpy(x), m.numpy(x).copy()))
def forward(tokens, past):
    logits, present = m.forward(model, tokens, past, tap)
    tap("logits", logits)
    return m.numpy(logits), present
one = np.arange(18, dtype=np.int32).reshape(2, 9)
ways = [one, np.concatenate([one[:, :4], one[:, 4:] + 20], axis=1)]
_, past = forward(one[:, :4], None)
pasts = [past, past]
for chunk in (slice(4, 6), slice(6, 7), slice(7, 9)):
    for i, tokens in enumerate(ways):
        got, pasts[i] = forward(tokens[:, chunk], pasts[i])
        want = m.numpy(m.forward(model, tokens)[0])[:, chunk]
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=f"way {i}, {chunk}")
for name, now, then in taps:
    np.testing.assert_array_equal(now, then, err_msg=f"{name} was overwritten")
"""


@pytest.mark.parametrize("name", TOGETHER)
def test_a_cache_may_be_continued_twice_and_nothing_handed_out_is_overwritten(name):
    error, _ = ran(name, "BRANCHES")
    assert error == "", error


# Weights as they may lie in memory: aligned or not, w in either order, and not to be written to.
LAYOUTS = """
import sys, numpy as np
from gpt2_parity.implementation import discovery
from gpt2_parity.model import synthetic
from gpt2_parity.contract.architecture import HParams
m, h = discovery.find(sys.argv[1]).load(), HParams(50, 16, 16, 2, 2)
def lying(array, order, off):
    flat = np.empty(array.size + 32, np.float32)
    first = -flat.ctypes.data % 64 // 4 + off
    place = flat[first : first + array.size]
    placed = place.reshape(array.shape) if order == "C" else place.reshape(array.shape[::-1]).T
    placed[...] = array
    return placed
tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
found = []
for order, off, fixed in [("C", 0, 0), ("C", 1, 0), ("F", 0, 0), ("F", 1, 0), ("C", 0, 1)]:
    params = synthetic.generate(h)
    for name, w in params.items():
        params[name] = lying(w, order if name.endswith("/w") else "C", off)
        params[name].flags.writeable = not fixed
    model = m.load(params, h, device="cpu", dtype="float32")
    logits, past = m.forward(model, tokens)
    following, _ = m.forward(model, tokens[:, :1], past)
    found.append(np.concatenate([m.numpy(logits), m.numpy(following)], axis=1))
for logits in found[1:]:
    np.testing.assert_allclose(logits, found[0], atol=1e-5)
assert np.abs(found[0]).max() > 0.1  # 1e-5 is little beside it
"""


@pytest.mark.parametrize("name", TOGETHER)
def test_weights_may_lie_in_memory_as_they_like(name):
    error, _ = ran(name, "LAYOUTS")
    assert error == "", error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_runs_for_cuda_without_cuda(dtype, monkeypatch):
    """Under fake tensors every operation is checked for its device: a CPU/CUDA mix raises."""
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    impl = discovery.find("torch").load()
    with FakeTensorMode():
        model = impl.load(params(), HPARAMS, device="cuda", dtype=dtype)
        assert all(value.device.type == "cuda" for value in model.params.values())
        taps = {}
        # the guard against bad tokens looks at values, which fake tensors do not have
        monkeypatch.setattr(impl, "refuse_bad_tokens", lambda *_: None)
        tokens = torch.zeros((2, 5), dtype=torch.int32)
        logits, past = impl.forward(model, tokens, tap=taps.__setitem__)
        logits, past = impl.forward(model, tokens[:, :1], past)
    assert (logits.device.type, str(logits.dtype), logits.shape) == (
        "cuda", f"torch.{dtype}", (2, 1, 50),
    )  # fmt: skip
    assert {value.device.type for value in taps.values()} == {"cuda"}
    assert (past.kv.device.type, past.n) == ("cuda", 6)


def test_torch_decodes_on_cuda_without_asking_the_device(monkeypatch):
    """Fake tensors have no values: a step that waited for one (item, int, if) would raise here."""
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    impl = discovery.find("torch").load()
    monkeypatch.setattr(impl, "recorded", lambda step: step)  # recording a graph needs a GPU
    with FakeTensorMode():
        model = impl.load(params(), HPARAMS, device="cuda", dtype="float32")
        tokens = torch.zeros((2, 5), dtype=torch.int32, device="cuda")
        chosen = impl.choices(model, tokens, 4, fixed=True)
        assert (chosen.device.type, chosen.shape) == ("cuda", (2, 4))
        # the CPU's way does ask; what is raised depends on how torch was built
        with pytest.raises(Exception, match=r"data-dependent|item|not linked|scalar"):
            impl.choices(model, tokens, 4, fixed=False)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES]
)
def test_a_cache_may_be_continued_in_several_ways(name):
    """Two continuations of one cache in turn: neither may see what the other has written."""
    pytest.importorskip({"naive": "numpy"}.get(name, name))
    impl = discovery.find(name).load()
    model = impl.load(params(), HPARAMS, device="cpu", dtype="float32")
    rng = np.random.default_rng(3)
    start, one, other = (rng.integers(0, 50, (2, n)).astype(np.int32) for n in (5, 6, 6))
    _, past = impl.forward(model, start)
    _, ways = zip(*(impl.forward(model, way[:, :2], past) for way in (one, other)), strict=True)
    for way, middle in zip((one, other), ways, strict=True):
        got, _ = impl.forward(model, way[:, 2:], middle)
        want, _ = impl.forward(model, np.concatenate([start, way], axis=1))
        np.testing.assert_allclose(impl.numpy(got), impl.numpy(want)[:, 7:], atol=1e-5)
    assert np.abs(impl.numpy(want)).max() > 0.1  # 1e-5 is little beside it


def test_a_device_mix_would_be_noticed(monkeypatch):
    """The fault that trips the check above: one weight left on the CPU."""
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    impl = discovery.find("torch").load()
    with FakeTensorMode():
        model = impl.load(params(), HPARAMS, device="cuda", dtype="float32")
        model.params["h1/ln_2/g"] = model.params["h1/ln_2/g"].cpu()
        monkeypatch.setattr(impl, "refuse_bad_tokens", lambda *_: None)
        with pytest.raises(Exception, match="device"):
            impl.forward(model, torch.zeros((2, 5), dtype=torch.int32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [1, 5], ids=["decode", "prefill"])
def test_jax_lowers_for_cuda_without_cuda(dtype, n):
    jax = pytest.importorskip("jax")
    from jax import export

    impl = discovery.find("jax").load()
    model = impl.load(params(), HPARAMS, device="cpu", dtype=dtype)
    past = impl.with_room(model, None, 2, 16)
    static = {"n_head": HPARAMS.n_head}

    def step(ends, layers, x, k, v, n_past):
        past = impl.Cache(k, v, n_past)
        logits, k, v, _ = impl.whole_pass(ends, layers, x, past, True, want_taps=n > 1, **static)
        token = logits[:, -1:].argmax(-1)
        return logits, impl.following(ends, layers, token, k, v, n_past + n, **static)

    x = np.zeros((2, n, HPARAMS.n_embd), model.tables["wte"].dtype)
    exported = export.export(jax.jit(step), platforms=["cuda"])(*model[:2], x, past.k, past.v, 3)
    assert exported.platforms == ("cuda",)
    assert exported.out_avals[0].shape == (2, n, 50)
    # float32 must not become TF32: every matrix product asks for the highest precision
    products = [line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def test_jax_decodes_without_a_copy_of_its_cache():
    """And the fault that trips it: the same step without donated buffers copies every k and v."""
    jax = pytest.importorskip("jax")
    impl = discovery.find("jax").load()
    model = impl.load(params(), HPARAMS, device="cpu", dtype="float32")
    past = impl.with_room(model, None, 2, HPARAMS.n_ctx)
    arguments = (*model[:2], np.zeros((2, 1), np.int32), past.k, past.v, 3)
    shape = ",".join(map(str, past.k[0].shape))

    def copies(step):
        compiled = step.lower(*arguments, n_head=HPARAMS.n_head).compile().as_text()
        assert "dynamic-update-slice" in compiled
        return len(re.findall(rf"= f32\[{shape}\]\S* copy\(", compiled))

    assert copies(impl.following) == 0
    undonated = jax.jit(impl.following.__wrapped__, static_argnames="n_head")
    assert copies(undonated) == 2 * HPARAMS.n_layer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_cuda_itself(name, dtype, prepared):
    pytest.importorskip(name)
    impl = discovery.find(name).load()
    if ("cuda", dtype) not in impl.targets():
        pytest.skip("no CUDA device")
    from examine import examine
    from gpt2_parity.contract.interface import Target

    rows = examine(impl, prepared, Target("cuda", dtype))
    assert {row.verdict for row in rows} <= {"pass", "inconclusive"}  # near-ties, in bfloat16
    assert [row.verdict for row in rows].count("pass") > 700


def test_jax_compiles_nothing_for_another_length():
    """Lengths of one bucket share four programs: with taps, without, decode, and generate's step."""
    jax = pytest.importorskip("jax")
    impl = discovery.find("jax").load()
    hparams = HPARAMS._replace(n_ctx=64)
    model = impl.load(params(hparams), hparams, device="cpu", dtype="float32")
    compiled = []

    def run(n):
        tokens = np.arange(n, dtype=np.int32)[None]
        impl.forward(model, tokens, tap=lambda name, value: None)
        _, past = impl.forward(model, tokens)
        impl.forward(model, tokens[:, :1], past)
        impl.generate(model, tokens, 3)

    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        run(17)
        programs = [event for event in compiled if "backend_compile" in event]
        compiled.clear()
        run(18)
        run(25)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(programs) == 4
    assert [event for event in compiled if "backend_compile" in event] == []


def test_jax_gradients_match_differences_of_the_loss():
    """loss_and_grads against central differences of the NumPy specimen's float64 loss."""
    pytest.importorskip("jax")
    impl, reference = discovery.find("jax").load(), discovery.find("numpy").load()
    tokens = np.random.default_rng(1).integers(0, 50, (2, 9)).astype(np.int32)
    loss, grads = impl.loss_and_grads(
        impl.load(params(), HPARAMS, device="cpu", dtype="float32"), tokens
    )

    def loss_at(name, index, step):
        moved = {key: value.astype(np.float64) for key, value in params().items()}
        moved[name][index] += step
        model = reference.load(moved, HPARAMS, device="cpu", dtype="float64")
        logits = reference.forward(model, tokens)[0][:, :-1]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean()

    assert loss == pytest.approx(loss_at("wte", (0, 0), 0.0), rel=1e-5)
    rng = np.random.default_rng(2)
    assert grads.keys() == params().keys()
    for name, value in params().items():
        index = tuple(rng.integers(0, size) for size in value.shape)
        if name == "wpe":
            index = (3, 2)  # a position that is in use
        slope = (loss_at(name, index, 1e-4) - loss_at(name, index, -1e-4)) / 2e-4
        assert float(grads[name][index]) == pytest.approx(slope, rel=2e-3, abs=2e-6), name


def test_a_finder_that_must_be_told_the_target_is_told_it(monkeypatch):
    """asv's benchmark runner puts such a one on sys.meta_path."""

    class Strict:
        def find_spec(self, fullname, path, target):
            return None

    monkeypatch.setattr(sys, "meta_path", [Strict(), *sys.meta_path])
    assert discovery.find("numpy").source() == path("numpy")
