"""pytest --parity-impl PATH.py: the conformance suite as tests, one for each target and check.

The implementation is run once, isolated as ever, before the tests are collected; each test then
holds the rows of its check. Under pytest-xdist the controller runs it and the workers read what it
found, so nothing is run twice. Without --parity-impl this plugin does nothing; with it, there is no
way to collect nothing: what cannot be judged is an error.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # this module is imported in every pytest session of every user: keep it light
    from gpt2_parity.contract.rows import Row

FOLDER = pytest.StashKey[str]()
OPTIONS = {
    "--parity-impl": "an implementation to gate: PATH.py[:attr], MODULE[:attr] or a name; repeat",
    "--parity-model": "model to verify it on (default: micro)",
    "--parity-target": "DEVICE-DTYPE such as cpu-float32; repeat (default: all that are offered)",
    "--parity-require-device": "a device that it must offer here",
    "--parity-ledger": "file of known disagreements",
    "--parity-out": "folder for results.json, junit.xml, report.md and report.html",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "GPT-2 parity")
    for name, text in OPTIONS.items():
        many = name in ("--parity-impl", "--parity-target")
        group.addoption(
            name, action="append" if many else "store", default=[] if many else None, help=text
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Run the implementations, unless this is a worker of xdist, which is told where the results are."""
    if not config.getoption("--parity-impl") or config.option.help:
        return
    told = getattr(config, "workerinput", None)
    if told is not None:
        config.stash[FOLDER] = told["parity"]
        return
    out = config.getoption("--parity-out")
    folder = Path(out or tempfile.mkdtemp(prefix="parity-"))
    config.stash[FOLDER] = str(folder)
    from gpt2_parity.contract.interface import CannotJudge

    try:
        measure(config, folder)
    except CannotJudge as error:
        raise pytest.UsageError(f"parity: {error}") from error


def measure(config: pytest.Config, folder: Path) -> None:
    """Run what the options ask for, and write what it found into folder."""
    from gpt2_parity.commands import verify
    from gpt2_parity.commands.options import DEFAULT
    from gpt2_parity.implementation import discovery

    ledger = config.getoption("--parity-ledger")
    asked = verify.request(
        [discovery.find(name) for name in config.getoption("--parity-impl")],
        config.getoption("--parity-model") or "micro",
        config.getoption("--parity-target"),
        None,
        config.getoption("--parity-require-device") or "",
        DEFAULT,
        ledger and Path(ledger),
    )
    verify.make(asked, folder)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist where the results are."""
    node.workerinput["parity"] = node.config.stash.get(FOLDER, "")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the items
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if folder := session.config.stash.get(FOLDER, ""):
        items += collect(session, Path(folder))


def collect(session: pytest.Session, folder: Path) -> Iterator["Check"]:
    """A test for each target and check that has rows."""
    from gpt2_parity.contract.rows import label
    from gpt2_parity.report import results

    by_check: dict[str, list[Row]] = {}
    for row in results.load(folder).rows:
        by_check.setdefault(f"{label(row)}-{row.check}", []).append(row)
    for name, rows in by_check.items():
        yield Check.from_parent(session, name=f"parity[{name}]", rows=rows)


class Failed(Exception):
    """Its text is the whole report: a stack of ours would tell a user nothing."""


class Check(pytest.Item):
    """The rows of one check on one target."""

    def __init__(self, *, rows: list["Row"], **others: Any):
        super().__init__(**others)
        self.rows = rows

    def runtest(self) -> None:
        from gpt2_parity.contract.rows import exit_code
        from gpt2_parity.verdict import explain

        verdicts = {row.verdict for row in self.rows}
        code = exit_code(self.rows)
        if code == 1:
            told = [text for paragraphs in explain.paragraphs(self.rows).values() for text in paragraphs]
            raise Failed("\n".join(told))
        if verdicts <= {"unlocalised", "skipped"}:
            pytest.skip(explain.detail(self.rows[0]))
        if code == 2:
            raise Failed(f"no verdict: {', '.join(sorted(verdicts))}. {explain.detail(self.rows[0])}")
        if "known" in verdicts:
            pytest.xfail(next(explain.detail(row) for row in self.rows if row.verdict == "known"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name
