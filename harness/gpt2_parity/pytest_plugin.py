"""pytest --parity-impl PATH.py: the conformance suite as tests, one for each target and check.

The tests belong to the implementation's file: mine.py::parity[cpu-float32-kv_cache]. Collecting them
imports the implementation in a short worker process, to learn its targets, and not even that where
--parity-target names them. The first test of a target then makes the selected checks of that target, in
a worker process; the others read what it found. Targets with the same selection are made side by side,
under pytest-xdist each by one of its workers. So a check that is not selected is not made, and none is
made twice. Without --parity-impl this plugin does nothing.
"""

import fnmatch
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:  # every pytest session of every user imports this module: keep it light
    from gpt2_parity.contract.interface import Target
    from gpt2_parity.contract.rows import Results, Row

OPTIONS = {
    "--parity-impl": "implementation to gate: PATH.py[:attr], MODULE[:attr] or a name; repeatable",
    "--parity-model": "model to verify it on (default: micro)",
    "--parity-target": "DEVICE-DTYPE such as cpu-float32; repeatable (default: all that are offered)",
    "--parity-require-device": "device that it must offer on this machine",
    "--parity-ledger": "file of known disagreements",
    "--parity-out": "folder for results.json, junit.xml, report.md and report.html",
}
LOAD = "load"  # the test of a target's start and end, which belong to no check


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "GPT-2 parity")
    for name, text in OPTIONS.items():
        many = name in ("--parity-impl", "--parity-target")
        group.addoption(
            name, action="append" if many else "store", default=[] if many else None, help=text
        )


# -- what to run


class SuiteSettings(NamedTuple):
    """What the options say, with absolute paths. xdist's controller passes it to the workers."""

    folder: str  # where the processes of this session share what they found
    implementations: list[str]
    model: str
    targets: list[str]
    seed: int
    ledger: str
    require_device: str
    out: str


def typed(config: pytest.Config, option: str) -> bool:
    """Whether an option is on the command line, not in addopts."""
    return any(arg.partition("=")[0] == option for arg in config.invocation_params.args)


def folder_of(config: pytest.Config, option: str) -> Path:
    """What the paths of an option are relative to: the working folder if it was typed, else rootdir."""
    return config.invocation_params.dir if typed(config, option) else config.rootpath


def settings_of(config: pytest.Config) -> SuiteSettings:
    """The settings. Raises CannotJudge for a name or a path that does not exist."""
    from gpt2_parity import api
    from gpt2_parity.files.output_folder import writable
    from gpt2_parity.implementation import discovery, given
    from gpt2_parity.model import catalogue
    from gpt2_parity.verdict import known_failures

    folder, implementations = folder_of(config, "--parity-impl"), []
    for argument in config.getoption("--parity-impl"):
        inside = discovery.split(argument)[0].endswith(".py")
        implementations.append(str(folder / argument) if inside else argument)
    for one in given.locate_all(implementations):
        if one.found.source() is None:
            raise api.CannotJudge(f"implementation {one.found.name}: is not in a file")
    targets = config.getoption("--parity-target")
    api.targets_of(targets)
    model = config.getoption("--parity-model") or "micro"
    inside_root = folder_of(config, "--parity-model") / model
    model = str(inside_root) if inside_root.is_dir() else model
    catalogue.refuse_unknown(model)
    paths = {}
    for option in ("--parity-ledger", "--parity-out"):
        value = config.getoption(option)
        paths[option] = str(folder_of(config, option) / value) if value else ""
    if ledger := paths["--parity-ledger"]:
        known_failures.read(Path(ledger))
    if out := paths["--parity-out"]:
        writable(Path(out))
    device = config.getoption("--parity-require-device") or ""
    shared = tempfile.mkdtemp(prefix="parity-")
    config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
    return SuiteSettings(shared, implementations, model, targets, api.seed_of(None), ledger, device, out)


