"""Who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"jax", "torch", "tensorflow", "transformers"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path, **kwargs) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, **kwargs)}


@pytest.mark.parametrize("path", sorted((ROOT / "harness").rglob("*.py")), ids=lambda p: p.stem)
def test_the_harness_imports_no_specimen_and_no_framework_at_module_level(path):
    assert not packages(path) & {"impls", "tests", "golden", "benchmarks"}
    assert not packages(path, top_level_only=True) & FRAMEWORKS


@pytest.mark.parametrize(
    "path", sorted((ROOT / "harness" / "checks").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_a_check_measures_and_does_not_judge(path):
    """Checks know neither the judge nor the run, nor each other."""
    found = imports(path)
    assert not {name for name in found if name.startswith(("harness.judge", "harness.run"))}
    assert not {name for name in found if name.startswith("harness.checks")}
    assert "harness.limits.LIMITS" not in found


@pytest.mark.parametrize(
    "module", ["harness", "harness.cli", "harness.worker", "harness.golden", "harness.bench.worker"]
)
def test_importing_the_harness_imports_no_framework(module):
    code = f"import sys, {module}; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_test_above_can_fail():
    code = f"import sys, json, jax; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['jax']"


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports, wherever in its text."""
    paths = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__"): path for path in paths}
    return {
        name: imports(root.parent / path.with_suffix(".py")) & modules.keys() - {name}
        for name, path in modules.items()
    }


def test_arrows_run_one_way():
    order = list(TopologicalSorter(arrows(ROOT / "harness")).static_order())
    assert order.index("harness.contract") < order.index("harness.judge") < order.index("harness.cli")


def test_an_arrow_back_is_seen_even_inside_a_function(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "first.py").write_text("from package import second\n")
    (package / "second.py").write_text("def later():\n    from package.first import name\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(arrows(package)).static_order())


def test_the_top_level_is_the_agreed_one():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in tracked.stdout.splitlines()}
    agreed = "pyproject.toml noxfile.py README.md asv.conf.json impls harness golden tests"
    besides = (
        ".ci .github .gitignore benchmarks docs CONTRIBUTING.md CHANGELOG.md LICENSE constraints.txt"
    )
    assert top <= set(agreed.split()) | set(besides.split())


def test_the_readme_names_every_check():
    from harness.checks import CHECKS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in CHECKS:
        assert f"| {name} |" in text, name  # as results and ledgers have it


def test_every_session_of_nox_says_what_it_does():
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert {"parity", "tests", "lint", "golden", "faults"} <= {node.name for node in sessions}
    assert all(ast.get_docstring(node) for node in sessions)
