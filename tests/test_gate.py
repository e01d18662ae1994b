"""The gate: complaints about the contract, the skeleton, and the ledger."""

import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

import gpt2_parity
from commands import SPECIMEN, here, module
from faults import named, write
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.interface import CannotJudge, ContractBroken, Target
from gpt2_parity.contract.rows import Row, exit_code
from gpt2_parity.implementation import signatures, template
from gpt2_parity.implementation.discovery import Found, find, split
from gpt2_parity.report import results
from gpt2_parity.verdict import known_failures

pytestmark = pytest.mark.xdist_group("gate")  # one worker makes what all of these share

NUMPY = find("numpy").load()


def like_numpy(**changes) -> SimpleNamespace:
    """The NumPy specimen as an object, with other functions; None takes one away."""
    functions = {name: getattr(NUMPY, name) for name in (*signatures.REQUIRED, "generate")}
    kept = {name: value for name, value in (functions | changes).items() if value is not None}
    return SimpleNamespace(**kept)


def test_an_attribute_that_a_file_lacks_is_named_with_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Right:\n    deep = 3\n")
    assert find(f"{path}:Right.deep").load() == 3
    with pytest.raises(AttributeError, match=rf"{re.escape(str(path))} has no Right\.shallow"):
        find(f"{path}:Right.shallow").load()


def test_the_specimen_keeps_the_contract():
    assert signatures.check(like_numpy(), CAPABILITIES) == [
        Target("cpu", "float32"),
        Target("cpu", "float64"),
    ]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"load": None}, "it lacks load(params, hparams, *, device, dtype), which returns the model"),
        ({"numpy": None}, "it lacks numpy(x)"),
        ({"forward": 3}, "forward is no function but int"),
        ({"load": lambda params, hparams: 0}, "cannot be called as load(params, hparams, *, device"),
        ({"forward": lambda model, tokens: 0}, "cannot be called as forward(model, tokens, past=None"),
        ({"forward": lambda a, b, c, d, e: 0}, "missing a required argument: 'e'"),
        ({"generate": lambda model: 0}, "cannot be called as generate(model, tokens, n_new)"),
        ({"ORDER": "[n_out, n_in]"}, "ORDER is '[n_out, n_in]'; weights are given in order C or F"),
        ({"targets": lambda: None}, "targets() returned None"),
        ({"targets": lambda: ["cpu"]}, "expected (device, dtype)"),
        ({"targets": lambda: [("cpu", 32)]}, "expected (device, dtype)"),
        ({"targets": lambda: [("cpu", "int8")]}, "supported are float64, float32, bfloat16, float16"),
        ({"targets": lambda: [("cpu", "float32")] * 2}, "the same target twice"),
    ],
)
def test_a_complaint_names_the_function_and_its_signature(changes, complaint):
    with pytest.raises(ContractBroken) as refused:
        signatures.check(like_numpy(**changes), CAPABILITIES)
    assert complaint in str(refused.value)


def test_all_complaints_are_reported_at_once():
    with pytest.raises(ContractBroken) as refused:
        signatures.check(SimpleNamespace())
    assert all(f"it lacks {name}(" in str(refused.value) for name in signatures.REQUIRED)


def test_optional_functions_may_be_lacking():
    assert signatures.check(like_numpy(generate=None), CAPABILITIES)


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        ("a/b.py", ("a/b.py", "")),
        ("a/b.py:Model", ("a/b.py", "Model")),
        ("pkg.mod:a.b", ("pkg.mod", "a.b")),
        ("shape:12", ("shape:12", "")),
    ],
)
def test_an_attribute_may_be_named_behind_a_colon(where, parts):
    assert split(where) == parts


def test_an_object_in_a_file_is_an_implementation_too(tmp_path, prepared):
    path = module(tmp_path, "holds", "import sys\nclass inside:\n    it = sys.modules[__name__]\n")
    found = find(f"{path}:inside.it")
    assert found.source() == path
    assert signatures.check(found.load())
    assert gpt2_parity.gate(f"{path}:inside.it", targets="cpu-float32", only=["logits"]).passed


