"""The command as users run it: exit codes, files, and misbehaving implementations."""

import io
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

import gpt2_parity
from commands import SPECIMEN, here, interruptible, module, parity
from examine import examine
from faults import named, write
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Row, exit_code
from gpt2_parity.files.output_folder import alone, replacing
from gpt2_parity.implementation import discovery
from gpt2_parity.implementation.discovery import IMPLS, find
from gpt2_parity.model import catalogue
from gpt2_parity.report import files, results, terminal

pytestmark = pytest.mark.xdist_group("run")  # one worker makes what all of these share


@pytest.fixture(scope="module")
def numpy_run(tmp_path_factory, prepared):
    out = tmp_path_factory.mktemp("out")
    done = parity("verify", "--impl", "numpy", "--model", "micro", "--out", out, "--seed", 5)
    return done, out


def shown(verdict, width=200):
    """What the commands print of a verdict."""
    screen = Console(width=width, file=io.StringIO())
    terminal.show(screen, verdict.results)
    return screen.file.getvalue()


def test_a_clean_run_exits_0_and_writes_four_files(numpy_run):
    done, out = numpy_run
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(results.FILES)
    assert "PASS" in done.stdout
    assert "cuda: skipped: no CUDA device" in done.stdout
    assert "seed of the fresh tokens: 5" in done.stdout
    assert "' the most powerful machines on the planet.'" in done.stdout


def test_results_json_has_the_agreed_columns_and_pandas_reads_it(numpy_run):
    frame = results.read(numpy_run[1])
    agreed = "implementation device dtype model case check scope metric value limit ratio verdict blame"
    assert set(frame.columns) == {
        *agreed.split(),
        "status",
        "mistake",
        "evidence",
        "diagnosis",
        "detail",
    }
    assert set(frame.verdict) == {"pass"}
    assert frame.attrs["seed"] == 5
    assert frame.groupby("dtype").size().to_dict().keys() == {"float32", "float64"}
    document = json.loads((numpy_run[1] / "results.json").read_text())
    assert document["schema"] == results.SCHEMA


def test_it_shows_its_version():
    done = parity("--version")
    version = tomllib.loads((IMPLS.parent / "pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stdout) == (0, f"gpt2-parity {version}\n")


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (180, 1)])
def test_no_word_of_the_table_is_broken_however_narrow_the_terminal(numpy_run, width, tables):
    lines = shown(gpt2_parity.read(numpy_run[1]), width).splitlines()
    heads = [line.split("  ") for line in lines if line.startswith(" implementation")]
    words = [word.strip() for head in heads for word in head if word.strip()]
    offered_by_others = ("gradients", "own_weights", "search")
    names = [name.replace("_", " ") for name in CHECKS if name not in offered_by_others]
    assert [word for word in words if word != "implementation"] == names
    assert len(heads) == tables


def test_the_three_files_agree(numpy_run):
    frame, out = results.read(numpy_run[1]), numpy_run[1]
    cases = list(ET.parse(out / "junit.xml").getroot().iter("testcase"))
    assert len(cases) == len(frame)
    assert f"{len(frame)} pass" in (out / "report.md").read_text()


def test_a_wrong_implementation_exits_1_and_is_named(tmp_path, prepared):
    path, out = write(named("erf_gelu"), tmp_path), tmp_path / "out"
    done = here("verify", "--impl", path, "--impl", "numpy", "--target", "cpu-float32", "--out", out)
    assert done.returncode == 1
    frame = results.read(out)
    wrong = frame[frame.verdict == "fail"]
    assert set(wrong.implementation) == {"erf_gelu"}
    assert "h0/mlp/gelu" in set(wrong.scope)
    assert set(frame[frame.implementation == "numpy"].verdict) == {"pass"}
    failures = [
        case for case in ET.parse(out / "junit.xml").iter("testcase") if case.find("failure") is not None
    ]
    assert len(failures) == len(wrong)
    report = (out / "report.md").read_text()
    assert "## Failures" in report
    assert "erf instead of tanh GELU explains it" in report
    assert "erf instead of tanh GELU explains it" in done.stdout
    by_local = wrong[wrong.check == "local"]
    assert set(by_local.blame) == {f"h{i}/mlp/gelu" for i in range(4)}
    assert set(by_local.mistake) == {"erf_gelu"}
    assert set(wrong[wrong.check != "local"].blame) == {"h*/mlp/gelu"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--impl", "nonesuch"], "implementation 'nonesuch'"),
        (["verify", "--impl", "missing.py"], "no such file"),
        (["verify", "--model", "nonesuch"], "model 'nonesuch'"),
        (["verify", "--model", "124M"], "model 124M: not at"),
        (
            ["verify", "--impl", "numpy", "--target", "cuda-float32"],
            "target cuda-float32: offered by none",
        ),
        (["verify", "--target", "cuda"], "expected DEVICE-DTYPE"),
        (["verify", "--out", "/dev/null/x"], "cannot be made"),
        (["verify", "--nonesuch"], "No such option"),
        (["golden", "verify", "--model", "124M"], "model 124M: not at"),
        (["nonesuch"], "No such command"),
    ],
)
def test_what_cannot_be_judged_exits_2_with_one_clear_line(arguments, message, prepared):
    done = here(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("verify", "--impl", "numpy", "--out"), ("bench", "--out")])
