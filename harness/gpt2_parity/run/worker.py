"""One implementation on one target: python -m gpt2_parity.run.worker JOB.json LIFELINE

It writes each measurement as a line of a journal, which its parent reads; it judges nothing. If it
crashes, the implementation fails, and the journal keeps the earlier measurements.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.checks.registry import CAPABILITIES, beginning_with
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.plan import Plan
from gpt2_parity.contract.rows import plain
from gpt2_parity.implementation import discovery, signatures
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.implementation.without_cache import with_cache
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.run import child, host
from gpt2_parity.run.child import explain
from gpt2_parity.run.preparation import Prepared

Journal = Callable[..., None]
FRAMEWORKS = ("numpy", "jax", "torch", "tensorflow", "tensorflow-cpu")
ENGINES = (
    *("transformers", "ctranslate2", "llama-cpp-python", "onnxruntime", "tinygrad", "keras-hub"),
    *("mlx", "openvino", "torchao", "transformer-lens", "gguf", "onnx", "keras"),
)


def main(job_path: str, lifeline: str) -> None:
    """Run a job: a JSON file with the keys that runner.Examination.job and Prepared.job write."""
    job = child.begin(job_path, lifeline)
    requests = child.requests()
    with Path(job["journal"]).open("a", encoding="utf-8") as file:
        write = child.writer(file)

        def journal(event: str, **data: Any) -> None:
            write({"event": event, **data})

        run(job, requests, journal)


def run(job: dict[str, Any], requests: Iterator[str], journal: Journal) -> None:
    """Load the implementation and report what it offers, then measure it on the target it is sent.

    requests: at most one line of JSON, a target and the checks that are done already.
    """
    try:
        impl = discovery.Found(**job["implementation"]).load()
        offered = signatures.check(impl, CAPABILITIES)
        impl = with_cache(impl)
    except BaseException as error:
        journal("broken", message=explain(error))
        raise
    journal("hello", **hello(offered))
    if not (line := next(requests, "")):
        return
    request = json.loads(line)
    target = Target(*request["target"])
    journal("begin", target=target, host=host_of(target))
    prepared = Prepared.of(job)
    tokenizer = tokenizer_of(Path(job["tokenizer"]), prepared.hparams)
    decode = tokenizer.decode if tokenizer else str
    load = functools.partial(prepared.load, impl, target, decode)
    try:
        if measure(load, target, journal, request["done"], job["first"], job["only"]):
            journal("end", target=target)
    except CannotJudge as error:
        journal("cannot_judge", message=str(error))


def measure(
    load: Callable[[], Loaded],
    target: Target,
    journal: Journal,
    done: Collection[str] = (),
    first: Sequence[str] = (),
    only: Sequence[str] = (),
) -> bool:
    """Run every check on one target, except those that are done. An exception ends only its check.

    first: checks that run before the others. only: the checks to make; empty: all. Returns False,
    without running the remaining checks, if an exception leaves the implementation so broken that every
    call raises: their failures would blame the wrong mechanism. Raises CannotJudge if the truth cannot
    be read or made.
    """
    started = time.perf_counter()
    try:
        loaded = load()
        plan = loaded.plan(CAPABILITIES)._replace(only=tuple(only))
    except CannotJudge:  # a full disk, for example: that says nothing about the implementation
        raise
    except (Exception, SystemExit) as error:
        journal("broken", target=target, message=explain(error))
        return True
    works = bool(done)  # whether anything was ever measured
    journal("plan", target=target, **plan_as_json(plan), seconds=since(started))
    for name, check in beginning_with(first).items():
        if name in done or not plan.makes(name):
            continue
        journal("checking", target=target, check=name)
        started = time.perf_counter()
        try:
            with np.errstate(all="ignore"):  # an implementation may have set NumPy to raise
                for found in check.measure(loaded, plan):
                    journal("measured", target=target, check=name, measurement=plain(found._asdict()))
                    works = True
        except CannotJudge:
            raise
        except (Exception, SystemExit) as error:
            journal("error", target=target, check=name, message=explain(error))
            if works and (reason := loaded.broken()):
                journal("lost", target=target, message=reason, since=name)
                return False
        journal("checked", target=target, check=name, seconds=since(started))
    return True


def since(started: float) -> float:
    """Seconds since time.perf_counter() was started, to a millisecond."""
    return round(time.perf_counter() - started, 3)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The implementation's taps and capabilities; the parent knows the rest of the plan."""
    offers = [capability.name for capability in plan.offers]
    return {"taps": plan.taps, "offers": offers, "cache": plan.cache}


def hello(offered: Sequence[Target]) -> dict[str, Any]:
    """What an implementation offers, on what it runs, and the devices that are not to be seen here."""
    unseen = host.unseen(target.device for target in offered)
    return {"targets": offered, "versions": versions(), "unseen": unseen}


def host_of(target: Target) -> dict[str, Any]:
    """The machine that a target is examined on, and the versions of the frameworks there."""
    return {**host.facts(target.device), "versions": versions()}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the installed frameworks and engines, by distribution."""
    installed = {}
    for name in FRAMEWORKS + ENGINES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


if __name__ == "__main__":
    main(*sys.argv[1:])