SHAPES = {
    "last_only": ("return logits[:, -1], past", "logits is float32 array (1, 10, 512)"),
    "no_cache": ("return logits", "forward returned float32 array"),
    "three": (
        "return logits, past, 1",
        "forward returned tuple of 3, the contract says (logits, cache)",
    ),
    "integers": ("return logits.astype(int), past", "logits is int64 array"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_shape_is_reported_with_the_right_one(name, tmp_path, prepared):
    code, _ = SHAPES[name]
    extra = (
        f"real = forward\ndef forward(*args, **kw):\n    logits, past = real(*args, **kw)\n    {code}"
    )
    frame = gpt2_parity.gate(module(tmp_path, name, extra), targets="cpu-float32").frame()
    wanted = SHAPES[name][1].split(" (")[0]
    assert frame[frame.verdict == "fail"].detail.str.contains(wanted, regex=False).any()
    assert frame.detail.str.contains("the contract says", regex=False).any()


def test_a_required_device_that_is_absent_is_exit_2(tmp_path, prepared):
    done = here("gate", "numpy", "--require-device", "cuda", "--out", tmp_path)
    assert done.returncode == 2
    assert "device cuda is required, but numpy offers cpu-float32, cpu-float64 here" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert gpt2_parity.gate("numpy", require_device="cpu", only=["logits"]).passed


def test_the_skeleton_overwrites_nothing_and_its_gate_says_what_is_missing(tmp_path, prepared):
    done = here("new", "mine", cwd=tmp_path)
    assert done.returncode == 0
    text = (tmp_path / "mine.py").read_text()
    assert "parity gate mine.py" in text
    assert "NAME" not in text
    assert here("new", "mine", cwd=tmp_path).returncode == 2
    assert (tmp_path / "mine.py").read_text() == text
    done = here("gate", "mine.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "load is yours to write" in done.stdout
    assert signatures.check(Found("mine", str(tmp_path / "mine.py")).load())


@pytest.mark.parametrize("name", ["../up", "a-b", "1st", "", "a/b", "x.y"])
def test_a_skeleton_has_the_name_of_a_module(name, tmp_path):
    with pytest.raises(CannotJudge, match="not a name"):
        template.write(name, tmp_path, CAPABILITIES)


def test_the_skeleton_filled_with_the_specimens_body_passes(tmp_path):
    """Its signatures are those of the specimen."""
    for name, function in signatures.REQUIRED.items():
        assert f"def {function.signature}:" in template.TEXT, name
        assert f"def {function.signature[:-1]}" in SPECIMEN, name  # it may take more besides


# -- the ledger

ROW = Row("mine", "cpu", "float32", "m", "seed", "local", "h0/mlp/gelu", "rounding_units",
          800.0, 16.0, 50.0, "fail", "measured", "h0/mlp/gelu", "erf_gelu", {})  # fmt: skip
PASS = ROW._replace(check="logits", scope="logits", value=1.0, ratio=0.1, verdict="pass", blame="")
LOST = ROW._replace(value=None, ratio=None, status="lost")


def known(at_most=100.0, blame="h0/mlp/gelu", target="mine-cpu-float32"):
    return known_failures.Known(target, "local", blame, at_most, "not yet", 1)


def verdicts(rows):
    return [row.verdict for row in rows]


def test_a_known_failure_is_known_and_passes():
    rows = known_failures.apply([ROW, PASS], [known()])
    assert verdicts(rows) == ["known", "pass"]
    assert rows[0].evidence["known"] == {"reason": "not yet", "line": 1}
    assert exit_code(rows) == 0
    assert exit_code([ROW, PASS]) == 1


def test_a_known_failure_that_has_grown_fails():
    rows = known_failures.apply([ROW, PASS], [known(at_most=49.0)])
    assert verdicts(rows) == ["fail", "pass"]
    assert rows[0].evidence["beyond"] == {"line": 1, "at_most": 49.0}


def test_where_the_limit_is_0_the_count_is_what_may_be_known():
    wrong = ROW._replace(value=3.0, limit=0.0, ratio=None)
    assert verdicts(known_failures.apply([wrong, PASS], [known(3.0)])) == ["known", "pass"]
    assert verdicts(known_failures.apply([wrong, PASS], [known(2.0)])) == ["fail", "pass"]


def test_a_lost_measurement_is_known_only_where_the_ledger_says_lost():
    assert verdicts(known_failures.apply([LOST, PASS], [known(1e30)])) == ["fail", "pass"]
    assert verdicts(known_failures.apply([LOST, PASS], [known(float("inf"))])) == ["known", "pass"]


@pytest.mark.parametrize("blame", ["h0/mlp", "h0/mlp/gelu2", "h*/mlp/gelu", "H0/mlp/gelu"])
def test_names_match_exactly_and_a_line_that_matches_nothing_is_out_of_date(blame):
    rows = known_failures.apply([ROW, PASS], [known(blame=blame)])
    assert verdicts(rows) == ["fail", "pass", "fail"]
    assert rows[-1].check == "ledger"
    assert rows[-1].evidence["stale"]["line"] == 1


def test_a_line_about_what_was_not_examined_is_left_alone():
    assert verdicts(known_failures.apply([ROW, PASS], [known(target="other-cpu-float32")])) == [
        "fail",
        "pass",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "mine-cpu-float32 | local | h0/mlp/gelu | 5",
        "mine-cpu-float32 | local | h0/mlp/gelu | 5 |",
        "mine-cpu-float32 | local | h0/mlp/gelu | much | reason",
        "mine-cpu-float32 | local | h0/mlp/gelu | nan | reason",
        "mine-cpu-float32 | local | h0/mlp/gelu | 0.5 | reason",
        "mine-cpu-float32 | local | h0/mlp/gelu | 5 | ...",  # as it is suggested
        "a | b | c | 5 | reason\na | b | c | 6 | reason",
    ],
)
def test_a_malformed_ledger_is_refused_by_line(line, tmp_path):
    path = tmp_path / "ledger.txt"
    path.write_text(f"# comment\n\n{line}\n")
    with pytest.raises(CannotJudge, match=r"ledger\.txt:[34]: "):
        known_failures.read(path)


def test_suggested_lines_can_be_read_back(tmp_path):
    lines = known_failures.suggest([ROW, PASS, LOST._replace(check="logits")])
    path = tmp_path / "ledger.txt"
    path.write_text("\n".join(line.replace("...", "not yet") for line in lines))
    found = known_failures.read(path)
    assert [(one.check, one.at_most) for one in found] == [("local", 100.0), ("logits", float("inf"))]
    assert verdicts(known_failures.apply([ROW, PASS], found[:1])) == ["known", "pass"]


def test_a_gate_with_a_ledger(tmp_path, prepared):
    """A known fault passes the gate and is shown as known; once it is mended, its line fails."""
    path, out, book = write(named("erf_gelu"), tmp_path), tmp_path / "out", tmp_path / "ledger.txt"
    options = ("--target", "cpu-float32", "--ledger", book, "--out", out, "--seed", 4)
    book.write_text("")
    done = here("gate", path, *options)
    assert done.returncode == 1
    suggested = done.stdout.partition("not in the ledger:")[2]
    lines = [line.strip() for line in suggested.splitlines() if " | " in line]
    book.write_text("\n".join(lines).replace("...", "erf GELU until release 2.1"))
    done = here("gate", path, *options)
    assert done.returncode == 0, done.stdout
    assert "known" in set(results.read(out).verdict)
    assert "known" in done.stdout.rpartition("PASS")[2]
    skipped = [
        case for case in ET.parse(out / "junit.xml").iter("testcase") if case.find("skipped") is not None
    ]
    assert skipped
    path.write_text(SPECIMEN)
    done = here("gate", path, *options)
    assert done.returncode == 1
    assert "out of date" in done.stdout
