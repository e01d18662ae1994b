"""Prove the verifier: planted faults are caught, blamed and diagnosed; honest variants pass.

    python tests/score.py [--out DIR] [--seeds 20] [--large] [--only NAME] [--device cuda]

Exit code 1 where a score is short of the gate (everything right, nothing alarmed). A fault that does
not apply or that crashes the harness ends the run with an error: it is scored neither as killed nor
as survived.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import faults
import variants
from examine import examine, examined
from faults import FAULTS, IN_LAYER, Fault, plant
from gpt2_parity.checks import local
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.architecture import graph, kind_of
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.rows import Row, exit_code
from gpt2_parity.files import atomic
from gpt2_parity.implementation.discovery import find
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model import catalogue, checkpoint
from gpt2_parity.reference import records, rounding
from gpt2_parity.run import preparation, supervisor
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.verdict import explain
from gpt2_parity.verdict.attribution import collapse
from variants import VARIANTS

SEED = 7  # of the fresh tokens that faults are examined with
OWN = ("local", "precision", "weights", "bad_tokens")  # checks whose failures blame their own scope
MODELS = ("micro", "outliers", "deep")
SLOW = ("jax", "tensorflow")
SHORT = {"seed", "prompt", "fresh"}
# Each variant of JAX is a module of its own, and mostly the programs of another: they are compiled once.
# Threads of torch that wait by spinning, with a worker on every core, would take ten times as long.
SHARED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
CONTEXTS = 12  # processes that share a GPU, each with half a GiB of the driver's


@functools.lru_cache(maxsize=64)
def prepared(model: str, seed: int) -> Prepared:
    """The truth about a model, with a fresh case of that seed; the files live as long as the process."""
    if model in ("outliers", "deep"):
        return variants.prepare(getattr(variants, model)(), seed)
    if model == "micro":
        return preparation.prepare(
            catalogue.locate(model), seed, Path(tempfile.mkdtemp(prefix="parity-"))
        )
    loaded = checkpoint.load(catalogue.locate(model).checkpoint)  # a shape: the fresh case is enough
    return Prepared(loaded, [], [records.fresh_case(loaded.hparams, seed)], None, {})


class Score(NamedTuple):
    """The result of one fault."""

    name: str
    killed: bool
    blamed: bool
    diagnosed: bool | None  # None: the catalogue names no diagnosis
    tripped: bool  # all the checks that must trip did
    blame: list[str]
    diagnosis: list[str]
    checks: list[str]  # those that failed
    seconds: dict[str, float]  # by check

    @property
    def right(self) -> bool:
        return self.killed and self.blamed and self.diagnosed is not False and self.tripped

    def line(self) -> str:
        """What went wrong; "" where nothing did."""
        if self.right:
            return ""
        found = f"killed {self.killed}, blame {self.blame}, diagnosis {self.diagnosis}"
        return f"{self.name}: {found}, tripped {self.tripped}"


def culprits(rows: Iterable[Row], n_layer: int) -> list[str]:
    """Everything blamed in a run, layers collapsed."""
    failed = [row for row in rows if row.verdict == "fail" and row.blame]
    own = {row.blame for row in failed if row.check in OWN and ", " not in row.blame} - {"process"}
    own = {blame for blame in own if not blame.startswith("h*")}  # inherited, collapsed already
    return collapse(sorted(own), n_layer) if own else sorted({row.blame for row in failed})


def diagnoses(rows: Iterable[Row]) -> list[str]:
    """Names of the mistakes that explain failures; "?" for a failure that none explains.

    Gradients are not explained, but traced to where the backward pass goes wrong.
    """
    failed = (row for row in rows if row.verdict == "fail" and "wrong_from" not in row.evidence)
    return sorted({row.mistake or "?" for row in failed if explain.diagnosis(row)})


def rightly(blame: Iterable[str], expected: Iterable[str]) -> bool:
    """Everything blamed is expected, and everything expected (but for "?") is blamed."""
    blame, expected = list(blame), list(expected)
    needed = [word for word in expected if word == "h?" or not word.endswith("?")]
    patterns = [word if word == "h?" else word.removesuffix("?") for word in expected]
    known = all(any(matches(found, pattern) for pattern in patterns) for found in blame)
    return bool(blame) and known and all(any(matches(b, word) for b in blame) for word in needed)


def matches(found: str, pattern: str) -> bool:
    """Patterns match a scope in one layer or, collapsed, in several; "h?" is a block's output."""
    if pattern == "h?":
        return found.startswith("h") and "/" not in found and " " not in found
    return fnmatchcase(found, pattern) or found == pattern


