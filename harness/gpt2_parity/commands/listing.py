"""parity list: the implementations, engines, models and checks that there are."""

import ast

from rich.markup import escape
from rich.table import Table

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue
from gpt2_parity.reference import golden
from gpt2_parity.report import terminal


def show() -> None:
    """List the implementations, engines, models and checks."""
    console = terminal.console()
    for title, rows in {
        "implementations: --impl NAME; all of them are verified if none is named": [
            (name, docline(name)) for name in discovery.names()
        ],
        "engines: --impl NAME; verified only if named": [
            (name, docline(name)) for name in discovery.engines()
        ],
        "models: --model NAME": [(name, availability(name)) for name in ("micro", *catalogue.OFFICIAL)],
        "checks": [(name, check.establishes) for name, check in CHECKS.items()],
    }.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


def docline(name: str) -> str:
    """The first line of an implementation's docstring, read without importing its framework."""
    source = discovery.find(name).source()
    try:
        text = ast.get_docstring(ast.parse(source.read_bytes())) if source else None
        return (text or "").partition("\n")[0]
    except (SyntaxError, ValueError) as error:
        return f"cannot be parsed: {error}"


def availability(name: str) -> str:
    """Whether a model can be verified against now, and if not, what to do."""
    try:
        model = catalogue.locate(name)
    except CannotJudge:
        return f"not downloaded; get it with: parity fetch {name}"
    try:
        golden.read_manifest(model)
    except CannotJudge as error:
        return str(error).partition(". ")[0]
    return f"ready: {model.checkpoint}"