class Suite:
    """The implementations of a session, and what is known about them."""

    def __init__(self, settings: SuiteSettings):
        from gpt2_parity.implementation import discovery

        self.settings = settings
        self.found = [discovery.find(argument) for argument in settings.implementations]
        self.sources = [path for found in self.found if (path := found.source())]
        self.names = {path.name for path in self.sources}

    def at(self, path: Path) -> list[int]:
        """The implementations that are in a file, by their number."""
        if path.name not in self.names:
            return []
        resolved = path.resolve()
        return [i for i, source in enumerate(self.sources) if source == resolved]

    def targets(self, i: int) -> "list[Target]":
        """The targets to test; empty if the implementation cannot say which it offers.

        Raises CannotJudge if it does not offer the required device.
        """
        from gpt2_parity import api
        from gpt2_parity.contract.interface import Target
        from gpt2_parity.files.once import once
        from gpt2_parity.run import offers, supervisor

        if self.settings.targets:
            return api.targets_of(self.settings.targets)

        def make() -> str:
            try:
                return json.dumps(offers.offered(self.found[i], supervisor.Resources()))
            except supervisor.Lost:
                return "[]"

        text = once(Path(self.settings.folder) / f"{i}.targets", make)
        found, device = [Target(*each) for each in json.loads(text)], self.settings.require_device
        if device and found and device not in {target.device for target in found}:
            name, offered = self.found[i].name, ", ".join(map(str, found))
            raise api.CannotJudge(f"device {device} is required, but {name} offers {offered} here")
        return found

    def results(self, i: int, targets: list[str], checks: Iterable[str]) -> "tuple[Results, bool]":
        """What the selected checks of these targets found, and whether this call made them.

        Raises CannotJudge if no verdict is possible.
        """
        from gpt2_parity.files import atomic
        from gpt2_parity.files.once import once
        from gpt2_parity.report import results

        stem, made = Path(self.settings.folder) / f"{i}.{'+'.join(targets)}", []

        def make() -> str:
            made.append(stem)
            atomic.write_text(Path(f"{stem}{FOUND}"), results.encode(self.verify(i, targets, checks)))
            return f"{stem}{FOUND}"

        return results.load(Path(once(Path(f"{stem}.once"), make))), bool(made)

    def verify(self, i: int, targets: list[str], selected: Iterable[str]) -> "Results":
        """Make the selected checks of targets; where only their start is selected, the first check.

        targets: empty if the implementation cannot say which it offers.
        """
        from gpt2_parity import api
        from gpt2_parity.checks.registry import CHECKS

        only = [name for name in CHECKS if name in set(selected)] or list(CHECKS)[:1]
        return api.verify(
            self.settings.implementations[i],
            model=self.settings.model,
            targets=targets,
            seed=self.settings.seed,
            ledger=self.settings.ledger or None,
            require_device=self.settings.require_device,
            only=only if targets and len(only) < len(CHECKS) else (),
        ).results

    def write(self) -> None:
        """Write the files of --parity-out, with what all processes of this session found."""
        from gpt2_parity import api
        from gpt2_parity.report import results

        parts = [results.load(path) for path in sorted(Path(self.settings.folder).glob(f"*{FOUND}"))]
        if self.settings.out and parts:
            api.Verdict(results.merged(parts)).report(self.settings.out)


SUITE = pytest.StashKey[Suite]()
FOUND = ".results.json"  # the end of the names of files with results


# -- hooks of a session


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options; what cannot be judged is a usage error before anything runs."""
    if not config.getoption("--parity-impl") or config.option.help:
        return
    from gpt2_parity.contract.interface import CannotJudge

    passed = getattr(config, "workerinput", {}).get("parity")  # by the controller of xdist
    try:
        settings = SuiteSettings(**passed) if passed else settings_of(config)
        suite = config.stash[SUITE] = Suite(settings)
    except CannotJudge as error:
        raise pytest.UsageError(f"parity: {error}") from error
    if not passed:
        name_files(config, suite)


def name_files(config: pytest.Config, suite: Suite) -> None:
    """Add the implementations' files to the paths that pytest collects.

    Not those that are among them already. And if --parity-impl is not typed but in addopts, the paths on
    the command line choose among its tests as among all others.
    """
    chosen = config.args_source is pytest.Config.ArgsSource.ARGS
    if chosen and not typed(config, "--parity-impl"):
        return
    named = {(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args}
    config.args += [str(path) for path in dict.fromkeys(suite.sources) if path not in named]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the settings to a worker of xdist."""
    if suite := node.config.stash.get(SUITE, None):
        node.workerinput["parity"] = suite.settings._asdict()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    suite = session.config.stash.get(SUITE, None)
    if suite and not hasattr(session.config, "workerinput"):
        suite.write()