def score(fault: Fault, model: str, only: set[str] | None) -> Score:
    with tempfile.TemporaryDirectory() as folder:
        module = plant(fault, Path(folder))
        target = Target(fault.device, fault.dtype)
        state = examined(module, prepared(model, SEED), target, only)
    rows = state.rows
    blame = culprits(rows, prepared(model, SEED).checkpoint.hparams.n_layer)
    found = diagnoses(rows)
    tripped = {row.check for row in rows if row.verdict == "fail"}
    diagnosed = found == [fault.diagnosis] if fault.diagnosis else None
    killed = exit_code(rows) == 1
    right = rightly(blame, fault.blame)
    seconds = state.targets[target].seconds
    return Score(
        fault.name,
        killed,
        right,
        diagnosed,
        fault.trips <= tripped,
        blame,
        found,
        sorted(tripped),
        seconds,
    )


def score_small(name: str) -> Score:
    shelves = [*FAULTS, *faults.ON_CUDA]
    return score(next(fault for fault in shelves if fault.name == name), "micro", None)


def score_large(name: str) -> Score:
    return score(next(fault for fault in IN_LAYER if fault.name == name), "shape:124M", {"fresh"})


class Alarm(NamedTuple):
    """How an honest variant fared on a model over all seeds."""

    name: str
    model: str
    seeds: int
    alarms: list[str]
    greatest: dict[str, float]  # greatest local figure by kind of operation
    limit_used: float  # the greatest share of any limit

    def line(self) -> str:
        told = [f"{self.name} on {self.model}: {self.seeds} seeds, {len(self.alarms)} false alarms, "]
        return "\n  ".join([told[0] + f"{self.limit_used:.0%} of a limit", *self.alarms[:5]])


def models_of(variant: variants.Variant, seeds: int) -> Sequence[str]:
    """A quick look leaves out 24 layers where they compile or dispatch slowly."""
    return [model for model in MODELS if seeds > 1 or model != "deep" or variant.specimen not in SLOW]


def try_variant(name: str, model: str, seeds: int, device: str = "cpu") -> Alarm:
    """All cases with the first seed, the fresh case alone with the others.

    One seed is a quick look, at short cases only.
    """
    found = next(variant for variant in SHELVES[device].variants if variant.name == name)
    alarms, greatest, used = [], {}, 0.0
    if found.specimen == "torch":  # the variant before may have asked for more, and keeps them
        importlib.import_module("torch").set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        module = variants.load(found, Path(folder))
        for seed in range(seeds):
            short = SHORT if seeds == 1 else None
            only = {"fresh"} if seed else short
            for row in examine(module, prepared(model, seed), found.target, only):
                used = max(used, row.ratio or 0)
                if row.verdict == "fail":
                    alarms.append(
                        f"seed {seed}: {row.check} {row.case} {row.scope} {row.value} "
                        f"{explain.detail(row)}"
                    )
                if row.check == "local" and row.value is not None and "segment" not in row.metric:
                    kind = kind_of(row.scope)
                    greatest[kind] = max(greatest.get(kind, 0.0), row.value)
    return Alarm(name, model, seeds, alarms, greatest, used)


class Power(NamedTuple):
    """The smallest relative change of one element that the local check catches."""

    changed: str
    kind: str
    median: float  # over the elements tried
    worst: float
    missed: int  # elements of which not even doubling was caught


def power() -> list[Power]:
    """Of single weights and of single activations, on micro's full context, NumPy float32."""
    truth = prepared("micro", SEED)
    record = next(record for record in truth.records if record.name == "full_context")
    params, hparams = truth.checkpoint.params, truth.checkpoint.hparams
    weights = truth.checkpoint.weights
    loaded = Loaded.load(find("numpy").load(), Target("cpu", "float32"), weights, hparams, [record])
    ops = {op.name: op for op in graph(hparams.n_layer)}
    rng = np.random.default_rng(0)
    found = []
    for variable, name in {
        "h1/ln_1/g": "h1/ln_1", "h1/ln_1/b": "h1/ln_1", "h1/attn/c_attn/w": "h1/attn/c_attn",
        "h1/attn/c_attn/b": "h1/attn/c_attn", "h2/attn/c_proj/w": "h2/attn/c_proj",
        "h2/mlp/c_fc/w": "h2/mlp/c_fc", "h3/mlp/c_proj/w": "h3/mlp/c_proj",
        "wpe": "embed", "wte": "logits",
    }.items():  # fmt: skip
        caught = [
            least(lambda d, i=i, v=variable, n=name: caught_weight(loaded, record, ops[n], v, i, d))
            for i in elements(params[variable], rng)
        ]
        found.append(summary(f"one weight of {variable}", ops[name].kind, caught))
    run_ = loaded.prefill(record)
    captured = run_.taps | {"logits": run_.logits}
    names = (
        "embed",
        "h1/ln_1",
        "h1/attn/c_attn",
        "h1/attn/heads",
        "h1/resid_mid",
        "h1/mlp/gelu",
        "logits",
    )
    for name in names:
        caught = [
            least(lambda d, i=i, n=name: caught_activation(loaded, record, captured, ops[n], i, d))
            for i in elements(captured[name], rng)
        ]
        found.append(summary("one activation", ops[name].kind, caught))
    return found


