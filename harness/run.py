"""A run: golden in, one worker process per implementation, judged rows out."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from harness import __version__, golden, mapped
from harness.checkpoint import Checkpoint
from harness.contract import CannotJudge, Target
from harness.discover import Found
from harness.judge import Judge, Row
from harness.models import Model
from harness.subject import Measurement, Plan, shape_of

Progress = Callable[[str, str, int], None]  # implementation, target or "", checks done


class Limits(NamedTuple):
    """What a worker may use before it is stopped, which is then its verdict."""

    seconds: float = 600.0  # without a sign of progress
    gigabytes: float = 16.0


class Results(NamedTuple):
    """What a run found, and all that is needed to repeat it."""

    rows: list[Row]
    environment: dict[str, Any]


class Sheet:
    """What one implementation's journal has said so far, target by target."""

    def __init__(self, found: Found, model: str, prepared: "Prepared"):
        self.found, self.model, self.prepared = found, model, prepared
        self.offered: list[Target] | None = None
        self.versions: dict[str, str] = {}
        self.wanted: list[Target] = []
        self.rows: list[Row] = []
        self.current: Target | None = None
        self._clear()

    def _clear(self) -> None:
        self.plan: Plan | None = None
        self.measured: list[tuple[str, Measurement]] = []
        self.errors: dict[str, str] = {}
        self.broken = ""
        self.checked = 0

    def hear(self, event: str, data: dict[str, Any]) -> None:
        """Take in one line of the journal."""
        match event:
            case "hello":
                self.offered = [Target(*target) for target in data["targets"]]
                self.versions = data["versions"]
            case "begin":
                self._clear()
                self.current = Target(*data["target"])
            case "plan":
                cases = tuple(shape_of(record) for record in self.prepared.records)
                hparams = self.prepared.checkpoint.hparams
                self.plan = Plan(hparams, cases, tuple(data["taps"]), data["generates"])
            case "measured":
                self.measured.append((data["check"], Measurement(*data["measurement"])))
            case "error":
                self.errors[data["check"]] = data["message"]
            case "broken":
                self.broken = data["message"]
            case "checked":
                self.checked += 1
            case "end":
                self.close("")

    def close(self, lost: str) -> None:
        """Judge the current target; lost says what ended it early, if anything did."""
        target = self.current or Target("", "")
        judge = Judge(self.found.name, target, self.model)
        if self.plan is None:
            self.rows.append(judge.failure("load", self.broken or lost or "it never started"))
        else:
            self.rows += judge.rows(self.plan, self.measured, self.errors, lost)
            if lost:
                self.rows.append(judge.failure("process", lost))
        self.current = None
        self._clear()

    def skip(self, targets: Sequence[Target]) -> None:
        """Say that none of the targets asked for is offered: a row that is neither pass nor fail."""
        for target in targets:
            judge = Judge(self.found.name, target, self.model)
            offered = ", ".join(map(str, self.offered or ()))
            self.rows.append(judge.skipped(f"skipped: {target} is not offered (offered: {offered})"))


class Prepared(NamedTuple):
    """The truth, ready for workers to map."""

    checkpoint: Checkpoint
    records: list[golden.Record]
    job: dict[str, Any]  # what every worker's job has in common


def verify(
    implementations: Sequence[Found],
    model: Model,
    targets: Sequence[Target],
    seed: int,
    limits: Limits,
    progress: Progress = lambda name, target, done: None,
) -> Results:
    """Run every implementation on the targets (all it offers, if none are named) and judge it.

    Raises CannotJudge where golden or checkpoint cannot be trusted, or where a named target is
    offered by none of the implementations.
    """
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        prepared = prepare(model, seed, Path(folder))
        sheets = []
        for found in implementations:
            sheet = Sheet(found, model.name, prepared)
            examine(sheet, targets, limits, Path(folder), progress)
            sheets.append(sheet)
    offered = {target for sheet in sheets for target in sheet.offered or ()}
    if absent := [str(target) for target in targets if target not in offered]:
        raise CannotJudge(
            f"target {', '.join(absent)}: offered by none of the implementations on this machine; "
            f"offered are {', '.join(sorted(map(str, offered))) or 'none'}"
        )
    rows = [row for sheet in sheets for row in sheet.rows]
    versions = {name: v for sheet in sheets for name, v in sheet.versions.items()}
    return Results(rows, environment(model, prepared, seed, versions, offered, started))