# -- collecting


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ParityFile | None":
    suite = parent.config.stash.get(SUITE, None)
    if suite is None or not suite.at(file_path):
        return None
    inside = file_path.is_relative_to(parent.config.rootpath)
    nodeid = None if inside else os.path.relpath(file_path, parent.config.rootpath)
    return ParityFile.from_parent(parent, path=file_path, nodeid=nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> Generator[None, pytest.Module | None, pytest.Module | None]:
    """Keep pytest from importing an implementation in this process, unless its name is a test file's."""
    module = yield
    suite = parent.config.stash.get(SUITE, None)
    patterns = parent.config.getini("python_files")
    if suite is None or any(fnmatch.fnmatch(module_path.name, pattern) for pattern in patterns):
        return module
    return None if suite.at(module_path) else module


class ParityFile(pytest.File):
    """The file of an implementation, or of several."""

    def collect(self) -> Iterator["CheckItem"]:
        """A test for each target and check, without running any."""
        from gpt2_parity.checks.registry import CHECKS
        from gpt2_parity.contract.interface import CannotJudge

        suite = self.config.stash[SUITE]
        for i in suite.at(self.path):
            try:
                targets = [str(target) for target in suite.targets(i)]
            except CannotJudge as error:
                raise self.CollectError(f"parity: {error}") from error
            yield from (self.item(i, target, check) for target in targets for check in (LOAD, *CHECKS))
            if not targets:
                yield self.item(i, "", LOAD)

    def item(self, i: int, target: str, check: str) -> "CheckItem":
        found = self.config.stash[SUITE].found[i]
        name = "-".join(part for part in (found.attribute, target, check) if part)
        item: CheckItem = CheckItem.from_parent(
            self, name=f"parity[{name}]", key=(i, target), check=check
        )
        if self.config.pluginmanager.hasplugin("xdist"):  # for --dist loadgroup
            item.add_marker(pytest.mark.xdist_group("-".join(filter(None, (found.name, target)))))
        return item


# -- running


class Failed(Exception):
    """Its text is the whole report: our stack trace would not help anybody."""


class CheckItem(pytest.Item):
    """One check on one target; or, with the check "load", the target's start and end."""

    def __init__(self, *, key: tuple[int, str], check: str, **others: Any):
        super().__init__(**others)
        self.key, self.check = key, check  # key: the implementation's number, and the target
        self.rows: list[Row] = []
        self.refusal = ""  # why no verdict is possible
        self.seconds: dict[str, float] = {}  # by phase; what is not in it lasts as long as pytest says

    def setup(self) -> None:
        """Get the results; the first test of its target makes them, which takes this phase's time."""
        from gpt2_parity.contract.interface import CannotJudge

        suite, started = self.config.stash[SUITE], time.perf_counter()
        (i, target), selections = self.key, self.selections()
        selected = selections[self.key]
        together = [other for (j, other), each in selections.items() if j == i and each == selected]
        if hasattr(self.config, "workerinput"):  # xdist's workers make different targets side by side
            together = [target]
        try:
            found, made = suite.results(i, [each for each in together if each], selected)
        except CannotJudge as error:
            self.refusal = str(error)
            return
        by_check = self.seconds_of(found)
        taken = time.perf_counter() - started
        self.seconds["setup"] = max(0.0, taken - sum(by_check.values())) if made else 0.0
        if self.check in by_check:
            self.seconds["call"] = by_check[self.check]
        self.rows = list(self.own(found.rows, selected))
        if not self.rows and not by_check:
            self.refusal = "nothing was measured"

    def selections(self) -> "dict[tuple[int, str], set[str]]":
        """The selected checks of each target of each implementation in this session."""
        found: dict[tuple[int, str], set[str]] = {}
        for item in self.session.items:
            if isinstance(item, CheckItem):
                found.setdefault(item.key, set()).add(item.check)
        return found

    def of_target(self, row: "Row") -> bool:
        """Whether a row is about this test's target, or about the implementation as a whole."""
        return f"{row.device}-{row.dtype}" == self.key[1] or not row.device or not self.key[1]

    def seconds_of(self, found: "Results") -> Mapping[str, float]:
        """The seconds of each check on this target, and of loading it."""
        i, target = self.key
        name = f"{self.config.stash[SUITE].found[i].name}-{target}"
        seconds: Mapping[str, float] = found.environment["seconds_by_check"].get(name, {})
        return seconds

    def own(self, rows: "Iterable[Row]", selected: "set[str]") -> "Iterator[Row]":
        """The rows of this check.

        Those of no check go to the test "load". If that is not selected, or if the target did not even
        start, they go to every test.
        """
        from gpt2_parity.checks.registry import CHECKS

        rows = [row for row in rows if self.of_target(row)]
        started = any(row.check in CHECKS for row in rows)
        for row in rows:
            of_none = row.check not in CHECKS and (
                self.check == LOAD or LOAD not in selected or not started
            )
            if row.check == self.check or of_none:
                yield row

    def runtest(self) -> None:
        from gpt2_parity.contract.rows import exit_code
        from gpt2_parity.verdict import explain

        if self.refusal:
            raise Failed(f"no verdict: {self.refusal}")
        if not self.rows:
            if self.check == LOAD:
                return
            pytest.skip("this check has nothing to measure here")
        verdicts = {row.verdict for row in self.rows}
        code = exit_code(self.rows)
        if code == 1:
            found = [text for texts in explain.paragraphs(self.rows).values() for text in texts]
            raise Failed("\n".join(found))
        if verdicts <= {"unlocalised", "skipped"}:
            pytest.skip(explain.detail(self.rows[0]))
        if code == 2:
            text = explain.detail(self.rows[0])
            raise Failed(f"no verdict: {', '.join(sorted(verdicts))}. {text}")
        if "known" in verdicts:
            pytest.xfail(next(explain.detail(row) for row in self.rows if row.verdict == "known"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report the seconds that a check took in its worker process."""
    report = yield
    if isinstance(item, CheckItem):
        report.duration = item.seconds.get(call.when, report.duration)
    return report