def test_a_run_is_refused_where_another_one_is_under_way(command, tmp_path, prepared):
    """Both would write into one journal, and a right implementation would fail."""
    with alone(tmp_path / "out"):
        done = here(*command, tmp_path / "out")
        assert done.returncode == 2
        assert "another run is using it" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_refused_run_removes_the_folder_that_it_made(tmp_path, prepared):
    done = here("verify", "--impl", "numpy", "--target", "tpu-float32", "--out", tmp_path / "a" / "b")
    assert done.returncode == 2
    assert not (tmp_path / "a" / "b").exists()


def test_a_complete_run_cannot_be_resumed(tmp_path):
    (tmp_path / results.NAME).write_text("{}")
    done = here("resume", tmp_path)
    assert done.returncode == 2
    assert "its run is complete" in done.stderr


def test_an_implementation_is_named_relative_to_the_working_folder_where_it_is_in_it(
    tmp_path, monkeypatch
):
    (tmp_path / "own.py").touch()
    monkeypatch.chdir(tmp_path)
    assert discovery.find("own.py").argument == "own.py"
    assert discovery.find("own.py:it").argument == "own.py:it"
    assert discovery.find("numpy").argument == "numpy"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert discovery.find("../own.py").argument == str(tmp_path / "own.py")


def test_a_target_that_only_some_offer_is_skipped_for_the_others(tmp_path, prepared):
    code = "def targets():\n    return [('cpu', 'float64')]"
    path = module(tmp_path, "only64", code)
    verdict = gpt2_parity.verify([path, "numpy"], targets="cpu-float32", only=["logits"])
    assert verdict.exit_code == 0
    frame = verdict.frame()
    assert set(frame[frame.implementation == "only64"].verdict) == {"skipped"}
    assert "not offered" in shown(verdict)


@pytest.mark.parametrize("name", ["model.ckpt.index", "manifest.json"])
def test_a_damaged_file_exits_2_and_is_named(name, tmp_path, home):
    """In a copy of the checkout, so that the shipped files stay intact."""
    root = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("harness", "impls", "golden"):
        shutil.copytree(catalogue.GOLDEN.parent / folder, root / folder, ignore=ignore)
    path = next(root.rglob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    environment = os.environ | {"PYTHONPATH": str(root / "harness")}
    done = parity("verify", "--impl", "numpy", cwd=root, env=environment)
    assert done.returncode == 2, done.stdout
    assert name in done.stderr


def test_list_shows_implementations_models_and_checks():
    done = here("list")
    assert done.returncode == 0
    for word in ("numpy", "jax", "torch", "tensorflow", "micro", "1558M", "kv_cache", "bad_tokens"):
        assert word in done.stdout


def test_results_of_another_schema_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99, "rows": []}')
    with pytest.raises(CannotJudge, match="not results of schema"):
        results.read(tmp_path)
    with pytest.raises(CannotJudge, match="no such file"):
        results.read(tmp_path / "nowhere")


def test_markdown_survives_hostile_text():
    row = Row("a|b", "cpu", "float32", "m", "c", "logits", "s", "noise_units", 9.0, 8.0, None,
              "fail", "measured", "", "", {"note": "| <script> `x` *y*"})  # fmt: skip
    text = files.job_summary(results.Results([row], {"model": "m"}))
    assert "<script>" not in text
    assert "\\<script\\>" in text


# -- earlier results are not lost, and implementations are found


def listing(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [("--target", "tpu-float32"), ("--require-device", "tpu"), ("--ledger", "no/such/ledger")],
    ids=lambda options: options[0],
)
def test_a_refused_run_leaves_an_earlier_one_as_it_was(numpy_run, tmp_path, options):
    """Both its results and the journal of a killed run."""
    out = tmp_path / "out"
    shutil.copytree(numpy_run[1], out)
    (out / "journal").mkdir()
    (out / "journal" / "run.json").write_text("{}")
    before = listing(out)
    done = here("gate", "numpy", *options, "--out", out)
    assert done.returncode == 2
    assert listing(out) == before


