"""The wheel: it holds the package and its data, nothing else, and works beside any project.

It installs only the package gpt2_parity, so a project keeps its own packages named harness, impls,
golden and tests.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from commands import SPECIMEN

ROOT = Path(__file__).parent.parent
DATA = {  # in the wheel -> in the repository
    "gpt2_parity/shipped/impls": "impls",
    "gpt2_parity/shipped/golden": "golden",
    "gpt2_parity/shipped/results.schema.json": "docs/results.schema.json",
    "gpt2_parity/shipped/bench.schema.json": "docs/bench.schema.json",
    "gpt2_parity": "harness/gpt2_parity",
}
CACHES = ("__pycache__", "*.pyc")
MINE = """
import golden, harness, impls, tests
from harness.something import OWN
assert OWN == "this project's own"
assert {module.OWNER for module in (golden, harness, impls, tests)} == {"this project"}
"""
BLOCKED = """
import sys
for name in ("tensorflow", "torch", "jax", "pandas", "matplotlib"):
    assert sys.modules[name] is None, name  # this test is about an installation without them
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this repository, built where caches and other files lie around."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("harness", "impls", "golden", "docs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*CACHES))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    for folder in ("impls", "golden", "golden/micro", "harness/gpt2_parity", "harness/gpt2_parity/run"):
        (source / folder / "__pycache__").mkdir()
        (source / folder / "__pycache__" / "gpt2_numpy.cpython-311.pyc").write_bytes(b"compiled")
    pip("wheel", "--no-build-isolation", "-w", out, source)
    [built] = out.glob("*.whl")
    return built


