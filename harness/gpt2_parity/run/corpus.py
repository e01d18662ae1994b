"""A corpus: a folder of failures that a search has found, which later searches replay first.

Each has two files: NAME.safetensors, which holds the trial, and NAME.py, which shows the failure alone
(reproducer.py). A failure is kept only if its file was run and failed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_parity.checks.search import alone
from gpt2_parity.checks.search.trial import Trial
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.rows import Row
from gpt2_parity.files import atomic, safetensors_mmap, strict_json
from gpt2_parity.implementation.discovery import IMPLS, Found
from gpt2_parity.run import reproducer, supervisor
from gpt2_parity.verdict import explain

Entry = dict[str, Any]  # {"name", "trial"}, as contract.plan.Asked has it
TRIAL = "trial"  # in the metadata of a safetensors file

WRITTEN, THERE, NOT_AGAIN, NOT_ALONE = "written", "there already", "not again", "not alone"


class Kept(NamedTuple):
    """What became of a failure that a search found."""

    outcome: str  # WRITTEN, THERE, NOT_AGAIN or NOT_ALONE
    scope: str
    path: Path | None = None  # of the Python file


def beside(found: Found) -> Path:
    """STEM.corpus beside an implementation's file; in the working folder if that is ours, or none."""
    path = found.source()
    if path is None or path.parent == IMPLS:
        return Path(f"{found.name}.corpus")
    return path.with_suffix(".corpus")


def read(folder: Path) -> list[Entry]:
    """The trials of a corpus by name, in order; none if there is no such folder.

    Raises CannotJudge, naming the file, for one that holds no trial.
    """
    return [entry(path) for path in sorted(folder.glob("*.safetensors"))]


def entry(path: Path) -> Entry:
    """The trial in a file. Raises CannotJudge, naming the file, if it holds none."""
    try:
        trial = strict_json.loads(safetensors_mmap.metadata(path)[TRIAL].encode())
        Trial.of(trial)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CannotJudge(
            f"{path}: holds no trial of a search ({error!r:.200}); remove it, and the .py of its name"
        ) from error
    return {"name": path.stem, "trial": trial}


def replayed(found: Iterable[Found], folder: Path | None) -> list[Entry]:
    """The trials to replay: of a folder, or of the corpus of each implementation, if it is there.

    Raises CannotJudge for a folder that does not exist, and as read does.
    """
    if folder is None:
        return [each for one in found if one.module for each in read(beside(one))]
    if not folder.is_dir():
        raise CannotJudge(f"corpus {folder}: no such folder")
    return read(folder)


def keep(rows: Iterable[Row], found: Found, folder: Path, seconds: float) -> list[Kept]:
    """Write every failure that a search has made smaller into a corpus, as a file that shows it alone.

    seconds: that such a file may take when it is run. Raises CannotJudge where it cannot be written.
    """
    known = [each["trial"] for each in read(folder)]
    kept = []
    for row in rows:
        facts = row.evidence.get("search", {})
        if row.check != "search" or row.verdict != "fail" or "corpus" in facts:
            continue
        if facts.get("not_again"):
            kept.append(Kept(NOT_AGAIN, row.scope))
        elif "trial" in facts:
            trial = json.loads(json.dumps(facts["trial"]))  # tuples become lists
            if trial in known:
                kept.append(Kept(THERE, row.scope))
                continue
            kept.append(write(row, found, folder, seconds))
            known += [trial] if kept[-1].outcome == WRITTEN else []
    return kept


def write(row: Row, found: Found, folder: Path, seconds: float) -> Kept:
    """Write the two files of one failure, if the Python file fails when it is run."""
    facts = row.evidence["search"]
    trial, shown, target = Trial.of(facts["trial"]), facts["shown_by"], Target(row.device, row.dtype)
    name = unused(slug(row.scope, facts.get("condition", ())), folder)
    text = reproducer.text(name, title(row.scope, facts), found, target, trial, shown, folder)
    arrays = alone.arrays(trial, shown, row.dtype)
    metadata = {TRIAL: json.dumps(facts["trial"]), "hparams": json.dumps(trial.hparams._asdict())}
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        tried = Path(temporary) / f"{name}.py"
        safetensors_mmap.write(tried.with_suffix(".safetensors"), arrays, metadata)
        atomic.write_text(tried, text)
        if not fails(tried, found, seconds):
            return Kept(NOT_ALONE, row.scope)
    path = folder / f"{name}.py"
    safetensors_mmap.write(path.with_suffix(".safetensors"), arrays, metadata)
    atomic.write_text(path, text)
    return Kept(WRITTEN, row.scope, path)


def fails(path: Path, found: Found, seconds: float) -> bool:
    """Whether a reproducer, run in a process of its own, says that it fails. A traceback does not."""
    file = reproducer.source(found)
    command = [sys.executable, str(path), str(file or found.module)]
    environment = os.environ | {supervisor.MARK: "reproducer"}  # a file that verifies itself must not
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 1 and reproducer.FAILS.encode() in done.stdout


def title(scope: str, facts: Mapping[str, Any]) -> str:
    """The first line of a reproducer."""
    return f"{scope} is wrong" + "".join(f"; {each}" for each in explain.conditions(facts)) + "."


def slug(scope: str, condition: Sequence[Mapping[str, Any]]) -> str:
    """A file's name, without its end: attn-heads-queries-5."""
    text = scope.removeprefix("h*/")
    if condition:
        axis, value = condition[0]["axis"], condition[0]["fails"][0]
        text += f"-{value}" if axis == "weights" else f"-{axis}-{value}"
    return re.sub(r"[^\w-]+", "-", text).strip("-")


def unused(name: str, folder: Path) -> str:
    """The name, with a number if the folder has one of that name."""
    taken, made = {path.stem for path in folder.glob("*")}, name
    for i in range(2, len(taken) + 3):
        if made not in taken:
            break
        made = f"{name}-{i}"
    return made
