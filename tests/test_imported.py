"""What an implementation is made of: its own files and packages, in results, report, compare, resume."""

import json
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from commands import command, module, parity
from gpt2_parity.commands.watch import POLL, wait_for_change
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest
from gpt2_parity.report import compare, results
from gpt2_parity.run import examination, imported
from test_watch import Watched

FILES = {
    "scale.py": "ONE = 1.0\n",
    "pkg/__init__.py": "",
    "pkg/late.py": "from packaging import version\n",
}
USES = """
import scale
first_gelu, first_load = gelu, load
def load(params, hparams, **target):
    import pkg.late
    return first_load(params, hparams, **target)
def gelu(*given):
    return first_gelu(*given) * scale.ONE
"""


def of_several_files(folder: Path) -> Path:
    """The NumPy specimen with a module and a package beside it."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return module(folder, "mine", USES)


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    folder = tmp_path_factory.mktemp("several")
    path, out = of_several_files(folder), folder / "out"
    done = parity("gate", path, "--target", "cpu-float32", "--seed", 3, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, out


def test_every_file_of_an_implementation_is_in_its_results(run):
    folder, out = run
    found = results.load(out).environment["implementation_files"]
    names = ["mine.py", *FILES]
    assert found == {"mine": {name: digest.sha256(folder / name) for name in sorted(names)}}


def test_the_packages_are_those_that_were_imported(run):
    """packaging in load; msgspec by the harness; torch is installed, and in nobody's way."""
    environment = results.load(run[1]).environment
    found = environment["packages"]["mine"]
    assert {"numpy", "packaging", "msgspec"} <= found.keys()
    assert not {"torch", "jax", "pytest", "gpt2-parity"} & found.keys()
    assert found["packaging"]["file"] == "site-packages/packaging/__init__.py"
    versions = {name: each["version"] for name, each in found.items()}
    assert environment["versions"] == versions
    assert environment["hosts"]["mine-cpu-float32"]["versions"] == versions


def test_the_reports_show_every_file(run):
    folder, out = run
    for name in ("mine.py", *FILES):
        for report in ("report.md", "report.html"):
            text = (out / report).read_text()
            assert name in text
            assert digest.sha256(folder / name) in text


def test_a_comparison_tells_which_file_and_which_package_is_another(run, tmp_path):
    document = json.loads((run[1] / "results.json").read_text())
    made = document["environment"]
    made["implementation_files"]["mine"]["scale.py"] = "0" * 64
    made["implementation_files"]["mine"]["new.py"] = "1" * 64
    del made["implementation_files"]["mine"]["pkg/late.py"]
    made["packages"]["mine"]["numpy"]["version"] = "9.9"
    (tmp_path / "results.json").write_text(json.dumps(document))
    notes = compare.compare(run[1], tmp_path).notes
    files = "new.py is new, pkg/late.py is gone, scale.py differs"
    assert notes[0] == f"mine: other code in the second run: {files}."
    assert re.fullmatch(r"mine: other packages in the second run: numpy \S+ to 9.9\.", notes[1])
    assert compare.compare(run[1], run[1]).notes == []
    done = parity("compare", run[1], tmp_path)
    assert (done.returncode, files in done.stdout) == (0, True)


def test_runs_of_before_are_compared_by_the_file_that_was_named(run, tmp_path):
    old = {"implementation_sha256": {"mine": "0" * 64}}
    new = {"implementation_sha256": {"mine": "1" * 64}}
    assert compare.code_notes(old, new) == ["mine: other code in the second run: its file differs."]
    assert compare.code_notes(old, old) == []
    odd = {"implementation_files": 3, "packages": [], "implementation_sha256": "x"}
    assert compare.code_notes(odd, old) == []


BLOCKS = """
import pathlib, time
first_forward = forward
def forward(model, tokens, past=None, tap=None, **more):
    if past is not None:  # kv_cache: some checks are done by then
        pathlib.Path(__file__).with_name("reached").touch()
        while not pathlib.Path(__file__).with_name("go").exists(): time.sleep(0.05)
    return first_forward(model, tokens, past, tap, **more)
"""


def killed(folder: Path) -> Path:
    """The --out folder of a run that was killed in the midst of its checks."""
    path, out = of_several_files(folder), folder / "out"
    path.write_text(path.read_text() + BLOCKS)
    process = subprocess.Popen(
        command("gate", path, "--target", "cpu-float32", "--out", out), stdout=subprocess.DEVNULL
    )
    while not (folder / "reached").exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    for worker in workers:  # it ends with its parent
        worker.wait(timeout=60)
    (folder / "go").touch()
    return out


