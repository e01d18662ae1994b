"""Other people's engines in the real worker, and the diagnosis of a black box that is wrong."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import SEED
from examine import examine
from faults import Plain, named, plant
from faults.rounding import through_float16
from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.rows import Results, exit_code
from gpt2_parity.implementation import discovery
from gpt2_parity.mistakes import registry, whole_model
from gpt2_parity.mistakes.matching import MISTAKES
from gpt2_parity.model import catalogue
from gpt2_parity.reference import oracle
from gpt2_parity.report import files
from gpt2_parity.run import runner
from gpt2_parity.run.request import Request
from gpt2_parity.verdict import explain, known_failures
from gpt2_parity.verdict.judge import Judge

FLOAT32 = Target("cpu", "float32")
BLACK_BOXES = {"ctranslate2", "ctranslate2_int8", "llama_cpp"}
PACKAGES = {  # others: the engine's name
    "ctranslate2_int8": "ctranslate2",
    "onnxruntime_int8": "onnxruntime",
    "openvino_float32": "openvino",
    "torch_compile": "torch",
    "transformer_lens_unprocessed": "transformer_lens",
}
WRONG = {  # the mistake that the first paragraph about an engine names; of others nothing is wrong
    "ctranslate2_int8": "int8_products",
    "llama_cpp": "gelu_float16_table",
    "onnxruntime_int8": "int8_products_by_tensor",
    "openvino": "bfloat16_inputs",
    "torchao": "int8_weights",
    "transformer_lens": "folded_weights",
}
QUICK = {"seed", "one_token", "fresh"}


def installed(name):
    """Skip if the package of an engine is not there; tinygrad compiles with clang besides."""
    if importlib.util.find_spec(PACKAGES.get(name, name)) is None:
        pytest.skip("engine not installed")
    if name == "tinygrad" and not shutil.which("clang"):
        pytest.skip("tinygrad needs clang")


def test_engines_are_found_by_name_and_only_where_named():
    assert set(IMPORTS) == set(discovery.engines())
    assert set(PACKAGES) | set(WRONG) <= set(IMPORTS)
    assert not set(discovery.engines()) & set(discovery.names())
    assert discovery.find("transformers").module == str(discovery.IMPLS / "engine_transformers.py")


IMPORTS = {
    "transformers": {"torch", "transformers"},
    "ctranslate2": {"ctranslate2", "numpy"},
    "llama_cpp": {"llama_cpp", "gguf", "numpy"},
    "onnxruntime": {"onnxruntime", "onnx", "numpy"},
    "tinygrad": {"tinygrad", "numpy"},
    "keras_hub": {"keras_hub", "keras", "numpy"},
    "mlx": {"mlx", "numpy"},
    "openvino": {"openvino", "numpy"},
    "torchao": {"torchao", "torch", "gpt2_torch"},
    "torch_compile": {"torch", "gpt2_torch"},
    "transformer_lens": {"transformer_lens", "torch", "engine_transformers"},
    # thin modules beside the engine whose functions they use
    "ctranslate2_int8": {"engine_ctranslate2"},
    "onnxruntime_int8": {"onnxruntime", "onnx", "numpy", "engine_onnxruntime"},
    "openvino_float32": {"engine_openvino"},
    "transformer_lens_unprocessed": {"engine_transformer_lens"},
}


@pytest.mark.parametrize("name", discovery.engines())
def test_an_engine_imports_its_own_and_nothing_of_ours_and_stays_short(name):
    source = (discovery.IMPLS / f"{discovery.ENGINE}{name}.py").read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) == IMPORTS[name]
    assert len(source.splitlines()) <= 200


LOAD = """
import sys, numpy as np
from gpt2_parity.implementation import discovery
from gpt2_parity.contract.architecture import HParams, variable_shapes
hparams = HParams(n_vocab=50, n_ctx=256, n_embd=64, n_head=2, n_layer=2)
shapes = {k: v[1:] if k.endswith("/w") else v for k, v in variable_shapes(hparams).items()}
draw = np.random.default_rng(0).standard_normal  # CTranslate2 in int8 confuses arrays that are equal
params = {name: draw(shape, np.float32) for name, shape in shapes.items()}
impl = discovery.find(sys.argv[1]).load()
model = impl.load(params, hparams, device="cpu", dtype="float32")
print(impl.numpy(impl.forward(model, np.array([[1, 2]], np.int32))[0]).shape)
"""


@pytest.mark.parametrize("name", ["ctranslate2", "ctranslate2_int8", "llama_cpp", "onnxruntime_int8"])
def test_an_engine_leaves_no_file_behind(name, tmp_path):
    installed(name)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "(1, 2, 50)" in done.stdout
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {".ses"}  # importing onnxruntime leaves the id of its session


@pytest.mark.parametrize("name", discovery.engines())
def test_an_engine_comes_to_its_known_verdict(name, home):
    installed(name)
    if name == "torch_compile":
        pytest.skip("compiles for minutes; nox -s engines verifies it")
    request = Request([discovery.find(name)], catalogue.locate("micro"), SEED, [FLOAT32])
    outcome = runner.verify(request)
    failed = [row for row in outcome.rows if row.verdict == "fail"]
    silent = {row.scope for row in outcome.rows if row.verdict == "unlocalised"}
    assert silent == (set(tap_names(4)) if name in BLACK_BOXES else set())
    if name not in WRONG or (name == "openvino" and not computes_in_bfloat16()):
        assert failed == []
        assert exit_code(outcome.rows) == 0
        return
    assert exit_code(outcome.rows) == 1
    (found,) = explain.findings(outcome.rows).values()
    assert registry.text_of(WRONG[name]) in found[0].text
    if name in BLACK_BOXES:
        assert {row.blame for row in failed} == {"logits"}
        assert {row.mistake for row in failed if row.check == "logits"} == {WRONG[name]}


def test_the_ledger_of_the_documents_covers_an_engine_in_int8(home, tmp_path):
    installed("ctranslate2_int8")
    page = (discovery.IMPLS.parent / "docs" / "known_failures.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("ctranslate2_int8-cpu-float32 |")]
    (tmp_path / "known.txt").write_text("\n".join(lines), encoding="utf-8")
    found = [discovery.find("ctranslate2_int8")]
    outcome = runner.verify(Request(found, catalogue.locate("micro"), SEED, [FLOAT32]))
    rows = known_failures.apply(outcome.rows, known_failures.read(tmp_path / "known.txt"))
    assert len(lines) == 6
    assert [row for row in rows if row.verdict == "fail"] == []
    assert exit_code(rows) == 0


def computes_in_bfloat16():
    """Whether OpenVINO does so by itself on this processor."""
    import openvino

    return openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() == "bf16"


def test_folded_weights_are_told_first_and_as_one(prepared):
    rows = examine(plant(named("folded_weights")), prepared, only=QUICK)
    (found,) = explain.findings(rows).values()
    assert found[0].mistake == "folded_weights"
    products = "h*/attn/c_attn, h*/attn/c_proj, h*/mlp/c_fc, h*/mlp/c_proj"
    assert found[0].where == f"embed, {products}, logits"


def test_an_engine_that_raises_is_not_told_where_to_look_in_its_arithmetic(prepared):
    def refuse(*_):
        raise TypeError("no kernel")

    module = Plain.with_("raises_with_several_rows", head=refuse)
    (found,) = explain.findings(examine(module, prepared, only=QUICK)).values()
    assert "no kernel" in found[0].text
    assert found[0].look == ""


# -- a black box that is wrong


def boxed(module):
    """A specimen that shows nothing but its logits."""
    return SimpleNamespace(
        **{name: getattr(module, name) for name in ("targets", "load", "numpy")},
        forward=lambda model, tokens, past=None, tap=None: module.forward(model, tokens, past),
        TAPS=(),
        __name__="boxed",
    )


def said(rows):
    """The diagnoses of wrong logits, by name, and where blame falls."""
    failed = [row for row in rows if row.verdict == "fail"]
    names = {row.mistake for row in failed if row.check == "logits"}
    return names, {row.blame for row in failed}


OF_LOGITS = {"logits", "activations", "kv_cache", "batch", "lengths"}


@pytest.mark.parametrize(
    "name",
    [
        *("erf_gelu", "gelu_float16_table", "epsilon_1e-06", "tf32_inputs", "float16_weights"),
        *("mask_one_too_far", "no_positions", "head_of_neighbours", "logits_centred"),
        "log_probabilities",
    ],
)
def test_a_fault_made_in_every_layer_of_a_black_box_is_diagnosed(name, prepared):
    fault = named(name)
    assert fault.diagnosis in whole_model.NAMES
    names, blamed = said(
        examine(boxed(plant(fault)), prepared, only={"seed", "batch"}, checks=OF_LOGITS)
    )
    as_good = {"tf32_inputs": "whole_tf32"}  # logits alone do not show whether weights are rounded too
    assert names <= {fault.diagnosis, as_good.get(name)}
    assert len(names) == 1
    assert blamed == {"logits"}


def test_a_float16_cache_is_diagnosed_in_and_out_of_the_box(prepared):
    def in_float16(past, k, v, at):
        return Plain.extend(past, through_float16(k), through_float16(v), at)

    module = Plain.with_("float16_cache", extend=in_float16)
    rows = examine(boxed(module), prepared, only=QUICK, checks=OF_LOGITS)
    assert said(rows) == ({"float16_cache"}, {"logits"})
    rows = examine(module, prepared, only=QUICK, checks={"local"})
    assert {row.mistake for row in rows if explain.diagnosis(row)} == {"float16_cache"}


def test_an_unknown_mistake_in_a_black_box_is_said_to_be_unexplained(prepared):
    strange = Plain.with_("strange", gelu=lambda x, at: Plain.gelu(x, at) * (1 + 0.02 * np.sin(9 * x)))
    rows = examine(boxed(strange), prepared, only=QUICK, checks={"logits"})
    told = {explain.diagnosis(row) for row in rows if row.check == "logits" and row.verdict == "fail"}
    assert told
    assert all(text.startswith("no known mistake") for text in told)


def test_an_honest_black_box_passes_and_no_mistake_is_looked_for(prepared, monkeypatch):
    monkeypatch.setattr(whole_model, "explain", lambda *_: pytest.fail("there is nothing to explain"))
    rows = examine(boxed(discovery.find("numpy").load()), prepared)
    assert {row.verdict for row in rows} == {"pass", "unlocalised"}
    assert exit_code(rows) == 0


def test_every_mistake_tried_on_a_whole_model_is_on_the_shelf_and_changes_it(prepared):
    assert {mistake.name for mistake in MISTAKES} >= whole_model.NAMES
    record = next(record for record in prepared.at("float32") if record.name == "fresh")
    checkpoint = prepared.checkpoint
    right = oracle.forward(checkpoint.params, checkpoint.hparams, record.tokens)
    loaded = SimpleNamespace(params=checkpoint.params, hparams=checkpoint.hparams)
    for mistake in (mistake for mistake in MISTAKES if mistake.name in whole_model.NAMES):
        wrong = whole_model.Hypothesis(loaded, mistake, mistake.kinds, 0).logits(record.tokens)
        assert wrong is not None, mistake.name
        assert not np.array_equal(wrong, right), mistake.name


# -- the table


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """docs/engines.py, with a folder of its own for what the runs left."""
    path = discovery.IMPLS.parent / "docs" / "engines.py"
    spec = importlib.util.spec_from_file_location("docs_engines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def write(engines, name, rows):
    out = engines.place(name, "micro")
    out.mkdir(parents=True)
    files.write(Results(rows, {"versions": {name: "1.2"}, "model": "micro"}), out)


def test_the_table_says_what_was_not_run_and_what_could_not_be_installed(engines):
    assert engines.line("tinygrad", "micro")[3:6] == ["untested", "", "not run"]
    engines.excuse("tinygrad", "micro", "ERROR: no matching distribution")
    assert engines.line("tinygrad", "micro")[3:6] == ["untested", "", "ERROR: no matching distribution"]


def test_the_table_does_not_take_an_import_error_for_a_verdict(engines):
    judge = Judge("tinygrad", FLOAT32, "micro")
    write(engines, "tinygrad", [judge.failure("load", "ImportError at x.py:3: no clang")])
    assert engines.line("tinygrad", "micro")[3:6] == ["untested", "", "ImportError at x.py:3: no clang"]


def test_the_table_says_what_was_found(engines, prepared, tmp_path):
    rows = examine(boxed(plant(named("erf_gelu"))), prepared, only=QUICK, checks=OF_LOGITS)
    write(engines, "tinygrad", rows)
    _, version, _, verdict, share, found, silent = engines.line("tinygrad", "micro")
    assert (version, verdict, silent) == ("1.2", "disagrees (1)", "all 42 operations")
    assert "times (logits: " in share
    assert "erf instead of tanh GELU explains it" in found
    rows = examine(boxed(discovery.find("numpy").load()), prepared, only=QUICK, checks=OF_LOGITS)
    write(engines, "onnxruntime", rows)
    assert engines.line("onnxruntime", "micro")[3] == "passes (0)"
