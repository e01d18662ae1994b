"""parity fuzz: failures become files that run alone, and a corpus of them is replayed first."""

import ctypes
import itertools
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gpt2_parity
from commands import SPECIMEN, module, parity
from examine import FLOAT32
from gpt2_parity.checks.search import draw
from gpt2_parity.checks.search.trial import GENERATE, GRADIENTS, REFUSED, Step, Trial
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.plan import Asked
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation import discovery
from gpt2_parity.implementation.discovery import IMPLS, Found
from gpt2_parity.implementation.without_cache import with_cache
from gpt2_parity.model import catalogue
from gpt2_parity.run import corpus, in_process, reproducer
from gpt2_parity.run import request as requests
from gpt2_parity.run.request import Request

SIZES = HParams(n_vocab=31, n_ctx=48, n_embd=24, n_head=3, n_layer=2)
PREFILL = (Step(batch=2, n=18), Step(past=0, batch=2, n=6), Step(past=1, batch=2))
DRAWN = draw.trials


def searched(path, prepared, monkeypatch, trials, *, replayed=(), seed=1):
    """The rows of the check search on a file, which makes two plain trials and then the given ones."""
    monkeypatch.setattr(
        draw, "trials", lambda seed, offer: [*itertools.islice(DRAWN(seed, offer), draw.PLAIN), *trials]
    )
    found = discovery.find(str(path))
    state = prepared.state(found.name, "micro")
    state.asked = Asked(only=("search",), search=1.0, seed=seed, corpus=tuple(replayed))
    in_process.measure(state, with_cache(found.load()), FLOAT32, prepared)
    return state.rows, found


def alone(path, implementation=None):
    """A reproducer that is run where our package cannot be imported."""
    code = "import runpy, sys; sys.modules['gpt2_parity'] = None; sys.argv[:1] = []; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [path] if implementation is None else [path, implementation]
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


