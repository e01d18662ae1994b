"""The command as users run it: exit codes, files, and implementations that misbehave."""

import json
import os
import shutil
import xml.etree.ElementTree as ET

import pytest
from commands import module, parity
from faults import FAULTS, plant

from harness import discover, models, results
from harness.contract import CannotJudge
from harness.judge import Row


@pytest.fixture(scope="module")
def numpy_run(tmp_path_factory, prepared):
    out = tmp_path_factory.mktemp("out")
    done = parity("verify", "--impl", "numpy", "--model", "micro", "--out", out, "--seed", 5)
    return done, out


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
    assert set(frame.columns) == {*agreed.split(), "diagnosis", "detail"}
    assert set(frame.verdict) == {"pass"}
    assert frame.attrs["seed"] == 5
    assert frame.groupby("dtype").size().to_dict().keys() == {"float32", "float64"}
    document = json.loads((numpy_run[1] / "results.json").read_text())
    assert document["schema"] == results.SCHEMA


def test_the_three_files_tell_the_same(numpy_run):
    frame, out = results.read(numpy_run[1]), numpy_run[1]
    cases = list(ET.parse(out / "junit.xml").getroot().iter("testcase"))
    assert len(cases) == len(frame)
    assert f"{len(frame)} pass" in (out / "report.md").read_text()


def test_a_wrong_implementation_exits_1_and_is_named(tmp_path, prepared):
    fault = next(fault for fault in FAULTS if fault.name == "erf_gelu")
    plant(fault, tmp_path)
    path, out = tmp_path / f"{fault.name}.py", tmp_path / "out"
    done = parity("verify", "--impl", path, "--impl", "numpy", "--target", "cpu-float32", "--out", out)
    assert done.returncode == 1
    frame = results.read(out)
    wrong = frame[frame.verdict == "fail"]
    assert set(wrong.implementation) == {fault.name}
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
    assert by_local.diagnosis.str.startswith("erf_gelu: ").all()
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
    done = parity(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_implementation_is_named_from_the_working_folder_where_it_lies_in_there(
    tmp_path, monkeypatch
):
    (tmp_path / "own.py").touch()
    monkeypatch.chdir(tmp_path)
    assert discover.find("own.py").argument == "own.py"
    assert discover.find("own.py:it").argument == "own.py:it"
    assert discover.find("numpy").argument == "numpy"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert discover.find("../own.py").argument == str(tmp_path / "own.py")


def test_a_target_that_only_some_offer_is_skipped_by_the_others_and_says_so(tmp_path, prepared):
    code = "def targets():\n    return [('cpu', 'float64')]"
    path, out = module(tmp_path, "only64", code), tmp_path / "out"
    chosen = ("--impl", path, "--impl", "numpy", "--target", "cpu-float32")
    done = parity("verify", *chosen, "--out", out)
    assert done.returncode == 0
    frame = results.read(out)
    assert set(frame[frame.implementation == "only64"].verdict) == {"skipped"}
    assert "not offered" in done.stdout


@pytest.mark.parametrize("name", ["model.ckpt.index", "manifest.json"])
def test_a_damaged_file_exits_2_and_is_named(name, tmp_path, home):
    """A checkout of its own, so that the shipped files stay whole."""
    root = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("harness", "impls", "golden"):
        shutil.copytree(models.GOLDEN.parent / folder, root / folder, ignore=ignore)
    path = next(root.rglob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = parity("verify", "--impl", "numpy", cwd=root, env=environment)
    assert done.returncode == 2, done.stdout
    assert name in done.stderr


def test_list_shows_implementations_models_and_checks():
    done = parity("list")
    assert done.returncode == 0
    for word in ("numpy", "jax", "torch", "tensorflow", "micro", "1558M", "kv_cache", "bad_tokens"):
        assert word in done.stdout


def test_results_of_another_schema_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99, "rows": []}')
    with pytest.raises(CannotJudge, match="not results of schema"):
        results.read(tmp_path)
    with pytest.raises(CannotJudge, match="not readable"):
        results.read(tmp_path / "nowhere")


def test_markdown_survives_hostile_text():
    row = Row("a|b", "cpu", "float32", "m", "c", "logits", "s", "noise_units", 9.0, 8.0, None,
              "fail", "", "", "| <script> `x` *y*")  # fmt: skip
    text = results.markdown(results.Results([row], {"model": "m"}))
    assert "<script>" not in text
    assert "\\<script\\>" in text


def test_an_earlier_runs_results_do_not_outlive_a_run_that_cannot_judge(tmp_path, numpy_run):
    out = shutil.copytree(numpy_run[1], tmp_path / "out")
    assert parity("verify", "--impl", "numpy", "--target", "cuda-float32", "--out", out).returncode == 2
    assert list(out.iterdir()) == []
