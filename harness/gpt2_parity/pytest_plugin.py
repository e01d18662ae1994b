"""pytest --parity-impl PATH.py: the conformance suite as tests, one for each target and check.

The implementation runs once, isolated, before the tests are collected; each test then holds the rows of
its check. Under pytest-xdist the controller runs it and the workers read its results, so nothing runs
twice. Without --parity-impl this plugin does nothing. With it, an empty collection is impossible: where
no verdict is possible, pytest ends with a usage error.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every pytest session of every user imports this module: keep it light
    from gpt2_parity.contract.rows import Row

FOLDER = pytest.StashKey[str]()
OPTIONS = {
    "--parity-impl": "implementation to gate: PATH.py[:attr], MODULE[:attr] or a name; repeatable",
    "--parity-model": "model to verify it on (default: micro)",
    "--parity-target": "DEVICE-DTYPE such as cpu-float32; repeatable (default: all that are offered)",
    "--parity-require-device": "device that it must offer on this machine",
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
    """Run the implementations, unless this is a worker of xdist: the controller passes it the folder."""
    if not config.getoption("--parity-impl") or config.option.help:
        return
    from_controller = getattr(config, "workerinput", None)
    if from_controller is not None:
        config.stash[FOLDER] = from_controller["parity"]
        return
    folder = config.getoption("--parity-out") or tempfile.mkdtemp(prefix="parity-")
    config.stash[FOLDER] = folder
    from gpt2_parity import api

    try:
        api.verify(
            config.getoption("--parity-impl"),
            model=config.getoption("--parity-model") or "micro",
            targets=config.getoption("--parity-target"),
            out=folder,
            ledger=config.getoption("--parity-ledger"),
            require_device=config.getoption("--parity-require-device") or "",
        )
    except api.CannotJudge as error:
        raise pytest.UsageError(f"parity: {error}") from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the folder of the results to a worker of xdist."""
    node.workerinput["parity"] = node.config.stash.get(FOLDER, "")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the items
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if folder := session.config.stash.get(FOLDER, ""):
        items += collect(session, Path(folder))


def collect(session: pytest.Session, folder: Path) -> Iterator["CheckItem"]:
    """A test for each target and check that has rows."""
    from gpt2_parity import api
    from gpt2_parity.contract.rows import label

    by_check: dict[str, list[Row]] = {}
    for row in api.read(folder).rows:
        by_check.setdefault(f"{label(row)}-{row.check}", []).append(row)
    for name, rows in by_check.items():
        yield CheckItem.from_parent(session, name=f"parity[{name}]", rows=rows)


class Failed(Exception):
    """Its text is the whole report: our stack trace would not help anybody."""


class CheckItem(pytest.Item):
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