ORIGINALS = "right = {name: f for name, f in globals().items() if callable(f)}\n"
FEW_QUERIES = """
def attention(qkv, kv, n_past, n_head):
    y = right["attention"](qkv, kv, n_past, n_head)
    return y * 1.5 if n_past and 5 <= qkv.shape[1] <= 7 else y
"""
FAULTS = {
    "queries": (FEW_QUERIES, Trial(SIZES, PREFILL, tapped=True), "attn-heads"),
    "heads": (
        """
        def attention(qkv, kv, n_past, n_head):
            y = right["attention"](qkv, kv, n_past, n_head)
            return y * (n_head <= 8)
        """,
        Trial(SIZES._replace(n_embd=36, n_head=9), PREFILL, tapped=True),
        "attn-heads-n_head-9",
    ),
    "values": (
        """
        def gelu(x):
            large = x > 20
            y = right["gelu"](x)
            y[large] = np.nan
            return y
        """,
        Trial(SIZES, PREFILL, ("gelu_inputs",), tapped=True),
        "mlp-gelu",
    ),
    "rows, without taps": (
        """
        def forward(model, tokens, past=None, tap=None, **more):
            logits, present = right["forward"](model, tokens, past, tap, **more)
            return logits + (tap is None and len(tokens) > 8), present
        """,
        Trial(SIZES, (Step(batch=9, n=3),)),
        "prefill-batch-9",
    ),
    "only a tap": (
        """
        def forward(model, tokens, past=None, tap=None, **more):
            def show(name, x):
                tap(name, x * 1.5 if name.endswith("c_fc") and len(tokens) > 8 else x)
            return right["forward"](model, tokens, past, tap and show, **more)
        """,
        Trial(SIZES, (Step(batch=9, n=3),), tapped=True),
        "mlp-c_fc-batch-9",
    ),
    "ids": (
        """
        def generate(model, tokens, n_new):
            ids = right["generate"](model, tokens, n_new)
            ids[2:] = (ids[2:] + 1) % model.hparams.n_vocab
            return ids
        """,
        Trial(SIZES, (Step(), Step(GENERATE, -1, 4, 5, n_new=3))),
        "generate-batch-3",
    ),
    "an error": (
        """
        def forward(model, tokens, past=None, tap=None, **more):
            if len(tokens) > 4:
                raise RuntimeError("batch too large")
            return right["forward"](model, tokens, past, tap, **more)
        """,
        Trial(SIZES, (Step(batch=2), Step(batch=6, n=2))),
        "prefill-batch-5",
    ),
    "an id that is no token": (
        """
        def refuse_bad_tokens(tokens, n_past, hparams):
            if n_past < 18:
                right["refuse_bad_tokens"](tokens, n_past, hparams)
            tokens[:] = tokens.clip(0, hparams.n_vocab - 1)
        """,
        Trial(SIZES, (*PREFILL, Step(REFUSED, 1, 2, 2))),
        "decode",
    ),
    "no cache": (
        """
        CACHE, TAPS, generate = None, (), None
        def forward(model, tokens):
            return right["forward"](model, tokens)[0] + (tokens.shape[1] == 24)
        """,
        Trial(SIZES, PREFILL),
        "decode",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_becomes_a_file_that_fails_alone_and_passes_when_it_is_right(
    prepared, tmp_path, monkeypatch, name
):
    code, trial, stem = FAULTS[name]
    path = module(tmp_path, "wrong", ORIGINALS + textwrap.dedent(code))
    rows, found = searched(path, prepared, monkeypatch, [trial])
    kept = corpus.keep(rows, found, tmp_path / "wrong.corpus", 60)
    assert corpus.WRITTEN in {each.outcome for each in kept}
    files = sorted((tmp_path / "wrong.corpus").glob(f"{stem}*.py"))
    assert files, kept
    for file in files:
        wrong = alone(file)
        assert wrong.returncode == 1
        assert "FAIL" in wrong.stdout
        assert ("batch too large" in wrong.stdout) == (name == "an error")
        right = tmp_path / "right.py"
        right.write_text(SPECIMEN if name != "no cache" else cacheless())
        done = alone(file, right)
        assert (done.returncode, done.stdout) == (0, "right\n"), done.stdout + done.stderr


def cacheless():
    code = """
    CACHE, TAPS, generate = None, (), None
    def forward(model, tokens):
        return right["forward"](model, tokens)[0]
    """
    return SPECIMEN + "\n\n" + ORIGINALS + textwrap.dedent(code)


@pytest.fixture(scope="module")
def wrong(prepared, tmp_path_factory):
    """An implementation that is wrong for 5 to 7 queries, and its corpus of one failure."""
    folder = tmp_path_factory.mktemp("wrong")
    path = module(folder, "wrong", ORIGINALS + FEW_QUERIES)
    with pytest.MonkeyPatch.context() as patch:
        trial = FAULTS["queries"][1]
        rows, found = searched(path, prepared, patch, [trial])
        [kept] = corpus.keep(rows, found, corpus.beside(found), 60)
        [again] = corpus.keep(rows, found, corpus.beside(found), 60)
    assert (kept.outcome, again.outcome) == (corpus.WRITTEN, corpus.THERE)
    assert kept.path.parent == folder / "wrong.corpus"
    return path


def test_an_entry_has_weights_tokens_truth_and_the_trial(wrong):
    [entry] = corpus.read(wrong.with_suffix(".corpus"))
    file = wrong.with_suffix(".corpus") / f"{entry['name']}.safetensors"
    arrays, trial = safetensors_mmap.read(file), Trial.of(entry["trial"])
    assert trial.tapped
    assert arrays["wte"].shape == (trial.hparams.n_vocab, trial.hparams.n_embd)
    for i, tokens in enumerate(trial.tokens()):
        assert np.array_equal(arrays[f"tokens/{i}"], tokens)
    [name] = [each for each in arrays if each.startswith("truth/")]
    assert arrays[name].dtype == np.float64
    assert (arrays[name.replace("truth", "allowed")] > 0).all()


def test_a_gate_replays_the_corpus_even_without_a_search(wrong):
    verdict = gpt2_parity.gate(wrong, targets="cpu-float32", only=["search"], search=0, seed=1)
    [row] = [row for row in verdict.rows if row.scope == "h*/attn/heads"]
    [entry] = corpus.read(wrong.with_suffix(".corpus"))
    assert row.verdict == "fail"
    assert row.evidence["search"]["corpus"] == entry["name"]
    assert f"of the corpus: {entry['name']}" in verdict.explain()
    assert verdict.environment["only"]


def test_a_repaired_implementation_passes_its_corpus(wrong, tmp_path):
    shutil.copytree(wrong.with_suffix(".corpus"), tmp_path / "mine.corpus")
    (tmp_path / "mine.py").write_text(SPECIMEN)
    done = parity("fuzz", tmp_path / "mine.py", "--minutes", 0, "--target", "cpu-float32", "--seed", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials (1 of the corpus, seed 4)" in done.stdout
    assert "(selected checks only: search)" in done.stdout


def test_a_known_failure_is_not_written_again(wrong):
    before = sorted(wrong.with_suffix(".corpus").iterdir())
    done = parity("fuzz", wrong, "--minutes", 0, "--target", "cpu-float32", "--seed", 4)
    assert done.returncode == 1
    assert "of the corpus: attn-heads" in done.stdout
    assert "written:" not in done.stdout
    assert sorted(wrong.with_suffix(".corpus").iterdir()) == before


def test_what_is_always_wrong_is_told_to_have_no_condition(tmp_path):
    path = module(tmp_path, "wrong", "def gelu(x):\n    return x\n")
    done = parity("fuzz", path, "--minutes", 0.01, "--target", "cpu-float32", "--seed", 4)
    assert done.returncode == 1
    assert "it fails without any condition" in done.stdout
    assert not (tmp_path / "wrong.corpus").exists()


def test_a_failure_that_does_not_come_again_is_told_and_not_written(prepared, tmp_path, monkeypatch):
    code = """
    calls = []
    def forward(model, tokens, past=None, tap=None, **more):
        logits, present = right["forward"](model, tokens, past, tap, **more)
        calls.append(tokens.shape == (9, 3))
        return logits + (sum(calls) == 1 and calls[-1]), present
    """
    path = module(tmp_path, "rare", ORIGINALS + textwrap.dedent(code))
    trial = Trial(SIZES, (Step(batch=9, n=3),))
    rows, found = searched(path, prepared, monkeypatch, [trial])
    kept = corpus.keep(rows, found, tmp_path / "rare.corpus", 60)
    assert [each.outcome for each in kept] == [corpus.NOT_AGAIN]
    assert not (tmp_path / "rare.corpus").exists()


@pytest.mark.parametrize("code", [SPECIMEN, "import nothing_of_this_name"], ids=["right", "broken"])
def test_what_does_not_fail_alone_is_not_written(prepared, tmp_path, monkeypatch, code):
    path = module(tmp_path, "wrong", ORIGINALS + FEW_QUERIES)
    rows, found = searched(path, prepared, monkeypatch, [FAULTS["queries"][1]])
    path.write_text(code)  # as if it failed only beside what had been loaded before
    kept = corpus.keep(rows, found, tmp_path / "wrong.corpus", 60)
    assert [each.outcome for each in kept] == [corpus.NOT_ALONE]
    assert not (tmp_path / "wrong.corpus").exists()


def test_the_calls_branch_and_drop_caches_as_the_trial_does():
    steps = (Step(), Step(past=0), Step(), Step(past=0), Step(past=1), Step(past=3), Step())
    shown = {"step": 5, "compare": "logits", "tapped": False, "cache": "kept"}
    assert reproducer.lines(Trial(SIZES, steps), shown) == [
        'logits, cache = impl.forward(model, data["tokens/0"])',
        'logits, cache_2 = impl.forward(model, data["tokens/1"], cache)',
        'logits, _ = impl.forward(model, data["tokens/2"])',
        'logits, cache = impl.forward(model, data["tokens/3"], cache)',
        'logits, _ = impl.forward(model, data["tokens/4"], cache_2)',
        'logits, _ = impl.forward(model, data["tokens/5"], cache)',
        'got["logits"] = logits',
    ]


GOOD = Trial(SIZES, PREFILL).as_json()
BAD = {
    "no safetensors": b"nothing",
    "no trial": None,
    "no JSON": "{",
    "another trial": json.dumps({"steps": []}),
    "too many tokens": json.dumps(GOOD | {"hparams": SIZES._replace(n_ctx=9)._asdict()}),
    "a size that is no number": json.dumps(GOOD | {"hparams": SIZES._asdict() | {"n_vocab": "31"}}),
    "a size that is too large": json.dumps(GOOD | {"hparams": SIZES._replace(n_vocab=2**40)._asdict()}),
    "an unknown call": json.dumps(GOOD | {"steps": [{"kind": "train"}]}),
    "a later cache": json.dumps(GOOD | {"steps": [{"past": 1}, {}]}),
    "an unknown extreme": json.dumps(GOOD | {"extremes": ["everything"]}),
}


@pytest.mark.parametrize("name", BAD)
def test_an_entry_that_cannot_be_read_is_named(tmp_path, name):
    folder, content = tmp_path / "mine.corpus", BAD[name]
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / "bad.safetensors").write_bytes(content)
    else:
        metadata = {} if content is None else {corpus.TRIAL: content}
        safetensors_mmap.write(folder / "bad.safetensors", {"x": np.zeros(1)}, metadata)
    with pytest.raises(CannotJudge, match=r"bad\.safetensors"):
        corpus.read(folder)


def test_a_corpus_that_is_not_there_is_refused(tmp_path):
    done = parity("gate", "numpy", "--corpus", tmp_path / "none", "--target", "cpu-float32")
    assert done.returncode == 2
    assert "none: no such folder" in " ".join(done.stderr.split())


def test_a_run_records_its_corpus(prepared, tmp_path):
    entries = [{"name": "one", "trial": json.loads(json.dumps(GOOD))}]
    request = Request([discovery.find("numpy")], catalogue.locate("micro"), 1, corpus=entries)
    requests.begin(requests.record(request, {}), tmp_path)
    again = requests.interrupted(tmp_path)
    assert again.asked == request.asked
    assert Asked.of(json.loads(json.dumps(again.asked._asdict()))).corpus == tuple(entries)
    with pytest.raises(CannotJudge, match="corpus was"):
        requests.begin(requests.record(request._replace(corpus=[]), {}), tmp_path)


def test_the_corpus_lies_beside_the_file_or_in_the_working_folder(tmp_path):
    assert corpus.beside(Found("mine", str(tmp_path / "mine.py"))) == tmp_path / "mine.corpus"
    assert corpus.beside(Found("numpy", str(IMPLS / "gpt2_numpy.py"))) == Path("numpy.corpus")


def test_what_is_not_offered_is_not_replayed():
    offer = draw.Offer(offers=(), taps=False, branches=False, refuses=False)
    for steps in [(Step(GRADIENTS, n=2),), (Step(GENERATE, n_new=1),), (Step(), Step(REFUSED))]:
        assert draw.asked_of(Trial(SIZES, steps), offer) is None
    assert draw.asked_of(Trial(SIZES, (Step(), Step(past=0), Step(past=0))), offer) is None
    assert draw.asked_of(Trial(SIZES, PREFILL, tapped=True), offer) == Trial(SIZES, PREFILL)


# ---- a gradient in C, as in llm.c before its issue 168

COSH = "float c = coshf(z), r = 1 / c; r = r * (2 - c * r); float slope = r * r;"  # a division as
# compilers make it of an estimate and a step of Newton's method: infinity gives NaN. z is infinite in
# cosh from x = 13 on.
TANH = "float t = tanhf(z), slope = 1 - t * t;"
SOURCE = """
#include <math.h>
void gelu_slope(const float *x, float *y, long n) {
    for (long i = 0; i < n; i++) {
        float root = 0.7978845608f, z = root * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        SLOPE
        y[i] = 0.5f * (1 + tanhf(z))
             + 0.5f * x[i] * slope * root * (1 + 3 * 0.044715f * x[i] * x[i]);
    }
}
"""
IN_C = """
import ctypes

in_c = ctypes.CDLL({library!r})


class Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        x = x.contiguous()
        y = torch.empty_like(x)
        address = [ctypes.cast(each.data_ptr(), ctypes.POINTER(ctypes.c_float)) for each in (x, y)]
        in_c.gelu_slope(*address, ctypes.c_long(x.numel()))
        return slope * y


def gelu(x):
    return Gelu.apply(x)


def targets():
    return [("cpu", "float32")]
"""


def compiled(folder, name, slope):
    """The torch specimen with a GELU gradient in C."""
    pytest.importorskip("torch")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(SOURCE.replace("SLOPE", slope))
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True, text=True
    )
    path = folder / f"{name}.py"
    specimen = (IMPLS / "gpt2_torch.py").read_text()
    path.write_text(specimen + IN_C.format(library=str(library)))
    return path


def early(seed):
    """What a search draws first, after the two plain trials."""
    offer = draw.Offer(offers=("generate", "loss_and_grads"))
    return [*itertools.islice(DRAWN(seed, offer), draw.PLAIN, 6)]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_large_gelu_inputs_are_among_the_first_trials(seed):
    kinds = [(trial.extremes, {step.kind for step in trial.steps}) for trial in early(seed)]
    assert any(extremes == ("gelu_inputs",) and GRADIENTS in steps for extremes, steps in kinds)


def test_a_nan_gradient_of_large_gelu_inputs_is_found_told_and_kept(prepared, tmp_path, monkeypatch):
    before = compiled(tmp_path, "before", COSH)
    rows, found = searched(before, prepared, monkeypatch, early(1))
    failed = {row.scope: row for row in rows if row.verdict == "fail"}
    assert set(failed) == {GRADIENTS}
    assert failed[GRADIENTS].status == "nan"
    [kept] = corpus.keep(rows, found, tmp_path / "before.corpus", 100)
    assert kept.path.stem.startswith("gradients")
    assert "got nan" in alone(kept.path).stdout
    after = compiled(tmp_path, "after", TANH)
    assert alone(kept.path, after).returncode == 0
    rows, _ = searched(after, prepared, monkeypatch, early(1))
    assert {row.verdict for row in rows} == {"pass"}


def test_the_gradient_in_c_is_wrong_for_large_inputs_only(tmp_path):
    x = np.array([-20, -3, 0.5, 3, 12, 14, 40], np.float32)
    y, right = np.empty_like(x), np.empty_like(x)
    for slope, result in ((COSH, y), (TANH, right)):
        path = compiled(tmp_path, f"slope_{len(slope)}", slope).with_suffix(".so")
        pointers = [each.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for each in (x, result)]
        ctypes.CDLL(str(path)).gelu_slope(*pointers, ctypes.c_long(len(x)))
    assert np.isfinite(right).all()
    assert np.isnan(y).tolist() == [True, False, False, False, False, True, True]
    np.testing.assert_allclose(y[1:5], right[1:5], rtol=1e-4, atol=1e-6)
