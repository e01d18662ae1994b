"""What asv has measured from commit to commit, as one pandas frame.

Format: asv's results, version 2 (https://asv.readthedocs.io): a file for each machine, commit and
environment, with flat lists over the product of a benchmark's parameters, where a failed figure is
null and a skipped one NaN; units and parameter names are in benchmarks.json beside them.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_parity.contract.interface import CannotJudge

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
COLUMNS = (
    "machine",
    "commit",
    "date",
    "environment",
    "benchmark",
    "value",
    "low",
    "high",
    "unit",
    "status",
)


def read(directory: Path | str = ".asv/results") -> "pd.DataFrame":
    """One row for each figure: COLUMNS, and a column for each parameter (implementation, model).

    value is a median; low and high bound it with 99 %, where asv had enough samples; date is
    the commit's; status is measured, failed or skipped. Raises CannotJudge, naming the file, for what
    is missing, damaged or of another version.
    """
    import pandas as pd

    directory = Path(directory)
    benchmarks = load(directory / "benchmarks.json")
    files = sorted(path for path in directory.glob("*/*.json") if path.name != "machine.json")
    rows = [row for path in files for row in figures(path, benchmarks)]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*COLUMNS, *(name for name in frame.columns if name not in COLUMNS)])
    frame["date"] = pd.to_datetime(frame["date"], unit="ms", utc=True)
    return frame.sort_values(["date", "benchmark"], kind="stable", ignore_index=True)


def load(path: Path) -> dict[str, Any]:
    """A JSON file of asv's. Raises CannotJudge, naming it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable asv results ({error}); run asv first") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise CannotJudge(f"{path}: not asv's results of version {VERSION}")
    return document


def figures(path: Path, benchmarks: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one results file. Raises CannotJudge where it is not what version 2 says."""
    document = load(path)
    try:
        for name, values in document["results"].items():
            entry = dict(zip(document["result_columns"], values, strict=False))  # the tail may be cut
            told = benchmarks.get(name, {})
            combinations = list(itertools.product(*entry["params"]))
            results = entry["result"] or [None] * len(combinations)
            lows = entry.get("stats_ci_99_a") or [None] * len(combinations)
            highs = entry.get("stats_ci_99_b") or [None] * len(combinations)
            for parameters, value, low, high in zip(combinations, results, lows, highs, strict=True):
                yield {
                    "machine": document["params"]["machine"],
                    "commit": document["commit_hash"],
                    "date": document["date"],
                    "environment": document["env_name"],
                    "benchmark": name,
                    "value": value,
                    "low": low,
                    "high": high,
                    "unit": told.get("unit", ""),
                    "status": status(value),
                    **dict(zip(told.get("param_names", ()), map(plain, parameters), strict=False)),
                }
    except (KeyError, TypeError, ValueError) as error:
        raise CannotJudge(f"{path}: not what asv writes ({error!r})") from error


def plain(parameter: str) -> str:
    """asv stores the repr of a parameter."""
    return parameter[1:-1] if parameter[:1] in "'\"" and parameter[:1] == parameter[-1:] else parameter


def status(value: float | None) -> str:
    if value is None:
        return "failed"
    return "measured" if value == value else "skipped"  # NaN is what asv writes for a skip
