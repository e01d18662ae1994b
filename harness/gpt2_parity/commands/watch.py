"""parity gate --watch: a verdict after every edit."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer

from gpt2_parity import api
from gpt2_parity.api import Verdict
from gpt2_parity.contract.interface import CannotJudge, CodeChanged
from gpt2_parity.contract.progress import Progress, Update
from gpt2_parity.files import digest
from gpt2_parity.implementation import discovery
from gpt2_parity.report import changes, terminal

POLL = 0.2  # seconds between looks at the file


def watch_file(implementation: str, options: Mapping[str, Any]) -> NoReturn:
    """Gate an implementation now and whenever a file of it has changed, until Ctrl-C.

    Its files are its own one and what it imported from outside of installed packages. What failed runs
    first, then what is quick; the seed stays the same. Exits as the last verdict says. Raises
    CannotJudge as gate does.
    """
    if (path := discovery.find(implementation).source()) is None:
        raise CannotJudge(f"{implementation}: is not in a file that could be watched")
    seed, console = api.seed_of(options["seed"]), terminal.console()
    verdict: Verdict | None = None
    try:
        while True:
            files, before = {path: content_of(path)}, verdict
            awaited = changes.failing(before.rows) if before is not None else ()
            first = changes.urgent(before.results) if before is not None else ()
            with terminal.progress(console, awaited) as progress:
                noting = functools.partial(note, files, progress)
                again = {**options, "seed": seed, "first": first, "progress": noting}
                try:
                    verdict = api.gate(implementation, **again)
                except CodeChanged as changed:
                    console.print(f"{changed}", markup=False, highlight=False)
                    continue
            terminal.show(console, verdict.results)
            for line in changes.between(before.rows, verdict.rows) if before is not None else []:
                console.print(f"  changed: {line}", markup=False, highlight=False)
            names = ", ".join(dict.fromkeys(file.name for file in files))
            console.print(f"watching {names}; Ctrl-C ends", markup=False, highlight=False)
            wait_for_change(files)
    except KeyboardInterrupt:
        raise typer.Exit(verdict.exit_code if verdict is not None else 2) from None


def note(files: dict[Path, str], progress: Progress, update: Update) -> None:
    """Show an update, and add to files what was imported for the verdict: by path, the SHA-256."""
    files.update({Path(path): sha256 for path, sha256 in update.files.items()})
    progress(update)


def wait_for_change(files: Mapping[Path, str]) -> None:
    """Return once one of the files has other content. files: their SHA-256 by path."""
    while all(content_of(path) in (content, "") for path, content in files.items()):
        time.sleep(POLL)


def content_of(path: Path) -> str:
    """A file's SHA-256; "" while it cannot be read: an editor may be about to replace it."""
    try:
        return digest.sha256(path)
    except CannotJudge:
        return ""
