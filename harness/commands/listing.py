"""parity list: what there is."""

import ast

from rich.markup import escape
from rich.table import Table

from harness import discover, golden, models, terminal
from harness.checks import CHECKS
from harness.contract import CannotJudge


def show() -> None:
    """List implementations, models and checks."""
    console = terminal.console()
    for title, rows in {
        "implementations (impls/gpt2_NAME.py)": [(name, docline(name)) for name in discover.names()],
        "engines (impls/engine_NAME.py; verified where named)": [
            (name, docline(name)) for name in discover.engines()
        ],
        "models": [(name, availability(name)) for name in ("micro", *models.OFFICIAL)],
        "checks": [(name, (check.__doc__ or "").splitlines()[0]) for name, check in CHECKS.items()],
    }.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


def docline(name: str) -> str:
    """The first line of an implementation's docstring, read without importing its framework."""
    source = discover.find(name).source()
    try:
        text = ast.get_docstring(ast.parse(source.read_bytes())) if source else None
        return (text or "").partition("\n")[0]
    except (SyntaxError, ValueError) as error:
        return f"is not Python: {error}"


def availability(name: str) -> str:
    try:
        where = models.locate(name)
        golden.read_manifest(where)
    except CannotJudge as error:
        return str(error).partition(". ")[0]
    return f"ready: {where.checkpoint}"
