"""parity gate --watch: a verdict after every edit."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer

from gpt2_parity import api
from gpt2_parity.api import Verdict
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest
from gpt2_parity.implementation import discovery
from gpt2_parity.report import changes, terminal

POLL = 0.2  # seconds between looks at the file


def watch_file(implementation: str, options: Mapping[str, Any]) -> NoReturn:
    """Gate an implementation now and whenever its file has changed, until Ctrl-C.

    What failed runs first, then what is quick; the seed stays the same. Exits as the last verdict says.
    Raises CannotJudge as gate does.
    """
    if (path := discovery.find(implementation).source()) is None:
        raise CannotJudge(f"{implementation}: is not in a file that could be watched")
    seed, console = api.seed_of(options["seed"]), terminal.console()
    verdict: Verdict | None = None
    try:
        while True:
            content, before = content_of(path), verdict
            awaited = changes.failing(before.rows) if before is not None else ()
            first = changes.urgent(before.results) if before is not None else ()
            with terminal.progress(console, awaited) as progress:
                again = {**options, "seed": seed, "first": first, "progress": progress}
                verdict = api.gate(implementation, **again)
            terminal.show(console, verdict.results)
            changed = changes.between(before.rows, verdict.rows) if before is not None else []
            for line in changed:
                console.print(f"  changed: {line}", markup=False, highlight=False)
            console.print(f"watching {path.name}; Ctrl-C ends", markup=False, highlight=False)
            wait_for_change(path, content)
    except KeyboardInterrupt:
        raise typer.Exit(verdict.exit_code if verdict is not None else 2) from None


def wait_for_change(path: Path, content: str) -> None:
    """Return once a file has other content. content: its SHA-256."""
    while content_of(path) in (content, ""):
        time.sleep(POLL)


def content_of(path: Path) -> str:
    """A file's SHA-256; "" while it cannot be read: an editor may be about to replace it."""
    try:
        return digest.sha256(path)
    except CannotJudge:
        return ""