def elements(array: np.ndarray, rng: np.random.Generator, n: int = 9) -> list[tuple[int, ...]]:
    """Random places of an array whose values are not tiny: changes are relative."""
    places = np.argwhere(np.abs(array) >= np.median(np.abs(array)))
    return [tuple(int(i) for i in place) for place in rng.choice(places, n)]


def least(caught: Any) -> float:
    """The smallest power of two, 1 at most, by which a change is caught; NaN where 1 is not."""
    smallest = float("nan")
    for exponent in range(0, -24, -1):
        if not caught(2.0**exponent):
            break
        smallest = 2.0**exponent
    return smallest


def caught_weight(
    loaded: Loaded, record: Any, op: Any, variable: str, place: Any, change: float
) -> bool:
    params = dict(loaded.model.params)
    params[variable] = params[variable].copy()
    params[variable][place] *= 1 + change
    model, loaded.model = loaded.model, loaded.model._replace(params=params)
    try:
        tapped = loaded.tapped(record.tokens)
    finally:
        loaded.model = model
    return beyond(loaded, record, tapped.taps | {"logits": tapped.logits}, op)


def caught_activation(
    loaded: Loaded, record: Any, captured: Any, op: Any, place: Any, change: float
) -> bool:
    changed = captured[op.name].copy()
    changed[place] *= 1 + change
    return beyond(loaded, record, {**captured, op.name: changed}, op)


def beyond(loaded: Loaded, record: Any, captured: Any, op: Any) -> bool:
    [(value, _)] = local.examine([local.Examined(loaded, record, captured, op, "rounding_units")])
    return value > rounding.LIMITS.of(op.kind, loaded.target.dtype).most


def summary(changed: str, kind: str, caught: list[float]) -> Power:
    known = [value for value in caught if value == value]
    missed = len(caught) - len(known)
    return Power(changed, kind, float(np.median(known)), float(np.max(known)), missed)


def show_faults(console: Console, title: str, scores: list[Score]) -> None:
    named = [s for s in scores if s.diagnosed is not None]
    diagnosed = share(bool(s.diagnosed) for s in named)
    console.print(
        f"[bold]{title}[/bold]: {len(scores)} faults; killed {share(s.killed for s in scores)}, "
        f"blamed rightly {share(s.blamed for s in scores)}, "
        f"diagnosed rightly {diagnosed} of the {len(named)} that name one, "
        f"named checks tripped {share(s.tripped for s in scores)}"
    )


def show_checks(console: Console, scores: list[Score]) -> None:
    """What each check costs and what it finds: seconds, faults that it sees, and that it alone sees."""
    table = Table(title="each check over all faults", title_justify="left")
    for column in ("check", "seconds, median", "faults seen", "seen by it alone", "for instance"):
        table.add_column(column)
    for name in CHECKS:
        seen = [score for score in scores if name in score.checks]
        alone = [score.name for score in seen if score.checks == [name]]
        taken = [score.seconds[name] for score in scores if name in score.seconds]
        cells = (f"{np.median(taken):.2f}" if taken else "-", str(len(seen)), str(len(alone)))
        table.add_row(name, *cells, ", ".join(alone[:2]))
    console.print(table)


def share(found: Iterable[bool]) -> str:
    listed = list(found)
    return f"{100 * sum(listed) / len(listed):.1f} %" if listed else "-"


def show_alarms(console: Console, alarms: list[Alarm]) -> None:
    runs, false = sum(a.seeds for a in alarms), sum(bool(a.alarms) for a in alarms)
    console.print(
        f"[bold]honest variants[/bold]: {len({a.name for a in alarms})} variants, "
        f"{len(alarms)} with models, {runs} runs; "
        f"false alarms {sum(len(a.alarms) for a in alarms)} in {false}; "
        f"greatest share of a limit used {max(a.limit_used for a in alarms):.0%}"
    )


def show_greatest(console: Console, alarms: list[Alarm]) -> None:
    """Of the specimens as they are, over all models and seeds."""
    kinds = list(rounding.WIDE)
    table = Table(
        title="honest float32's greatest local figure, in rounding units", title_justify="left"
    )
    for column in ("implementation", *kinds):
        table.add_column(column)
    for name in sorted({alarm.name for alarm in alarms if alarm.name.endswith("_plain")}):
        mine = [alarm.greatest for alarm in alarms if alarm.name == name]
        greatest = (max(one[kind] for one in mine) for kind in kinds)
        table.add_row(name.removesuffix("_plain"), *(f"{value:.2f}" for value in greatest))
    table.add_row("allowed", *(f"{rounding.WIDE[kind].most:.0f}" for kind in kinds))
    console.print(table)


