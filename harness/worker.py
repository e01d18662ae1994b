"""The process in which one implementation runs: python -m harness.worker JOB.json

It measures and writes what it measured, line by line, into a journal that its parent reads; it
judges nothing. A crash here is that implementation's verdict, and the journal keeps what came before.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import discover, mapped
from harness.checks import CHECKS
from harness.contract import HParams, Target
from harness.golden import Record, tokenizer_of
from harness.subject import Plan, Subject, Wrong

Journal = Callable[..., None]
FRAMEWORKS = ("numpy", "jax", "torch", "tensorflow", "tensorflow-cpu")


def main(job_path: str) -> None:
    """Run a job: {where, name, targets or null, weights, hparams, tokenizer, records, journal}."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    with Path(job["journal"]).open("a", encoding="utf-8") as file:

        def journal(event: str, **data: Any) -> None:
            file.write(json.dumps({"event": event, **data}) + "\n")
            file.flush()

        run(job, journal)


def run(job: dict[str, Any], journal: Journal) -> None:
    """Introduce the implementation, then measure it on each target."""
    try:
        impl = discover.Found(job["name"], job["where"]).load()
        offered = [Target(*target) for target in impl.targets()]
    except BaseException as error:
        journal("broken", message=explain(error))
        raise
    journal("hello", targets=offered, versions=versions())
    hparams = HParams(**job["hparams"])
    params = mapped.read(Path(job["weights"]))
    records = [
        Record(name, mapped.read(Path(path)), hparams.n_layer) for name, path in job["records"].items()
    ]
    tokenizer = tokenizer_of(Path(job["tokenizer"]), hparams)
    decode = tokenizer.decode if tokenizer else str
    wanted = offered if job["targets"] is None else [Target(*target) for target in job["targets"]]
    for target in (target for target in offered if target in wanted):
        journal("begin", target=target)
        measure(impl, target, params, hparams, records, decode, journal)
        journal("end", target=target)


def measure(
    impl: ModuleType,
    target: Target,
    params: Any,
    hparams: HParams,
    records: Sequence[Record],
    decode: Callable[[Sequence[int]], str],
    journal: Journal,
) -> None:
    """Every check on one target. An exception ends the check it happens in and no other."""
    try:
        subject = Subject(impl, target, params, hparams, records, decode)
        plan = subject.plan()
    except Exception as error:
        journal("broken", message=explain(error))
        return
    journal("plan", **plan_as_json(plan))
    for name, check in CHECKS.items():
        try:
            for measurement in check.measure(subject, plan):
                journal("measured", check=name, measurement=measurement)
        except Exception as error:
            journal("error", check=name, message=explain(error))
        journal("checked", check=name)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """What the implementation says about itself; the parent knows the rest of the plan."""
    return {"taps": plan.taps, "generates": plan.generates}


def explain(error: BaseException) -> str:
    """One line: what, and where in the implementation's own code."""
    if isinstance(error, Wrong):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{where}: {text}"[:500]


def versions() -> dict[str, str]:
    """Versions of the frameworks that are installed, by distribution."""
    found = {}
    for name in FRAMEWORKS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1])