@pytest.mark.parametrize("change", ["scale.py", "pkg/late.py"])
def test_a_run_is_not_resumed_with_another_helper(change, tmp_path, prepared):
    out = killed(tmp_path)
    (tmp_path / change).write_text(FILES[change] + "# changed\n")
    done = parity("resume", out)
    assert done.returncode == 2
    assert f"{change} of mine: edited since the run began" in done.stderr
    assert (out / "journal" / "run.json").is_file()
    (tmp_path / change).write_text(FILES[change])
    assert parity("resume", out).returncode == 0


def test_a_helper_that_is_edited_while_it_is_verified_ends_the_run(tmp_path, prepared):
    """The first target has imported it; the second, in a process of its own, gets other code."""
    path = of_several_files(tmp_path)
    edits = """
    def targets():
        return [("cpu", "float32"), ("cpu", "float64")]
    import pathlib
    here = pathlib.Path(__file__).with_name("scale.py")
    here.write_text(here.read_text() + "# edited\\n")
    """
    module(tmp_path, "mine", USES + textwrap.dedent(edits))
    done = parity("gate", path)
    assert done.returncode == 2
    assert "scale.py of mine: edited since the run began" in done.stderr


def test_states_of_two_versions_of_a_file_are_refused(prepared):
    state = prepared.state("mine", "micro")
    for sha256 in ("1", "1", "2"):
        found = {"files": {"a.py": {"sha256": sha256}}, "packages": {}}
        state.handle("hello", {"targets": [], "imported": found})
        if sha256 == "1":
            examination.refuse_change(state)
    with pytest.raises(CannotJudge, match=r"a\.py of mine: edited"):
        examination.refuse_change(state)


def test_the_edit_of_a_helper_restarts_the_gate(tmp_path, prepared):
    path = of_several_files(tmp_path)
    (tmp_path / "scale.py").write_text("ONE = 1.01\n")
    watched = Watched(path)
    first = watched.verdict()
    assert "mine-cpu-float32 local: FAIL" in first
    assert re.search(r"watching mine\.py, .*scale\.py.*; Ctrl-C ends", first)
    (tmp_path / "scale.py").write_text("ONE = (:\n")
    assert "SyntaxError" in watched.verdict()
    (tmp_path / "scale.py").write_text(FILES["scale.py"])
    assert re.search(r"^PASS: ", watched.verdict(), re.MULTILINE)
    assert watched.end() == 0


def test_any_of_several_files_is_waited_for(tmp_path):
    files = {tmp_path / name: "" for name in ("a.py", "b.py")}
    for path in files:
        path.write_text(path.name)
        files[path] = digest.sha256(path)
    waiting = threading.Thread(target=wait_for_change, args=(files,), daemon=True)
    waiting.start()
    waiting.join(3 * POLL)
    assert waiting.is_alive()
    path.write_text("other")
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_module_keeps_the_hash_of_what_was_imported(tmp_path, monkeypatch):
    """Python goes on with the code that it has read, whatever the file says later."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "kept_by_python.py"
    path.write_text("A = 1\n")
    before = digest.sha256(path)
    import kept_by_python  # noqa: F401

    assert imported.files()["kept_by_python.py"]["sha256"] == before
    path.write_text("A = 2\n")
    assert imported.files()["kept_by_python.py"]["sha256"] == before
    del sys.modules["kept_by_python"]
    assert "kept_by_python.py" not in imported.files()


def test_what_no_import_made_is_no_file_of_the_implementation(tmp_path, monkeypatch):
    """Compilers execute code that they wrote as modules without a spec, under names that change."""
    path = tmp_path / "generated.py"
    path.write_text("")
    made = type(sys)("generated_by_a_compiler")
    made.__file__ = str(path)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    assert "generated_by_a_compiler.py" not in imported.files()
    assert not [each for each in imported.files().values() if each["path"] == str(path)]


def test_only_own_files_are_own():
    import numpy

    assert not imported.is_own(Path(numpy.__file__))
    assert not imported.is_own(Path(json.__file__))
    assert not imported.is_own(Path(imported.__file__))
    assert imported.is_own(Path(__file__))


def test_a_namespace_belongs_to_the_distribution_that_has_the_file(monkeypatch):
    """google, mlx or nvidia are several distributions; only what was imported counts."""
    import numpy

    monkeypatch.setattr(imported, "_distributions", lambda: {"shared": ["numpy", "msgspec"]})
    assert imported.owners("shared", [Path(numpy.__file__)]) == ["numpy"]
