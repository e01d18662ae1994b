"""pytest --parity-impl: which tests there are, what they make, and what they report."""

import json
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import pytest

from commands import SPECIMEN, module
from faults import named, write
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.report import results

pytestmark = pytest.mark.xdist_group("pytest_plugin")  # one worker makes what all of these share

ONE = ("--parity-target", "cpu-float32")
OWN = "def test_own(): pass\n"
# An implementation that notes in a file beside it when it is imported.
NOTES = """
from pathlib import Path
with Path(__file__).with_name("notes.txt").open("a") as file:
    file.write("imported\\n")
"""


def pytest_in(folder, *arguments):
    """Run pytest in a folder; warnings are errors. Returns the finished process with its text."""
    command = [sys.executable, "-m", "pytest", "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def imports(folder) -> int:
    """How often the implementation with NOTES in a folder was imported."""
    path = folder / "notes.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def outcomes(path) -> dict[str, str]:
    """The outcome of each test in a JUnit file, by name."""
    return {
        case.get("name"): next((child.tag for child in case if child.tag != "properties"), "passed")
        for case in ET.parse(path).iter("testcase")
    }


def test_there_is_a_test_for_each_target_and_check_with_its_seconds_and_class(tmp_path, prepared):
    module(tmp_path, "mine", "")
    chosen = ("--parity-impl", "mine.py", *ONE, "--parity-out", "out", "--junitxml", "junit.xml")
    done = pytest_in(tmp_path, *chosen, "--durations", 3, "-vv")
    assert done.returncode == 0, done.stdout
    assert "mine.py::parity[cpu-float32-kv_cache] PASSED" in done.stdout
    names = [f"parity[cpu-float32-{check}]" for check in ("load", *CHECKS)]
    assert outcomes(tmp_path / "junit.xml") == dict.fromkeys(names, "passed") | {
        "parity[cpu-float32-gradients]": "skipped",  # the specimen has no loss_and_grads
        "parity[cpu-float32-own_weights]": "skipped",  # nor weights
        "parity[cpu-float32-search]": "skipped",  # PARITY_SEARCH=0
    }
    environment = results.load(tmp_path / "out").environment
    assert "only" not in environment
    seconds = environment["seconds_by_check"]["mine-cpu-float32"]
    for case in ET.parse(tmp_path / "junit.xml").iter("testcase"):
        check = case.get("name")[len("parity[cpu-float32-") : -1]
        assert case.get("classname") == "mine"
        if check != "load":  # the first test bears the start
            assert float(case.get("time")) == pytest.approx(seconds[check], abs=0.02)
    longest = max((name for name in seconds if name != "load"), key=seconds.__getitem__)
    assert f"{seconds[longest]:.2f}s call     mine.py::parity[cpu-float32-{longest}]" in done.stdout


def test_collecting_imports_once_and_runs_nothing(tmp_path, prepared):
    module(tmp_path, "mine", NOTES)
    done = pytest_in(tmp_path, "--parity-impl", "mine.py", "--co", "-q")
    assert done.stdout.count("mine.py::parity[") == 2 * (1 + len(CHECKS))
    assert imports(tmp_path) == 1


def test_with_its_targets_named_collecting_does_not_even_import(tmp_path, prepared):
    module(tmp_path, "mine", NOTES)
    done = pytest_in(tmp_path, "--parity-impl", "mine.py", *ONE, "--co", "-q")
    assert done.stdout.count("mine.py::parity[") == 1 + len(CHECKS)
    assert imports(tmp_path) == 0


@pytest.mark.parametrize("how", [("-k", "kv_cache"), ("mine.py::parity[cpu-float32-kv_cache]",)])
def test_only_the_selected_checks_are_made(how, tmp_path, prepared):
    module(tmp_path, "mine", NOTES)
    done = pytest_in(tmp_path, "--parity-impl", "mine.py", *ONE, "--parity-out", "out", *how)
    assert "1 passed" in done.stdout
    found = results.load(tmp_path / "out")
    assert {row.check for row in found.rows} == {"kv_cache"}
    assert found.environment["only"] == {"mine-cpu-float32": ["kv_cache"]}


def test_each_target_has_its_own_selection(tmp_path, prepared):
    module(tmp_path, "mine", NOTES)
    chosen = ("-k", "float32-taps or float64-causality", "--parity-out", "out")
    assert "2 passed" in pytest_in(tmp_path, "--parity-impl", "mine.py", *chosen).stdout
    found = results.load(tmp_path / "out")
    only = {"mine-cpu-float32": ["taps"], "mine-cpu-float64": ["causality"]}
    assert found.environment["only"] == only
    assert found.environment["seconds_by_check"].keys() == only.keys()
    assert {(row.dtype, row.check) for row in found.rows} == {
        ("float32", "taps"),
        ("float64", "causality"),
    }
    assert "mine-cpu-float32: taps; mine-cpu-float64: causality" in results.counts(found)


def test_under_xdist_nothing_is_made_twice_and_failures_are_explained(tmp_path, prepared):
    path = write(named("erf_gelu"), tmp_path)
    path.write_text(path.read_text() + NOTES)
    (tmp_path / "test_own.py").write_text(OWN)
    chosen = ("--parity-impl", path.name, "--parity-out", "out", "--junitxml", "junit.xml")
    done = pytest_in(tmp_path, "-n", 2, *chosen, "-k", "local or causality or test_own")
    assert done.returncode == 1
    assert "erf instead of tanh GELU explains it" in done.stdout
    assert f"FAILED {path.name}::parity[cpu-float32-local]" in done.stdout
    found = outcomes(tmp_path / "junit.xml")
    assert len(found) == 2 * 2 + 1
    assert found["test_own"] == found["parity[cpu-float32-causality]"] == "passed"
    assert imports(tmp_path) == 1 + 2  # to learn the targets, and once for each
    assert {row.dtype for row in results.load(tmp_path / "out").rows} == {"float32", "float64"}


def test_targets_with_the_same_selection_are_made_in_one_run(tmp_path, prepared):
    """One target is wrong, and only its tests fail."""
    code = """
    right = load
    def load(params, hparams, *, device, dtype):
        model = right(params, hparams, device=device, dtype=dtype)
        if dtype == "float64":
            model.params["ln_f/b"] += 1.0
        return model
    """
    module(tmp_path, "mine", NOTES + textwrap.dedent(code))
    chosen = ("--parity-out", "out", "--junitxml", "junit.xml")
    assert pytest_in(tmp_path, "--parity-impl", "mine.py", *chosen).returncode == 1
    found = outcomes(tmp_path / "junit.xml")
    assert {found[name] for name in found if "float32" in name} == {"passed", "skipped"}
    assert found["parity[cpu-float64-logits]"] == "failure"
    environment = results.load(tmp_path / "out").environment
    assert environment["command"].count("--target cpu-float") == 2  # of one run
    assert imports(tmp_path) == 1 + 2  # to learn the targets, and once for each


def test_last_failed_makes_only_what_failed(tmp_path, prepared):
    path = write(named("erf_gelu"), tmp_path)
    chosen = ("--parity-impl", path.name, *ONE, "--parity-out", "out")
    assert pytest_in(tmp_path, *chosen, "-k", "local or causality").returncode == 1
    done = pytest_in(tmp_path, *chosen, "--lf")
    assert "1 failed" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
    assert {row.check for row in results.load(tmp_path / "out").rows} == {"local"}


def test_in_addopts_it_costs_an_own_test_nothing_and_its_paths_are_relative_to_rootdir(
    tmp_path, prepared
):
    module(tmp_path, "mine", NOTES)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --parity-impl mine.py\n")
    below = tmp_path / "below"
    below.mkdir()
    (below / "test_own.py").write_text(OWN)
    done = pytest_in(below, "test_own.py")
    assert "1 passed" in done.stdout
    assert "parity[" not in done.stdout
    assert imports(tmp_path) == 0
    done = pytest_in(below, "--co", "-q")
    assert "mine.py::parity[cpu-float64-taps]" in done.stdout.splitlines()
    assert "below/test_own.py::test_own" in done.stdout.splitlines()


def test_an_object_and_a_file_of_tests_are_implementations_too(tmp_path, prepared):
    text = f"{SPECIMEN}\nimport sys\nclass Inside:\n    it = sys.modules[__name__]\n{OWN}"
    (tmp_path / "test_mine.py").write_text(text)
    chosen = ("--parity-impl", "test_mine.py:Inside.it", *ONE, "-k", "own or taps", "-v")
    done = pytest_in(tmp_path, *chosen)
    assert "test_mine.py::parity[Inside.it-cpu-float32-taps] PASSED" in done.stdout
    assert "test_mine.py::test_own PASSED" in done.stdout


def test_what_a_process_leaves_behind_fails_whatever_is_selected(tmp_path, prepared):
    code = "import subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    module(tmp_path, "mine", code)
    done = pytest_in(tmp_path, "--parity-impl", "mine.py", *ONE, "-k", "taps")
    assert "left processes behind" in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parity-impl", "nonesuch"], "implementation 'nonesuch'"),
        (["--parity-impl", "numpy", "--parity-model", "nonesuch"], "model 'nonesuch'"),
        (["--parity-impl", "numpy", "--parity-target", "cpu"], "expected DEVICE-DTYPE"),
        (["--parity-impl", "numpy", "--parity-ledger", "nonesuch"], "ledger"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error_of_pytest(arguments, message, tmp_path):
    done = pytest_in(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr


def test_a_required_device_that_is_absent_is_an_error_of_collection(tmp_path):
    done = pytest_in(tmp_path, "--parity-impl", "numpy", "--parity-require-device", "cuda")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "device cuda is required, but numpy offers cpu-float32, cpu-float64 here" in done.stdout


def test_a_target_that_is_not_offered_fails(tmp_path, prepared):
    chosen = ("--parity-impl", "numpy", "--parity-target", "cpu-float16", "-k", "taps")
    done = pytest_in(tmp_path, *chosen)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "no verdict: target cpu-float16: offered by none" in done.stdout


def test_an_import_that_fails_is_a_failure_and_not_a_skip(tmp_path, prepared):
    (tmp_path / "absent.py").write_text("import no_such_framework\n")
    done = pytest_in(tmp_path, "--parity-impl", "absent.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "FAILED absent.py::parity[load]" in done.stdout
    assert "No module named 'no_such_framework'" in done.stdout


def test_an_implementation_that_cannot_be_loaded_fails_every_test(tmp_path, prepared):
    module(tmp_path, "mine", "def load(*a, **k): raise ValueError('no weights')")
    done = pytest_in(tmp_path, "--parity-impl", "mine.py", *ONE)
    assert f"{1 + len(CHECKS)} failed" in done.stdout
    assert "no weights" in done.stdout


def test_without_an_implementation_the_plugin_does_nothing(tmp_path):
    (tmp_path / "test_own.py").write_text(OWN)
    done = pytest_in(tmp_path)
    assert "1 passed" in done.stdout


def test_importing_the_plugin_is_cheap():
    heavy = {"numpy", "pandas", "typer", "rich", "msgspec", "filelock"}
    loaded = f"sorted({heavy!r} & set(sys.modules))"
    code = f"import json, sys, gpt2_parity.pytest_plugin; print(json.dumps({loaded}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
