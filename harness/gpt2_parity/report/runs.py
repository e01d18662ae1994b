"""Read runs from folders, merge their rows, and list the environments that they were made in."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import Results, Row
from gpt2_parity.files import strict_json
from gpt2_parity.report import results

BENCH = "bench.json"
BENCH_SCHEMA = 2  # 1 had at least six samples in each row
WHICH = ("implementation", "device", "dtype", "model", "phase", "metric", "n_past", "n", "batch")


class BenchRow(msgspec.Struct):
    """The fields of a row of bench.json that a report needs; bench/workload.py says what they mean."""

    implementation: str
    device: str
    dtype: str
    model: str
    phase: str
    metric: str
    n_past: int
    n: int
    batch: int
    samples: list[float]
    median: float | None
    low: float | None
    high: float | None
    unit: str
    tokens_per_second: float | None
    roofline: float | None
    verdict: str
    detail: str


class BenchDocument(msgspec.Struct):
    """The fields of bench.json that a report needs, besides its schema version."""

    environment: dict[str, Any]
    rows: list[BenchRow]


class Run(NamedTuple):
    """The contents of one folder: results of a verification, of a benchmark, or both."""

    name: str
    results: Results | None
    bench: dict[str, Any] | None = None


def read(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders (or saved results.json files). Raises CannotJudge if one has no results."""
    runs = []
    for path in paths:
        bench = path / BENCH
        has_results = not path.is_dir() or (path / results.NAME).exists() or not bench.exists()
        found = results.load(path) if has_results else None
        runs.append(Run(path.resolve().name, found, read_bench(bench) if bench.exists() else None))
    return runs


def read_bench(path: Path) -> dict[str, Any]:
    """Read bench.json. Raises CannotJudge if it is missing, malformed, or of another schema."""
    document = results.parse(path, [BENCH_SCHEMA, 1])
    try:
        strict_json.convert(document, BenchDocument)
    except ValueError as error:
        raise CannotJudge(
            f"{path}: malformed benchmark results ({error}); run parity bench again"
        ) from error
    return document


def merge(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs. Equal names get the model's or the run's name appended."""
    rows = [(i, row) for i, run in enumerate(runs) if run.results for row in run.results.rows]
    several = len({row.model for _, row in rows}) > 1
    homes: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, row in rows:
        homes[row[:4]].add(i)
    found = []
    for i, row in rows:
        name = row.implementation + f" [{row.model}]" * several
        if len(homes[row[:4]]) > 1:
            name += f" [{runs[i].name} {i + 1}]"
        found.append(row._replace(implementation=name))
    return found


def models(runs: Sequence[Run]) -> str:
    """The names of all models in the runs, joined by commas."""
    environments = [e for run in runs for e in environments_of(run)]
    return ", ".join(dict.fromkeys(str(e.get("model", "")) for e in environments if e.get("model")))


def environments_of(run: Run) -> list[dict[str, Any]]:
    """The environments of a run: of its verification and of its benchmark."""
    found = [run.results.environment] if run.results else []
    return found + ([run.bench.get("environment", {})] if run.bench else [])


class Made(NamedTuple):
    """A run: its name, the commands that repeat it, and the rest of its environment as pairs."""

    name: str
    commands: list[str]
    pairs: list[tuple[str, list[tuple[str, str]]]]


def made_with(run: Run) -> Made:
    """The environment of a run; each value is a list of (name, text), with the name "" if single."""
    commands, pairs = [], []
    for environment in environments_of(run):
        if environment.get("command"):
            commands.append(str(environment["command"]))
        for name, value in environment.items():
            if name in (
                "command",
                "commands",
                "seconds_by_check",
                "loads",
            ):  # which have places of their own
                continue
            inner = value.items() if isinstance(value, dict) else [("", value)]
            pairs.append((name.replace("_", " "), [(str(key), plain(item)) for key, item in inner]))
    return Made(run.name, commands, list({str(pair): pair for pair in pairs}.values()))


def plain(value: Any) -> str:
    """A value as text: lists and objects without brackets and quotes, and what is empty left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items() if item not in ("", {}))
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)
