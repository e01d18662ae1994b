"""Which module may import which, and what importing costs."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "harness" / "gpt2_parity"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
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


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_the_harness_imports_no_specimen_and_no_framework_at_module_level(path):
    path = PACKAGE / path
    assert not packages(path) & {"impls", "tests", "golden", "benchmarks"}
    assert not packages(path, top_level_only=True) & FRAMEWORKS


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((PACKAGE / "checks").glob("[a-z]*.py")) if path.stem != "registry"],
    ids=lambda p: p.stem,
)
def test_a_check_measures_and_does_not_judge(path):
    """Checks know neither the judge nor the run, nor each other."""
    found = imports(path)
    assert not {name for name in found if name.startswith(("gpt2_parity.verdict", "gpt2_parity.run"))}
    assert not {name for name in found if name.startswith("gpt2_parity.checks")}


@pytest.mark.parametrize("module", ["cli", "run.worker", "reference.golden", "bench.worker"])
def test_importing_the_harness_imports_no_framework(module):
    code = f"import sys, gpt2_parity.{module}; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_test_above_can_fail():
    code = f"import sys, json, jax; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['jax']"


# Who may import whom: a room is a folder of the package, or a module beside them. Each row lists all
# that its room may import. The rooms come from the ground up: nothing imports what stands below it here.
ROOMS = {
    "version": "",
    "contract": "",
    "files": "contract",
    "model": "files contract",
    "reference": "model files contract",
    "implementation": "reference model files contract",
    "mistakes": "reference contract",
    "checks": "mistakes implementation reference contract",
    "verdict": "checks mistakes contract",
    "report": "verdict checks files contract",
    "run": "verdict checks implementation reference model files contract version",
    "published": "run implementation reference model files contract",
    "bench": "report run verdict checks implementation reference model files contract",
    "api": "report run verdict checks implementation reference model files contract",
    "commands": "api bench published report run verdict checks implementation reference model files "
    "contract",
    "pytest_plugin": "api report run verdict checks implementation model files contract",
    "cli": "commands contract",
    "__main__": "cli",
}


def room_of(path: Path) -> str:
    """The room of a module, by its path in the package."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imported_rooms(code: str) -> set[str]:
    """The rooms that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("gpt2_parity.")}
    return found & ROOMS.keys()


@pytest.mark.parametrize("path", [p for p in MODULES if p != Path("__init__.py")], ids=str)
def test_a_room_imports_only_what_the_table_allows(path):
    room = room_of(path)
    allowed = {room, *ROOMS[room].split()}
    assert imported_rooms((PACKAGE / path).read_text()) <= allowed


def test_an_import_inside_a_function_is_seen():
    code = "def later():\n    from gpt2_parity.run.runner import verify\n"
    assert imported_rooms(code) == {"run"}


def test_the_table_runs_one_way():
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert all(order.index(below) < order.index(room) for below in allowed.split()), room


def test_rooms_are_few_and_lie_on_few_levels():
    arrows = {(room_of(path), other) for path in MODULES for other in rooms_beside(path)}
    assert len(arrows) <= 120
    levels: dict[str, int] = {}
    for room in ROOMS:  # in order: what it imports has its level already
        levels[room] = 1 + max((levels[other] for mine, other in arrows if mine == room), default=0)
    assert max(levels.values()) <= 12


def rooms_beside(path: Path) -> set[str]:
    """The other rooms that a module imports."""
    return imported_rooms((PACKAGE / path).read_text()) - {room_of(path)}


def test_the_root_and_the_folders_are_few_and_say_what_they_are():
    at_root = {path.stem for path in MODULES if len(path.parts) == 1} - {"__init__", "__main__"}
    assert at_root <= {"api", "cli", "pytest_plugin", "version"}
    folders = {path.parts[0] for path in MODULES if len(path.parts) > 1}
    assert folders == ROOMS.keys() - at_root - {"__main__"}
    for folder in folders:
        text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
        assert text, folder
        assert "ay import" in text or "Imports nothing" in text, folder


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports."""
    return {name.removeprefix("gpt2_parity.") for name in imports(PACKAGE / path)} & modules


def test_no_module_imports_itself_through_others():
    names = {".".join(path.with_suffix("").parts): path for path in MODULES}
    graph = {name: imported_modules(path, set(names)) - {name} for name, path in names.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_a_circle_is_seen():
    with pytest.raises(CycleError):
        list(TopologicalSorter({"first": {"second"}, "second": {"first"}}).static_order())


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


def test_the_readme_is_short_and_names_every_check():
    from gpt2_parity.checks.registry import CHECKS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in CHECKS:
        assert f"| {name} |" in text, name  # as results and ledgers have it
    assert len(text.splitlines()) <= 130
    assert max(map(len, text.splitlines())) <= 110


def test_every_session_of_nox_says_what_it_does():
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert {"parity", "tests", "lint", "golden", "faults"} <= {node.name for node in sessions}
    assert all(ast.get_docstring(node) for node in sessions)


PROSE = {"verdict/explain.py", "report/results_v1.py"}  # what makes sentences, and what reads old ones
SEARCHES = {
    *("split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "index", "search"),
    *("match", "fullmatch", "findall", "removeprefix", "removesuffix", "splitlines"),
}
SENTENCES = {
    *("detail", "diagnosis", "text", "measured", "measured_and_seen", "paragraphs", "seen", "claim"),
    *("size", "why", "look", "message"),
}


def searches_of_sentences(tree: ast.AST) -> list[int]:
    """Lines where prose is searched or cut: a method of a string that explain made, or a test by in."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            subjects = [node.func.value, *node.args]
            if node.func.attr in SEARCHES and any(is_sentence(each) for each in subjects):
                lines.append(node.lineno)
        if isinstance(node, ast.Compare):
            looked_for = isinstance(node.left, ast.Constant | ast.JoinedStr)
            inside = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
            if looked_for and inside and any(map(is_sentence, node.comparators)):
                lines.append(node.lineno)
    return lines


def is_sentence(node: ast.AST) -> bool:
    """An attribute such as finding.why, or what a function of explain returns."""
    if isinstance(node, ast.Call):
        node = node.func
        return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "explain"
    return isinstance(node, ast.Attribute) and node.attr in SENTENCES


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_searches_or_splits_a_sentence(path):
    """Facts stay data until the last moment: explain.py makes the sentences, and nothing reads them."""
    if str(path) not in PROSE:
        assert searches_of_sentences(ast.parse((PACKAGE / path).read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "finding.why.partition(' explains it: ')",
        "row.detail.startswith('NaN')",
        "'missing: ' in row.detail",
        "re.match('measured', explain.detail(row))",
        "explain.diagnosis(row).split(':')",
    ],
)
def test_a_search_of_a_sentence_is_seen(code):
    assert searches_of_sentences(ast.parse(code)) == [1]


def classes(path: Path) -> list[str]:
    """Names of the classes that a module defines."""
    nodes = ast.walk(ast.parse((PACKAGE / path).read_text()))
    return [node.name for node in nodes if isinstance(node, ast.ClassDef)]


def test_no_class_name_has_two_meanings():
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for name in classes(path):
            homes.setdefault(name, []).append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_the_readme_has_the_checks_as_they_declare_themselves():
    from gpt2_parity.checks.registry import CHECKS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for check in CHECKS.values():
        assert f"| {check.name} | {check.establishes} |" in text, check.name
