"""A text that several processes need and one of them makes."""

import json
from collections.abc import Callable
from pathlib import Path

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, locks


def once(path: Path, make: Callable[[], str]) -> str:
    """The text that make returns. The first process that asks makes it; the others wait for it.

    path: the file that keeps it. A CannotJudge that make raises is kept too, and raised for everyone.
    """
    with locks.waiting(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            try:
                made = {"text": make()}
            except CannotJudge as error:
                made = {"cannot_judge": str(error)}
            atomic.write_text(path, json.dumps(made))
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    if "cannot_judge" in kept:
        raise CannotJudge(kept["cannot_judge"])
    return kept["text"]
