"""The wheel: it holds the package and its data, nothing else, and works beside any project.

It installs only the package gpt2_parity, so a project keeps its own packages named harness, impls,
golden and tests.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import SPECIMEN

ROOT = Path(__file__).parent.parent
DATA = {  # in the wheel -> in the repository
    "gpt2_parity/shipped/impls": "impls",
    "gpt2_parity/shipped/golden": "golden",
    "gpt2_parity/shipped/results.schema.json": "docs/results.schema.json",
    "gpt2_parity": "harness/gpt2_parity",
}
CACHES = ("__pycache__", "*.pyc")
MINE = """
import golden, harness, impls, tests
from harness.something import OWN
assert OWN == "this project's own"
assert {module.OWNER for module in (golden, harness, impls, tests)} == {"this project"}
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


def run(installed: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, in the project's folder."""
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "parity"), *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(installed)},
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


def test_an_installed_parity_finds_its_specimens_and_not_the_projects(installed, project, prepared):
    (project / "impls" / "gpt2_theirs.py").touch()
    done = run(installed, project, "list")
    assert done.returncode == 0, done.stderr
    for word in ("numpy", "transformers", "ready:", str(installed / "gpt2_parity" / "shipped")):
        assert word in done.stdout
    assert "theirs" not in done.stdout
    assert run(installed, project, "--version").stdout == "gpt2-parity 0.1.0\n"
