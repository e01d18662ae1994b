"""The process in which one implementation runs: python -m gpt2_parity.run.worker JOB.json LIFELINE

It writes each measurement as a line of a journal, which its parent reads; it judges nothing. If it
crashes, the implementation fails, and the journal keeps the earlier measurements.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import Plan
from gpt2_parity.contract.rows import plain
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation import discovery, signatures
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.reference.records import Record
from gpt2_parity.run import child
from gpt2_parity.run.child import explain

Journal = Callable[..., None]
FRAMEWORKS = ("numpy", "jax", "torch", "tensorflow", "tensorflow-cpu")
ENGINES = (
    *("transformers", "ctranslate2", "llama-cpp-python", "onnxruntime", "tinygrad", "keras-hub"),
    *("gguf", "onnx", "keras"),
)


def main(job_path: str, lifeline: str) -> None:
    """Run a job: a JSON file with the keys that runner.examine and preparation.prepare write."""
    job = child.begin(job_path, lifeline)
    with Path(job["journal"]).open("a", encoding="utf-8") as file:
        write = child.writer(file)

        def journal(event: str, **data: Any) -> None:
            write({"event": event, **data})

        run(job, journal)


def run(job: dict[str, Any], journal: Journal) -> None:
    """Load the implementation and report what it offers, then measure it on each target."""
    try:
        impl = discovery.Found(**job["implementation"]).load()
        offered = signatures.check(impl, CAPABILITIES)
    except BaseException as error:
        journal("broken", message=explain(error))
        raise
    journal("hello", targets=offered, versions=versions())
    if job["require"] and job["require"] not in {target.device for target in offered}:
        return  # the parent reports it
    hparams = HParams(**job["hparams"])
    weights = Path(job["weights"])
    records = [
        Record(name, safetensors_mmap.MappedArrays(Path(path)), hparams.n_layer)
        for name, path in job["records"].items()
    ]
    tokenizer = tokenizer_of(Path(job["tokenizer"]), hparams)
    decode = tokenizer.decode if tokenizer else str
    wanted = offered if job["targets"] is None else [Target(*target) for target in job["targets"]]
    for target in (target for target in offered if target in wanted):
        journal("begin", target=target)
        done = job["resume"]["checks"] if job["resume"]["target"] == list(target) else ()
        if not measure(impl, target, weights, hparams, records, decode, journal, done):
            return  # the other targets get a new process
        journal("end", target=target)


def measure(
    impl: Any,
    target: Target,
    weights: Path,
    hparams: HParams,
    records: Sequence[Record],
    decode: Callable[[Sequence[int]], str],
    journal: Journal,
    done: Collection[str] = (),
) -> bool:
    """Run every check on one target, except those that are done. An exception ends only its check.

    Returns False, without running the remaining checks, if an exception leaves the implementation so
    broken that every call raises: their failures would blame the wrong mechanism.
    """
    try:
        loaded = Loaded.load(impl, target, weights, hparams, records, decode)
        plan = loaded.plan(CAPABILITIES)
    except (Exception, SystemExit) as error:
        journal("broken", message=explain(error))
        return True
    works = bool(done)  # whether anything was ever measured
    journal("plan", **plan_as_json(plan))
    for name, check in CHECKS.items():
        if name in done:
            continue
        journal("checking", check=name)
        try:
            with np.errstate(all="ignore"):  # an implementation may have set NumPy to raise
                for measurement in check.measure(loaded, plan):
                    journal("measured", check=name, measurement=plain(measurement._asdict()))
                    works = True
        except (Exception, SystemExit) as error:
            journal("error", check=name, message=explain(error))
            if works and (reason := loaded.broken()):
                journal("lost", target=target, message=reason, since=name)
                return False
        journal("checked", check=name)
    return True


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The implementation's taps and capabilities; the parent knows the rest of the plan."""
    return {"taps": plan.taps, "offers": [capability.name for capability in plan.offers]}


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