def show_power(console: Console, found: list[Power]) -> None:
    table = Table(title="detection power: smallest relative change caught", title_justify="left")
    for column in ("changed", "kind", "median", "worst", "missed of 9"):
        table.add_column(column)
    for row in found:
        table.add_row(row.changed, row.kind, f"{row.median:.2g}", f"{row.worst:.2g}", str(row.missed))
    console.print(table)


class Shelf(NamedTuple):
    """The faults and variants of one device."""

    faults: list[Fault]
    variants: list[variants.Variant]


SHELVES = {"cpu": Shelf(FAULTS, VARIANTS), "cuda": Shelf(faults.ON_CUDA, variants.ON_CUDA)}


def pool(folder: str, device: str, jobs_each: int | None = None) -> ProcessPoolExecutor:
    """A pool of workers whose files go to folder, because they exit without cleaning up."""
    os.environ["TMPDIR"] = folder
    os.environ |= SHARED | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "jax"))}
    n = os.cpu_count() or 1
    n = n if device == "cpu" else min(n, CONTEXTS)
    return ProcessPoolExecutor(
        n,
        multiprocessing.get_context("spawn"),
        initializer=die_with_parent,
        max_tasks_per_child=jobs_each,
    )


def die_with_parent() -> None:
    """End this worker if its parent was killed: it would wait for work for ever and hold gigabytes."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def gather(jobs: list[Future[Any]], words: str, console: Console) -> list[Any]:
    """Results in the order of jobs; their lines are printed as they come."""
    for job in track(as_completed(jobs), words, total=len(jobs), console=console):
        told(job.result(), console)
    return [job.result() for job in jobs]


def told(result: Any, console: Console) -> Any:
    """The result, whose line is printed."""
    if line := result.line():
        console.print(line, highlight=False, markup=False)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/faults"))
    parser.add_argument(
        "--seeds", type=int, default=20, help="seeds per honest variant and model; 0: faults only"
    )
    parser.add_argument("--large", action="store_true", help="ten faults on shape:124M besides")
    parser.add_argument("--only", default="", help="faults and variants whose name contains this")
    parser.add_argument("--device", choices=SHELVES, default="cpu", help="where; each has its own shelf")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= supervisor.SHARE_THE_GPU
    if options.device == "cuda" and ("cuda", "float32") not in find("torch").load().targets():
        console.print("skipped: no CUDA device")
        sys.exit(2)
    shelf = SHELVES[options.device]
    chosen = [fault.name for fault in shelf.faults if options.only in fault.name]
    honest = [
        (variant.name, model, options.seeds, options.device)
        for variant in shelf.variants
        for model in models_of(variant, options.seeds)
        if options.only in variant.name and options.seeds
    ]
    if not chosen and not honest:
        console.print(f"nothing on the shelves has {options.only!r} in its name")
        sys.exit(2)
    # a fault may end its GPU context for whatever comes after it in the process
    jobs_each = None if options.device == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder:
        with pool(folder, options.device, jobs_each) as workers:
            jobs = [workers.submit(score_small, name) for name in chosen]
            scores = gather(jobs, "planted faults", console)
        with pool(folder, options.device) as workers:
            measured = workers.submit(power)  # before the trials, which take much longer
            trials = [workers.submit(try_variant, *job) for job in honest]
            alarms = gather(trials, "honest variants", console)
            powers = measured.result()
    large: list[Score] = []
    if options.large:  # one at a time: each takes gigabytes
        for fault in track(IN_LAYER, "shape:124M", console=console):
            large.append(told(score_large(fault.name), console))
    show_faults(console, f"planted faults on micro, {options.device}", scores)
    show_checks(console, scores)
    if large:
        show_faults(console, "planted faults on shape:124M", large)
    if alarms:
        show_alarms(console, alarms)
        show_greatest(console, alarms)
    else:
        console.print("[bold]honest variants[/bold]: not run")
    show_power(console, powers)
    found = {
        "faults": [s._asdict() for s in scores],
        "large": [s._asdict() for s in large],
        "variants": [a._asdict() for a in alarms],
        "power": [p._asdict() for p in powers],
    }
    atomic.write_text(options.out / "faults.json", json.dumps(found, indent=1) + "\n")
    right = all(s.right for s in [*scores, *large]) and not any(a.alarms for a in alarms)
    least = 70 if options.device == "cpu" else len(shelf.faults)
    honest_enough = not options.seeds or len({a.name for a in alarms}) >= 25
    enough = bool(options.only) or (len(scores) >= least and honest_enough)
    console.print("[green]PASS[/green]" if right and enough else "[bold red]FAIL[/bold red]")
    sys.exit(0 if right and enough else 1)


if __name__ == "__main__":
    main()