def test_a_refused_benchmark_leaves_an_earlier_one_as_it_was(tmp_path, prepared):
    (tmp_path / "bench.json").write_text("{}")
    done = here("bench", "--impl", "numpy", "--model", "micro", "--against", "foo", "--out", tmp_path)
    assert done.returncode == 2
    assert listing(tmp_path) == {Path("bench.json"): b"{}"}


def test_an_earlier_run_is_restored_where_one_of_its_files_cannot_be_moved(tmp_path, monkeypatch):
    earlier = {"results.json": b"{}", "junit.xml": b"<a/>", "report.md": b"# r"}
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    real = Path.rename

    def rename(path, target):
        if path.name == "report.md":  # the last one: two have been moved by then
            raise PermissionError(1, "Operation not permitted", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(CannotJudge, match=r"report\.md: cannot be removed"),
        replacing(tmp_path, earlier),
    ):
        pytest.fail("the new run has begun")
    assert listing(tmp_path) == {Path(name): content for name, content in earlier.items()}


def test_an_optional_function_that_is_none_counts_as_absent(tmp_path, prepared):
    path = module(tmp_path, "bare", "generate = None\nloss_and_grads = None")
    rows = examine(find(str(path)).load(), prepared, checks={"logits", "greedy", "gradients"})
    assert exit_code(rows) == 0
    assert not [row for row in rows if row.check == "gradients" or row.scope.startswith("generate")]


