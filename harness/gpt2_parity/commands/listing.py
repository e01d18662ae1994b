"""parity list: the implementations, engines, models and checks that there are."""

import ast
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.limits import Limit, LimitByKind
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue
from gpt2_parity.reference import golden
from gpt2_parity.report import terminal


def show(
    limits: Annotated[
        bool, typer.Option("--limits", help="List every limit of the checks with its reason, instead.")
    ] = False,
) -> None:
    """List the implementations, engines, models and checks."""
    console = terminal.console()
    if limits:
        console.print(limits_table())
        return
    for title, rows in {
        f"implementations in {discovery.IMPLS}: --impl NAME; all are verified if none is named": [
            (name, docline(name)) for name in discovery.default_names()
        ],
        "baselines: --impl NAME; verified only if named": [
            (name, docline(name)) for name in discovery.BASELINES
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


def limits_table() -> Table:
    """Every limit, by check and metric; limits by kind of operation once for each kind."""
    table = Table(title="limits", title_justify="left")
    for name in ("check", "metric", "at most", "why"):
        table.add_column(name, overflow="fold")
    for check in CHECKS.values():
        for metric, limit in check.limits.items():
            for scope, one in each_limit(limit):
                table.add_row(check.name, f"{metric} {scope}".rstrip(), f"{one.most:g}", one.reason)
    return table


def each_limit(limit: Limit | LimitByKind) -> Iterator[tuple[str, Limit]]:
    """What a limit applies to, and the limit: one, or one for each kind of operation and dtype width."""
    if isinstance(limit, Limit):
        yield "", limit
        return
    for kind, wide in limit.wide.items():
        yield kind, wide
        if limit.narrow[kind] != wide:
            yield f"{kind}, below float32", limit.narrow[kind]


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
