"""The command line: help, names that are misspelt, what is refused at once, and what it writes."""

import io
import os
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

import gpt2_parity
from commands import here, module, parity
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation import discovery, extras, template
from gpt2_parity.report import results, terminal
from gpt2_parity.run.child import explain

pytestmark = pytest.mark.xdist_group("command_line")

COMMANDS = ("verify", "gate", "resume", "new", "bench", "report", "compare", "fetch", "known", "list")
PARITY = "import sys; sys.argv[0] = 'parity'; from gpt2_parity.cli import main; main()"


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), ("golden", "build")], ids=str)
def test_help_has_a_short_option_and_no_types_of_flags(words):
    done = here(*words, "-h")
    assert done.returncode == 0
    assert done.stdout == here(*words, "--help").stdout
    assert " ".join(("Usage: parity", *words)) in done.stdout
    assert "<bool>" not in done.stdout


def test_help_of_the_module_names_the_module():
    assert "Usage: python -m gpt2_parity gate " in parity("gate", "--help").stdout


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("gat",), "gate"),
        (("golden", "verfy"), "verify"),
        (("verify", "--modle", "micro"), "--model"),
        (("verify", "--impl", "nunpy"), "did you mean numpy?"),
        (("verify", "--model", "micor"), "did you mean micro?"),
        (("verify", "--model", "shape:124"), "did you mean shape:124M?"),
        (("verify", "--target", "cpu-flot32"), "did you mean cpu-float32?"),
        (("verify", "--impl", "numpy", "--target", "cqu-float32"), "did you mean cpu-float32?"),
        (("verify", "--impl", "numpy", "--only", "kv_cach"), "did you mean kv_cache?"),
        (("gate", "numpy", "--only", "logit"), "did you mean logits?"),
        (("gate", "mien.py"), "did you mean mine.py?"),
        (("fetch", "124"), "did you mean 124M?"),
        (("new", "mine2", "--example", "nunpy"), "did you mean numpy?"),
    ],
    ids=str,
)
def test_a_misspelt_name_is_refused_with_the_nearest(words, suggestion, tmp_path):
    (tmp_path / "mine.py").write_text("")
    done = here(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert suggestion in done.stderr


@pytest.mark.parametrize("words", [("--impl", "nonesuch"), ("--model", "nonesuch")], ids=str)
def test_a_name_that_does_not_exist_is_refused_before_anything_is_prepared(words, tmp_path):
    """No framework is imported, no process is started and no file is written."""
    code = (
        "import sys, subprocess; from gpt2_parity import cli; from gpt2_parity.run import runner\n"
        "subprocess.Popen = runner.prepare = None\n"
        "heavy = {'jax', 'torch', 'tensorflow', 'pandas', 'matplotlib', 'jinja2', 'tiktoken'}\n"
        "try: cli.main()\n"
        "finally: print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PARITY_HOME": str(tmp_path / "home")}
    arguments = [sys.executable, "-c", code, "verify", *words]
    done = subprocess.run(
        arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'nonesuch'" in done.stderr
    assert "a bug" not in done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_weights_are_generated_only_once_everything_else_is_known_to_be_right(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    done = here("verify", "--model", "shape:124M", "--target", "cpu")
    assert "expected DEVICE-DTYPE" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_shell_completes_the_names_of_commands():
    environment = os.environ | {
        "_PARITY_COMPLETE": "complete_bash",
        "COMP_WORDS": "parity g",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PARITY], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["gate", "golden"]
    assert "--install-completion" in here("-h").stdout


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "torch"),
        ("tensorflow", "tensorflow"),
        ("keras_hub", "keras-hub"),
        ("llama_cpp", "llama-cpp"),
        ("gguf", "llama-cpp"),
        ("onnx", "onnxruntime"),
        ("no_such_framework", ""),
    ],
)
def test_a_missing_module_is_said_with_the_extra_that_brings_it(module, extra):
    assert extras.extra_for(module) == extra
    message = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert message.endswith(f'; get it with: pip install "gpt2-parity[{extra}]"') == bool(extra)


def test_every_shipped_implementation_and_engine_has_its_extra():
    for name in {*discovery.names(), *discovery.engines()} - {"numpy", "naive"}:
        words = name.split("_")  # torch_compile needs what torch needs
        prefixes = ["-".join(words[:i]) for i in range(1, len(words) + 1)]
        assert any(extras.extra_for(prefix) == prefix for prefix in prefixes), name


def test_an_implementation_without_its_framework_says_how_to_get_it(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n")
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError('No module named torch', name='torch')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = parity("gate", "mine.py", "--target", "cpu-float32", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert 'pip install "gpt2-parity[torch]"' in done.stdout


@pytest.mark.parametrize("name", ["class", "None", "json", "typing.py"])
def test_a_keyword_and_a_module_of_the_library_are_no_names(name, tmp_path):
    done = here("new", name, cwd=tmp_path)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CannotJudge, match=r"keyword of Python|would hide the module"):
        template.copy_example(name, tmp_path, "numpy")


@pytest.mark.parametrize("example", ["numpy", "torch"])
def test_an_example_is_the_shipped_implementation_with_its_comments_and_passes(example, tmp_path):
    done = here("new", "mine", "--example", example, cwd=tmp_path)
    assert done.stdout.strip() == "written: mine.py; parity gate mine.py"
    text = (tmp_path / "mine.py").read_text()
    assert text == (discovery.IMPLS / f"gpt2_{example}.py").read_text()
    assert here("new", "mine", "--example", example, cwd=tmp_path).returncode == 2
    only = ["logits", "greedy", "bad_tokens"]  # it is the shipped one, which is verified elsewhere
    verdict = gpt2_parity.gate(tmp_path / "mine.py", targets="cpu-float32", only=only)
    assert verdict.passed, verdict.explain()


@pytest.mark.parametrize(("target", "noted"), [("cpu-float32", False), (None, True)])
def test_that_there_is_no_cuda_is_said_only_where_it_was_wanted(target, noted, tmp_path):
    path = module(tmp_path, "one", "def targets():\n    return [('cpu', 'float32')]\n")
    verdict = gpt2_parity.gate(path, targets=target, only=["logits"])
    shown = Console(file=io.StringIO())
    terminal.show(shown, verdict.results)
    assert ("cuda: skipped" in shown.file.getvalue()) == noted


def test_a_single_check_passes_in_part_and_its_command_repeats_it(tmp_path, prepared):
    done = parity("gate", "numpy", "--target", "cpu-float32", "--only", "logits", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "PASS IN PART" in done.stdout
    found = results.load(tmp_path)
    assert {row.check for row in found.rows} == {"logits"}
    again = parity(*shlex.split(found.environment["command"])[1:])
    assert again.stdout.splitlines()[-1] == f"PASS IN PART: {results.counts(found)}"
