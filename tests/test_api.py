"""The Python API: accepted arguments, returned verdicts, and cheap imports."""

import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gpt2_parity
from commands import SPECIMEN, module, parity
from faults import named, write
from gpt2_parity import CannotJudge
from gpt2_parity.api import Verdict
from gpt2_parity.contract.rows import Results, Row
from gpt2_parity.implementation import discovery, given, signatures
from gpt2_parity.report import results
from gpt2_parity.run import supervisor

pytestmark = pytest.mark.xdist_group("api")  # one worker makes what all of these share

ONE = {"targets": "cpu-float32", "seed": 5}


@pytest.fixture(scope="module")
def right(home):
    return gpt2_parity.verify("numpy", **ONE)


@pytest.fixture(scope="module")
def wrong(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    path = write(named("erf_gelu"), folder)
    return gpt2_parity.gate(path, **ONE, out=folder / "out"), folder


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import a module from a file of a temporary folder, as a caller would; it is forgotten again."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def load(name: str, text: str = SPECIMEN):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return __import__(name, fromlist=["targets"])

    yield load
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def in_memory() -> types.SimpleNamespace:
    """The NumPy specimen as an object that no module holds."""
    numpy = discovery.find("numpy").load()
    return types.SimpleNamespace(
        **{name: getattr(numpy, name) for name in (*signatures.REQUIRED, "generate")}
    )


def test_a_right_one_passes_with_rows_a_frame_and_the_command_that_repeats_it(right):
    assert (right.passed, right.exit_code, right.explain()) == (True, 0, "")
    frame = right.frame()
    assert len(frame) == len(right.rows) > 100
    assert set(frame.verdict) == {"pass"}
    assert frame.attrs["seed"] == right.environment["seed"] == 5
    repeat = "parity verify --impl numpy --target cpu-float32 --model micro --seed 5 --search 0"
    assert right.environment["command"] == repeat
    assert repr(right) == f"<Verdict PASS on micro: {len(frame)} pass>"


def test_a_wrong_one_says_what_is_wrong_and_its_folder_reads_as_the_same(wrong):
    verdict, folder = wrong
    assert (verdict.passed, verdict.exit_code) == (False, 1)
    assert "h*/mlp/gelu introduces an error" in verdict.explain()
    again = gpt2_parity.read(folder / "out")
    assert again.rows == verdict.rows
    assert again.environment == verdict.environment
    assert again.explain() == verdict.explain()
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(results.FILES)
    assert verdict.ledger_lines()


def test_a_verdict_has_three_outcomes_and_no_truth_value(right):
    with pytest.raises(TypeError, match=r"use \.passed or \.exit_code"):
        bool(right)
    nothing = Verdict(Results([], {"model": "micro"}))
    assert (nothing.exit_code, nothing.passed) == (2, False)
    assert repr(nothing).startswith("<Verdict NO VERDICT on micro")


def test_a_report_is_one_page_or_the_four_files(right, tmp_path):
    right.report(tmp_path / "page.html")
    assert "It is right" in (tmp_path / "page.html").read_text()
    right.report(tmp_path / "four")
    assert sorted(path.name for path in (tmp_path / "four").iterdir()) == sorted(results.FILES)
    assert gpt2_parity.read(tmp_path / "four").rows == right.rows
    with pytest.raises(CannotJudge, match="cannot be made or written to"):
        right.report("/dev/null/folder")


# -- a notebook

TAGS = {"div", "p", "strong", "span", "code", "ul", "li"}
TAGS |= {"table", "caption", "thead", "tbody", "tr", "th", "td"}


class Tags(HTMLParser):
    """The tags of a piece of HTML, balanced, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_the_verdict_the_grid_and_the_findings(right, wrong):
    shown = Tags(right._repr_html_())
    assert "PASS: It is right" in shown.text
    assert "numpy-cpu-float32" in shown.text
    assert "kv cache" in shown.text
    assert re.search(r"\d+%", shown.text)
    shown = Tags(wrong[0]._repr_html_())
    assert "FAIL: It is wrong" in shown.text
    assert re.search(r"FAIL \d+/\d+", shown.text)
    assert "h*/mlp/gelu introduces an error" in shown.text


def test_what_a_notebook_shows_is_escaped_and_asks_for_nothing():
    evil = "<script>alert(1)</script>\" onload='x"
    row = Row(*(evil if type_ is str else None for type_ in Row.__annotations__.values()))
    row = row._replace(verdict="fail", check="logits", status="error", evidence={"error": evil})
    shown = Tags(Verdict(Results([row], {"model": evil, "command": evil}))._repr_html_())
    assert shown.tags <= TAGS
    assert shown.attributes <= {"style", "scope"}
    assert evil in shown.text


# -- what may be passed


def test_every_way_to_name_an_implementation_finds_it_again(imported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"{SPECIMEN}\nimport sys\nclass Outer:\n    class Inner:\n        targets = None\n"
    text += "held = Outer.Inner()\n"
    alone, packaged = imported("alone_of_mine", text), imported("package_of_mine.inner")
    path = str(tmp_path / "alone_of_mine.py")
    for passed, module_, attribute in [
        ("numpy", str(discovery.IMPLS / "gpt2_numpy.py"), ""),
        ("alone_of_mine.py", path, ""),
        ("alone_of_mine.py:held", path, "held"),
        (Path("alone_of_mine.py"), path, ""),
        (tmp_path / "alone_of_mine.py", path, ""),
        ("alone_of_mine", "alone_of_mine", ""),
        (alone, path, ""),
        (alone.held, path, "held"),
        (alone.Outer.Inner, path, "Outer.Inner"),
        ("package_of_mine.inner", "package_of_mine.inner", ""),
        (packaged, "package_of_mine.inner", ""),
    ]:
        found = given.locate(passed).found
        assert (found.module, found.attribute) == (module_, attribute), passed
    assert given.locate(alone).found.name == "alone_of_mine"
    assert given.locate(alone.held).found.name == "held"


def test_a_module_object_runs_isolated_where_only_the_caller_finds_its_package(imported, home):
    code = "import os\nassert 'PARITY_WORKER' in os.environ, 'not in a process of its own'\n"
    text = SPECIMEN + "\n_load = load\ndef load(*args, **kw):\n    " + code.replace("\n", "\n    ")
    passed = imported("nested_of_mine.inner", text + "return _load(*args, **kw)\n")
    verdict = gpt2_parity.gate(passed, **ONE, only=["logits"])
    assert verdict.passed, verdict.explain()
    assert verdict.environment["isolated"] is True
    assert given.locate(passed).found.argument == "nested_of_mine.inner"


def test_an_object_in_memory_needs_to_say_that_it_runs_in_this_process(home):
    with pytest.raises(CannotJudge, match=r"lives only in this process.*isolated=False"):
        gpt2_parity.verify(in_memory(), **ONE)
    odd = types.ModuleType("only_in_memory")
    odd.__dict__.update(vars(in_memory()))
    with pytest.raises(CannotJudge, match="'only_in_memory': it lives only in this process"):
        gpt2_parity.verify(odd, **ONE)


def test_an_object_in_memory_is_judged_in_this_process(right, tmp_path):
    verdict = gpt2_parity.verify(in_memory(), **ONE, isolated=False, out=tmp_path / "out")
    assert verdict.passed, verdict.explain()
    assert verdict.environment["isolated"] is False
    assert "command" not in verdict.environment
    assert "limits" not in verdict.environment
    assert [row[4:8] for row in verdict.rows] == [row[4:8] for row in right.rows]
    assert gpt2_parity.read(tmp_path / "out").rows == verdict.rows
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(results.FILES)


def test_a_fault_in_memory_is_found_too(home):
    it = in_memory()
    forward = it.forward
    it.forward = lambda *args, **kw: (forward(*args, **kw)[0] * 1.001, forward(*args, **kw)[1])
    verdict = gpt2_parity.gate(it, **ONE, isolated=False, only=["logits"])
    assert verdict.exit_code == 1
    assert "SimpleNamespace-cpu-float32" in verdict.explain()


def test_one_that_cannot_start_in_this_process_fails_as_it_would_isolated(home, tmp_path):
    (tmp_path / "absent.py").write_text("import no_such_framework\n")
    verdict = gpt2_parity.gate(tmp_path / "absent.py", isolated=False)
    assert verdict.exit_code == 1
    assert "No module named 'no_such_framework'" in verdict.explain()
    verdict = gpt2_parity.gate(types.SimpleNamespace(targets=list), isolated=False)
    assert verdict.exit_code == 1
    assert "it lacks load(" in verdict.explain()


def test_after_one_target_broke_the_process_the_others_are_not_blamed(home):
    """An assertion that failed on a CUDA device fails all that the process asks of it."""
    it, broken = in_memory(), []
    forward = it.forward

    def breaks(model, tokens, *args, **kw):
        if broken or len(tokens) > 1:
            broken.append(1)
            raise RuntimeError("device-side assert")
        return forward(model, tokens, *args, **kw)

    it.forward = breaks
    verdict = gpt2_parity.verify(it, isolated=False)
    assert verdict.exit_code == 1
    ends = [row for row in verdict.rows if row.check in ("process", "load")]
    assert [row.dtype for row in ends] == ["float32", "float64"]
    assert {row.check for row in verdict.rows if row.dtype == "float64"} == {"load"}
    assert "not examined" in verdict.explain()


@pytest.mark.parametrize(
    ("implementations", "options", "message"),
    [
        ("nump", {}, r"implementation 'nump': not one of .*; did you mean numpy\?"),
        ("nonesuch", {}, r"'nonesuch': not one of .* the path of a \.py file$"),
        ([], {}, "no implementation was given"),
        (None, {}, "expected a name, a path, a module, or an object with the functions targets, load"),
        (3, {}, "implementation 3: expected a name"),
        (Path("numpy"), {}, r"implementation numpy: not the path of a \.py file"),
        (Path("missing.py"), {}, r"implementation missing\.py: no such file"),
        (["numpy", "numpy"], {}, "numpy and numpy: all would be 'numpy'"),
        ("numpy", {"model": "nonesuch"}, "model 'nonesuch'"),
        ("numpy", {"targets": "cpu"}, "target 'cpu': expected DEVICE-DTYPE"),
        ("numpy", {"targets": [("cpu",)]}, "target 'cpu': expected DEVICE-DTYPE"),
        ("numpy", {"targets": "tpu-float32"}, "target tpu-float32: offered by none"),
        ("numpy", {"seed": -1}, "seed -1: expected"),
        ("numpy", {"seed": 2**63}, "expected a number from 0"),
        ("numpy", {"timeout": 0}, "timeout 0: expected a positive number"),
        ("numpy", {"memory": float("nan")}, "memory nan: expected a positive number"),
        ("numpy", {"threads": 0}, "threads 0: expected 1 or more"),
        ("numpy", {"ledger": "no/such"}, "ledger .*no/such: cannot be read"),
        ("numpy", {"require_device": "cuda"}, "device cuda is required, but numpy offers"),
        ("numpy", {"require_device": "cuda", "isolated": False}, "device cuda is required, but numpy"),
        ("numpy", {"isolated": False, "timeout": 5}, "timeout, memory and threads need a process"),
        ("numpy", {"out": "/dev/null/x"}, "cannot be made or written to"),
    ],
)
def test_what_cannot_be_judged_is_said(implementations, options, message, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotJudge, match=message):
        gpt2_parity.verify(implementations, **options)
    assert list(tmp_path.iterdir()) == []


def test_gate_judges_one():
    with pytest.raises(CannotJudge, match="gate judges one implementation"):
        gpt2_parity.gate(["numpy", "naive"])


def test_a_specimen_named_by_its_path_is_repeated_by_its_name():
    """A report shows nobody's folders, and its command works."""
    found = discovery.find(str(discovery.IMPLS / "gpt2_numpy.py"))
    assert found.argument == "numpy"
    assert discovery.find(found.argument).module == found.module


def test_a_file_that_verifies_itself_when_imported_is_refused_and_starts_no_more(home, tmp_path):
    path = module(tmp_path, "selfish", f"import gpt2_parity\ngpt2_parity.gate({str(tmp_path)!r})")
    path.write_text(path.read_text().replace(repr(str(tmp_path)), repr(str(path))))
    verdict = gpt2_parity.gate(path, **ONE)
    assert verdict.exit_code == 1
    assert "if __name__ == '__main__'" in verdict.explain()


def test_progress_is_called_with_the_checks_that_are_done(right, monkeypatch):
    calls = []
    gpt2_parity.gate(in_memory(), **ONE, isolated=False, progress=calls.append)
    assert [update.step for update in calls[:3]] == ["prepares", "starts", "checks"]
    counts = [update.done for update in calls if update.step == "checks"]
    assert counts == [*range(len(counts))]
    assert counts[-1] >= 10
    end = calls[-1]
    assert end[:3] == ("ends", "SimpleNamespace", "cpu-float32")
    assert (end.outcome, end.targets_left, end.starting) == ("PASS", 0, 0)


def test_resuming_needs_an_interrupted_run(wrong, tmp_path):
    with pytest.raises(CannotJudge, match="its run is complete"):
        gpt2_parity.resume(wrong[1] / "out")
    with pytest.raises(CannotJudge, match="no run to resume there"):
        gpt2_parity.resume(tmp_path)


RUN_JSON = {
    "not json": "nonsense",
    "another format": '{"format": 2}',
    "a field is missing": '{"format": 1}',
    "a list": "[]",
}


@pytest.mark.parametrize("name", RUN_JSON)
def test_a_run_json_of_something_else_is_refused(name, tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "run.json").write_text(RUN_JSON[name])
    with pytest.raises(CannotJudge, match=r"run\.json: (no run to resume there|not a run that this)"):
        gpt2_parity.resume(tmp_path)


# -- nothing is lost


def test_complete_results_stay_until_the_new_ones_are_complete(wrong, tmp_path, monkeypatch):
    """While the new run is under way, and where it is interrupted."""
    out = tmp_path / "out"
    shutil.copytree(wrong[1] / "out", out)

    def files() -> dict[str, bytes]:
        return {name: (out / name).read_bytes() for name in results.FILES}

    before = files()

    def interrupted(job, journal, *_):
        assert files() == before
        assert (journal.parent / "run.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "supervise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpt2_parity.gate("numpy", **ONE, out=out)
    monkeypatch.undo()
    assert files() == before
    verdict = gpt2_parity.resume(out)
    assert verdict.passed
    assert gpt2_parity.read(out).rows == verdict.rows
    assert sorted(path.name for path in out.iterdir()) == sorted(results.FILES)


# -- cheap


def test_importing_the_package_is_cheap():
    code = """
import sys, gpt2_parity
heavy = {"pandas", "matplotlib", "torch", "jax", "tensorflow"}
assert not sys.modules.keys() & (heavy | {"numpy", "rich", "typer", "gpt2_parity.api"})
gpt2_parity.verify
assert not sys.modules.keys() & heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(gpt2_parity.__all__) == set(dir(gpt2_parity))
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        _ = gpt2_parity.nonesuch


LATE = """
import sys
import gpt2_parity, gpt2_parity.cli
late = {"pandas", "matplotlib", "jinja2", "requests", "tiktoken"}
late |= {"transformers", "torch", "jax", "tensorflow"}
assert not sys.modules.keys() & late, sys.modules.keys() & late
if __name__ == "__main__":
    assert gpt2_parity.gate("numpy", targets="cpu-float32", only=["logits", "greedy"]).passed
    assert not sys.modules.keys() & late, sys.modules.keys() & late
    gpt2_parity.gate("numpy", targets="cpu-float32", only=["logits"], out="out")
    assert sys.modules.keys() & late == {"matplotlib", "jinja2"}, sys.modules.keys() & late
"""


def test_a_verdict_imports_only_what_it_needs(tmp_path, prepared):
    """The command, too: what is imported late shows in every start of it."""
    (tmp_path / "late.py").write_text(LATE)
    subprocess.run([sys.executable, "late.py"], cwd=tmp_path, check=True)


def test_python_dash_m_is_the_command():
    done = parity("--version")
    assert done.returncode == 0
    assert done.stdout == f"gpt2-parity {gpt2_parity.__version__}\n"


def test_the_plugin_of_pytest_goes_through_the_api():
    source = Path(gpt2_parity.__file__).with_name("pytest_plugin.py").read_text()
    assert "gpt2_parity.commands" not in source


def test_a_selection_of_checks_makes_only_these_and_names_them(home, tmp_path):
    verdict = gpt2_parity.verify("numpy", **ONE, only=["kv_cache", "logits"], out=tmp_path)
    assert verdict.passed
    assert {row.check for row in verdict.rows} == {"kv_cache", "logits"}
    assert verdict.environment["seconds_by_check"]["numpy-cpu-float32"].keys() == {
        *("load", "logits", "kv_cache")
    }
    repeated = "--impl numpy --target cpu-float32 --model micro --seed 5 --search 0"
    assert verdict.environment["command"] == f"parity verify {repeated} --only logits --only kv_cache"
    claim = "(selected checks only: logits, kv_cache)"
    assert claim in repr(verdict)
    assert claim in verdict._repr_html_()
    summary = (tmp_path / "report.md").read_text()
    assert summary.startswith("# PASS IN PART: ")
    assert "PASS IN PART" in repr(verdict)
    assert "PASS IN PART" in verdict._repr_html_()
    assert claim.replace("_", "\\_") in summary
    assert f"It is right {claim}" in (tmp_path / "report.html").read_text()


def test_a_selection_judges_only_the_lines_of_the_ledger_about_it(home, tmp_path):
    book = tmp_path / "ledger.txt"
    line = "numpy-cpu-float32 | {} | logits | 5 | none"
    book.write_text(line.format("local"))
    assert gpt2_parity.verify("numpy", **ONE, only=["logits"], ledger=book).passed
    book.write_text(line.format("logits"))
    assert gpt2_parity.verify("numpy", **ONE, only=["logits"], ledger=book).exit_code == 1


def test_in_this_process_a_selection_is_made_too(home):
    verdict = gpt2_parity.verify(in_memory(), **ONE, isolated=False, only=["taps"])
    assert {row.check for row in verdict.rows} == {"taps"}


def test_a_check_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(CannotJudge, match=r"check 'kv_cach': unknown; did you mean kv_cache\?"):
        gpt2_parity.verify("numpy", only=["kv_cach"])


def test_a_selection_without_measurements_is_no_verdict(home):
    assert gpt2_parity.verify("numpy", **ONE, only=["gradients"]).exit_code == 2