def pip(command: str, *arguments) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            command,
            "--no-deps",
            "--no-index",
            "--quiet",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which only the wheel is installed."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with packages of the names that this repository has at its top level."""
    root = tmp_path_factory.mktemp("project")
    for name in ("harness", "impls", "golden", "tests"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text('OWNER = "this project"\n')
    (root / "harness" / "something.py").write_text('OWN = "this project\'s own"\n')
    (root / "mine.py").write_text(f"{SPECIMEN}\n{MINE}")
    return root


def run(
    installed: Path, project: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The installed command, in the project's folder."""
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "parity"), *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(installed)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_has_one_package_at_its_top_level_and_no_leftovers(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"gpt2_parity", "gpt2_parity-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name in names if "/test_" in name or "tests" in name.split("/")]


def test_everything_of_the_package_and_its_data_is_in_the_wheel_byte_by_byte(wheel):
    archive = zipfile.ZipFile(wheel)
    inside = {name for name in archive.namelist() if name.startswith("gpt2_parity/")}
    wanted = {}
    for prefix, folder in DATA.items():
        place = ROOT / folder
        files = [place] if place.is_file() else place.rglob("*")
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                part = path.relative_to(place).as_posix()
                wanted[prefix if part == "." else f"{prefix}/{part}"] = path
    assert inside == wanted.keys()
    assert [name for name, path in wanted.items() if archive.read(name) != path.read_bytes()] == []
    assert {"gpt2_parity/py.typed", "gpt2_parity/report/templates/report.html.j2"} <= inside
    assert "gpt2_parity/shipped/golden/records/micro/manifest.json" in inside


def test_an_installed_parity_gates_in_a_project_with_packages_of_our_names(installed, project, prepared):
    done = run(installed, project, "gate", "mine.py", "--target", "cpu-float32", "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout
    assert (project / "out" / "report.html").is_file()


def test_what_the_project_has_of_our_names_is_its_own(installed, project, prepared):
    """The test above can fail: a backend that does not find its own package is no pass."""
    (project / "other.py").write_text(f"{SPECIMEN}\nfrom harness.gpt2_parity import verdict\n")
    done = run(installed, project, "gate", "other.py", "--target", "cpu-float32")
    assert done.returncode == 1
    assert "No module named 'harness.gpt2_parity'" in done.stdout


USER = """
import gpt2_parity

verdict = gpt2_parity.verify("mine.py", targets=["cpu-float32"])
reveal_type(verdict)
reveal_type(verdict.passed)
reveal_type(verdict.rows[0].ratio)
gpt2_parity.verify("mine.py", seed="one")
gpt2_parity.verify("mine.py", sede=1)
gpt2_parity.verifi("mine.py")
"""


def checked(installed: Path, folder: Path, code: str) -> list[str]:
    """What mypy --strict prints, line by line, about a user's file beside the installed package.

    It looks for packages in a new environment: this one may have gpt2_parity in another way.
    """
    (folder / "user.py").write_text(code)
    venv.create(folder / "venv", with_pip=False)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            "cache",
            "--python-executable",
            "venv/bin/python",
            "user.py",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_user_who_checks_types_sees_ours(installed, tmp_path):
    lines = checked(installed, tmp_path, USER)
    assert [line.partition(" is ")[2] for line in lines if "Revealed" in line] == [
        '"gpt2_parity.api.Verdict"',
        '"bool"',
        '"float | None"',
    ], lines
    errors = [(line.split(":")[1], line.rpartition("  ")[2]) for line in lines if ": error: " in line]
    assert errors == [("8", "[arg-type]"), ("9", "[call-arg]"), ("10", "[attr-defined]")], lines


def test_without_the_mark_of_a_typed_package_a_user_sees_none(installed, tmp_path):
    copy = shutil.copytree(installed, tmp_path / "untyped")
    (copy / "gpt2_parity" / "py.typed").unlink()
    assert "[import-untyped]" in "".join(checked(copy, tmp_path, "import gpt2_parity\n"))


OPTIONAL = ("tensorflow", "torch", "jax", "transformers", "pandas", "matplotlib")


def closure(name: str, seen: set[str]) -> set[str]:
    """The distributions that a distribution needs here, without extras, by normalised name."""
    wanted = {canonicalize_name(name)} - seen
    seen |= wanted
    for text in metadata.requires(name) or [] if wanted else []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, seen)
    return seen


def test_a_base_install_brings_no_framework_and_nothing_large(wheel):
    [name] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    own = metadata.PathDistribution(zipfile.Path(wheel, f"{name.partition('/')[0]}/")).requires
    base = [Requirement(text) for text in own if "extra ==" not in text]
    seen: set[str] = set()
    for requirement in base:
        closure(requirement.name, seen)
    assert {"numpy", "jinja2", "tiktoken", "regex"} <= seen  # tiktoken needs regex
    assert not {each for each in seen if each.startswith(("nvidia", *OPTIONAL))}
    assert {"jax", "jaxlib"} <= closure("jax", set())  # a framework would be seen


def test_a_gate_without_what_is_optional_writes_all_files(installed, project, tmp_path):
    """A numpy backend, in a new cache, so that the checkpoint is read there for the first time."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in OPTIONAL)
    (tmp_path / "sitecustomize.py").write_text(blocked)  # importing them raises, in workers as well
    (project / "blocked.py").write_text(f"{SPECIMEN}\n{BLOCKED}")
    command = ("gate", "blocked.py", "--target", "cpu-float32", "--out", str(tmp_path / "out"))
    home, path = str(tmp_path / "home"), f"{installed}{os.pathsep}{tmp_path}"
    done = run(installed, project, *command, PARITY_HOME=home, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "home" / "weights").glob("*.safetensors"))) >= 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"results.json", "junit.xml", "report.md", "report.html"}
    assert "Its figures need matplotlib: pip install" in done.stdout
    assert "<svg" not in (tmp_path / "out" / "report.html").read_text()


def test_an_installed_parity_finds_its_specimens_and_not_the_projects(installed, project, prepared):
    (project / "impls" / "gpt2_theirs.py").touch()
    done = run(installed, project, "list")
    assert done.returncode == 0, done.stderr
    for word in ("numpy", "transformers", "ready:", str(installed / "gpt2_parity" / "shipped")):
        assert word in done.stdout
    assert "theirs" not in done.stdout
    assert run(installed, project, "--version").stdout == "gpt2-parity 0.1.0\n"