def test_a_run_replaces_an_earlier_one(tmp_path, prepared):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "run.json").write_text("{}")
    gpt2_parity.gate("numpy", targets="cpu-float32", out=tmp_path, only=["logits", "local"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(results.FILES)
    assert len(results.read(tmp_path)) > 100


def test_a_folder_that_is_not_a_journal_is_left_alone(tmp_path, prepared):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "monday.md").write_text("precious")
    done = here("gate", "numpy", "--out", tmp_path)
    assert done.returncode == 2
    assert "is not the journal of a run" in done.stderr
    assert listing(tmp_path) == {Path("journal/monday.md"): b"precious"}


def test_two_implementations_of_one_name_are_refused(tmp_path, prepared):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        module(tmp_path / folder, "m", "")
    done = here("verify", "--impl", "a/m.py", "--impl", "b/m.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "a/m.py and b/m.py: all would be 'm'" in done.stderr


def test_a_module_beside_the_file_is_found(tmp_path, prepared):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "sibling_of_mine.py").write_text("ANSWER = 42\n")
    path = module(
        tmp_path / "there", "mine", "import sibling_of_mine\nassert sibling_of_mine.ANSWER == 42"
    )
    assert gpt2_parity.gate(path, targets="cpu-float32", only=["logits"]).passed


WRITES = """
_load = load
def load(params, hparams, **target):
"""


def test_writing_into_the_weights_does_not_blind_the_verdict(tmp_path, prepared):
    """Nor does it reach the next target: each load gets the weights of the file."""
    wrong = WRITES + "    params['h1/mlp/c_fc/w'] *= 1.01\n    return _load(params, hparams, **target)\n"
    checks = ["logits", "activations", "local", "weights", "kv_cache", "greedy"]
    frame = gpt2_parity.gate(module(tmp_path, "wrong", wrong), only=checks).frame()
    local = frame[(frame.check == "local") & (frame.verdict == "fail")]
    assert set(local.dtype) == {"float32", "float64"}
    assert set(local.scope) == set(frame[frame.verdict == "fail"].blame) == {"h1/mlp/c_fc"}
    differences = frame[(frame.scope == "logits") & (frame.metric == "noise_units")]
    shown = differences[differences["case"] == "seed"].groupby("dtype").detail.first()
    assert shown["float32"] == shown["float64"]  # greatest difference, to three digits


def test_overwriting_the_weights_after_copying_them_is_allowed(tmp_path, prepared):
    copies = """
    copied = {name: w.copy() for name, w in params.items()}
    for w in params.values():
        w.fill(0)
    return _load(copied, hparams, **target)
"""
    path = module(tmp_path, "copies", WRITES + copies)
    verdict = gpt2_parity.gate(path, only=["logits", "local", "weights", "kv_cache", "bad_tokens"])
    assert verdict.passed, verdict.explain()


def test_infinite_results_are_blamed_and_get_no_wrong_diagnosis(tmp_path, prepared):
    """Where the logits become NaN, the greedy tokens are reported as they came."""
    text = SPECIMEN.replace("    y *= g\n", "    y = y * g\n    y[0, 0, 0] = np.inf\n")
    (tmp_path / "infinite.py").write_text(text)
    checks = ["logits", "activations", "local", "greedy"]
    verdict = gpt2_parity.gate(tmp_path / "infinite.py", targets="cpu-float32", only=checks)
    assert "no known mistake explains it" in verdict.explain()
    assert "fall to inf" not in verdict.explain()
    frame = verdict.frame()
    failed = frame[frame.verdict == "fail"]
    assert set(failed[failed.check == "local"].blame) >= {"h0/ln_1"}
    greedy = failed[failed.check == "greedy"]
    assert greedy.detail.str.contains("ids [-1", regex=False).any()
    assert not greedy.detail.str.startswith("missing").any()


def test_bfloat16_arrays_that_are_not_numpys_own_are_read(tmp_path, prepared):
    pytest.importorskip("ml_dtypes")
    text = SPECIMEN.replace('("cpu", "float32"), ("cpu", "float64")', '("cpu", "bfloat16")')
    text = text.replace("np.asarray(w, dtype)", "rounded(w)").replace("model.dtype)", '"float32")')
    code = """
import ml_dtypes
def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype("float32")
def numpy(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16)
"""
    (tmp_path / "narrow.py").write_text(text + code)
    checks = ["logits", "activations", "kv_cache", "batch", "greedy"]
    frame = gpt2_parity.gate(tmp_path / "narrow.py", only=checks).frame()
    assert set(frame.check) == set(checks)
    assert not frame.detail.str.contains("the contract says").any()
    assert set(frame[(frame.check == "logits") & (frame.metric == "noise_units")].verdict) == {"pass"}


def test_the_line_of_a_syntax_error_is_named(tmp_path, prepared):
    (tmp_path / "mine.py").write_text("import math\n\ndef (:\n")
    done = here("gate", "mine.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "SyntaxError at mine.py:3" in done.stdout


def test_a_failed_import_is_explained_where_a_target_is_named_too(tmp_path, prepared):
    (tmp_path / "mine.py").write_text("import nonesuch\n")
    done = here("verify", "--impl", "mine.py", "--target", "cpu-float32", cwd=tmp_path)
    assert done.returncode == 1
    assert "No module named 'nonesuch'" in done.stdout
    assert "offered by none" not in done.stderr


@pytest.mark.parametrize("name", ["micro", "124M", "shape-124M"])
def test_a_folder_named_like_a_model_is_named_by_its_path(name, tmp_path):
    shutil.copytree(catalogue.locate("micro").checkpoint, tmp_path / name)
    found = catalogue.locate(str(tmp_path / name))
    assert found.name == name
    assert found.argument == str(tmp_path / name)
    assert catalogue.locate("micro").argument == "micro"


def test_ctrl_c_exits_2_and_says_how_to_continue(tmp_path, prepared):
    path = module(tmp_path, "slow", "import time\ndef forward(*args, **kw):\n    time.sleep(60)")
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text('{"complete": true}')
    running = subprocess.Popen(
        interruptible("gate", path, "--out", out),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("out/journal/*.jsonl")):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert sorted(path.name for path in out.iterdir()) == ["journal", "results.json"]
    assert (out / "results.json").read_text() == '{"complete": true}', "an earlier run's stay"
    assert "interrupted" in err
    assert "parity resume" in err


def test_a_wider_precision_than_declared_is_reported_everywhere(tmp_path, prepared):
    wide = SPECIMEN.replace("np.asarray(w, dtype) for name", "np.asarray(w, float) for name")
    assert wide != SPECIMEN
    (tmp_path / "wide.py").write_text(wide)
    one = {"targets": "cpu-float32", "out": tmp_path / "out", "only": ["precision"]}
    verdict = gpt2_parity.gate(tmp_path / "wide.py", **one)
    assert verdict.passed
    words = "measured float64, declared float32: wider than declared"
    assert words in shown(verdict)
    assert words in (tmp_path / "out" / "report.md").read_text()
    assert words in (tmp_path / "out" / "report.html").read_text()


def test_known_failures_are_reported_everywhere(tmp_path, prepared):
    fault = named("negative_tokens_wrap")
    known = tmp_path / "known.txt"
    name = f"{fault.name}-cpu-float32"
    known.write_text(f"{name} | bad_tokens | tokens | 2 | ids wrap until 2.1\n")
    path, out = write(fault, tmp_path), tmp_path / "out"
    verdict = gpt2_parity.gate(path, targets="cpu-float32", ledger=known, out=out)
    assert verdict.passed, verdict.explain()
    assert f"{name} bad_tokens: known: ids wrap until 2.1 (5 measurements)" in shown(verdict)
    assert "ids wrap until 2.1" in (out / "report.md").read_text().replace("\\", "")
    page = (out / "report.html").read_text()
    assert "It is right, but for 5 known disagreements</h1>" in page
    assert "ids wrap until 2.1" in page


def test_published_values_are_not_compared_below_float32(prepared):
    pytest.importorskip("torch")
    done = here("known", "micro", "--impl", "torch", "--target", "cpu-bfloat16")
    assert done.returncode == 2
    assert "the digits of float32" in done.stderr