def prepare(model: Model, seed: int, folder: Path) -> Prepared:
    """Check golden and checkpoint, add the fresh case, and lay out what workers need."""
    loaded, records = golden.read(model)
    fresh = golden.record(golden.fresh_case(loaded.hparams, seed), loaded.params, loaded.hparams)
    mapped.write(folder / "fresh.safetensors", fresh.arrays)
    paths = {record.name: str(model.records / f"{record.name}.safetensors") for record in records}
    job = {
        "weights": str(loaded.weights),
        "hparams": loaded.hparams._asdict(),
        "tokenizer": str(model.checkpoint.resolve()),
        "records": paths | {fresh.name: str(folder / "fresh.safetensors")},
    }
    return Prepared(loaded, [*records, fresh], job)


def examine(
    sheet: Sheet, targets: Sequence[Target], limits: Limits, folder: Path, progress: Progress
) -> None:
    """Run one implementation; after a death go on with the targets that are left, in a new process."""
    left = list(targets) or None
    while left is None or left:
        progress(sheet.found.name, "", 0)
        death = attend(sheet, left, limits, folder, progress)
        if sheet.offered is None:  # it died before it could say what it offers
            sheet.close(death)
            return
        if not sheet.offered:
            sheet.close("targets() is empty: it can run on nothing here")
            return
        wanted = [target for target in sheet.offered if not targets or target in targets]
        if not wanted:
            sheet.skip(targets)
            return
        done = {Target(row.device, row.dtype) for row in sheet.rows}
        left = [target for target in wanted if target not in done]
        if left:  # one of them was running, or about to, when the worker ended
            sheet.current = sheet.current or left[0]
            left.remove(sheet.current)
            sheet.close(death or "the worker ended without a word about this target")


def attend(
    sheet: Sheet, left: list[Target] | None, limits: Limits, folder: Path, progress: Progress
) -> str:
    """One worker process from start to end. Returns what killed it, or "" for a clean end."""
    stem = f"{sheet.found.name}-{time.monotonic_ns()}"
    journal, words = folder / f"{stem}.jsonl", folder / f"{stem}.txt"
    job = sheet.prepared.job | {
        "name": sheet.found.name,
        "where": sheet.found.where,
        "targets": left,
        "journal": str(journal),
    }
    job_path = folder / f"{stem}.json"
    mapped.write_text(job_path, json.dumps(job))
    journal.touch()
    command = [sys.executable, "-m", "harness.worker", str(job_path)]
    with words.open("wb") as output, journal.open(encoding="utf-8") as lines:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        killed = ""
        try:
            for line in follow(lines, process, limits):
                if isinstance(line, str):
                    killed = line
                    break
                sheet.hear(line.pop("event"), line)
                if sheet.current:
                    progress(sheet.found.name, str(sheet.current), sheet.checked)
        finally:
            end(process)
    return _death(process.returncode, killed, words)


def follow(
    lines: Any, process: "subprocess.Popen[bytes]", limits: Limits
) -> Iterator[dict[str, Any] | str]:
    """The journal's lines as they come until the process ends; a text says why it must be stopped."""
    last, partial = time.monotonic(), ""
    while True:
        over = process.poll() is not None  # asked first: lines written before the end are still read
        for text in lines:
            partial += text
            if partial.endswith("\n"):
                yield json.loads(partial)
                last, partial = time.monotonic(), ""
        if over:
            return
        if time.monotonic() - last > limits.seconds:
            yield f"no progress for {limits.seconds:g} s"
            return
        if (used := resident(process.pid)) > limits.gigabytes:
            yield f"used {used:.1f} GiB of memory, allowed are {limits.gigabytes:g}"
            return
        time.sleep(0.1)


def resident(pid: int) -> float:
    """GiB of memory that belongs to a process and its children, shared file pages not counted."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it may end while we look
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            memory = member.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total / 2**30


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop the worker and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _death(code: int, killed: str, words: Path) -> str:
    if code == 0 and not killed:
        return ""
    said = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f"; last words: {said[-1][:300]}" if said else ""
    if killed:
        return f"stopped: {killed}{last}"
    if code < 0:
        return f"died of {signal.Signals(-code).name}{last}"
    return f"exited with code {code}{last}"


def environment(
    model: Model,
    prepared: Prepared,
    seed: int,
    versions: dict[str, str],
    offered: set[Target],
    started: float,
) -> dict[str, Any]:
    """Where, with what and how the results were made, as JSON."""
    cuda = any(target.device == "cuda" for target in offered)
    return {
        "gpt2_parity": __version__,
        "model": model.name,
        "hparams": prepared.checkpoint.hparams._asdict(),
        "checkpoint_sha256": prepared.checkpoint.sha256,
        "seed": seed,
        "cases": [record.name for record in prepared.records],
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "cuda": "present" if cuda else "skipped: no CUDA device",
        "seconds": round(time.time() - started, 1),
    }
