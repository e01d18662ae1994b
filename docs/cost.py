"""Measure what a verification costs on shape:124M, and write docs/cost.md:

    python docs/cost.py [IMPLEMENTATION...]

Each implementation runs in a process of its own, on 128 tokens whose golden values are already computed.
In each round its tapped forward pass, the float64 oracle and the checks in CHECKED take turns; ratios
are taken within a round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gpt2_parity.bench.setup import TUNED
from gpt2_parity.checks.registry import CAPABILITIES, CHECKS
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.files import atomic, safetensors_mmap
from gpt2_parity.implementation import discovery
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model import catalogue, checkpoint
from gpt2_parity.reference import oracle, records
from gpt2_parity.report.markdown import table

OUT = Path(__file__).with_suffix(".md")
MEASURED = ("numpy", "torch", "jax", "tensorflow", "transformers")
MODEL = "shape:124M"
TOKENS, ROUNDS = 128, 7
REST = 0.15  # seconds of rest before each timing: idle BLAS threads spin for a while
CHECKED = ("logits", "activations", "local", "precision")
LISTED = ", ".join(CHECKED)
GIB = 2**30
TEXT = f"""# What a verification costs

Written by docs/cost.py, which `nox -s cost` runs; do not edit. The checks {LISTED} on {MODEL} with
{TOKENS} tokens, golden at hand, float32 on a CPU. Seconds are medians of {ROUNDS} rounds. In each
round the implementation's tapped forward pass, the float64 oracle and the checks take turns, each
twice in a row; the second is timed. *share* is the time of the checks divided by that of four
tapped passes and one of the oracle, the median of the rounds.

The checks include two passes of the implementation, one with taps and one without, and one of the
oracle, because *local* recomputes every operation. The rest is mostly the rounding bound: a second
product, in float32, for every one that is judged.
"""
MEMORY = """
Memory is the peak in GiB (VmHWM) after the framework is imported, while the model is loaded and one
tapped pass made, and while the checks run once. The last columns give the greatest of these as a
multiple of the weights ({weights:.2f} GiB), and the part of it that came after the import. An
implementation that keeps the arrays given to load() has them mapped; one that copies them holds
both while load() runs. The checks map one weight at a time in each thread.
"""


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the second of two runs in a row: the first may have to allocate its memory again."""
    work()
    time.sleep(REST)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak() -> float:
    """The peak resident memory in bytes since the last call. Linux only."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])


def measure(name: str, record: str, weights: str, hparams: HParams) -> dict[str, object]:
    """Measure one implementation in this process, as in a worker: medians, share, and memory peaks."""
    case = records.Record("fresh", safetensors_mmap.MappedArrays(Path(record)), hparams.n_layer)
    module = discovery.find(name).load()
    module.targets()  # some implementations import their framework only here
    peaks = [peak()]
    loaded = Loaded.load(module, Target("cpu", "float32"), Path(weights), hparams, [case])
    plan = loaded.plan(CAPABILITIES)
    loaded.tapped(case.tokens)
    peaks.append(peak())

    def verify() -> None:
        anew = Loaded(module, loaded.model, loaded.target, loaded.params, hparams, [case])
        for check in CHECKED:
            list(CHECKS[check].measure(anew, plan))

    def alone() -> None:
        oracle.forward(loaded.params, hparams, case.tokens)

    verify()
    peaks.append(peak())  # before anything is repeated: freed memory is not always returned
    work = (lambda: loaded.tapped(case.tokens), alone, verify)
    rounds = np.array([[seconds(one) for one in work] for _ in range(ROUNDS)])
    tapped, exact, checks = rounds.T
    return {
        "tapped": float(np.median(tapped)),
        "oracle": float(np.median(exact)),
        "checks": float(np.median(checks)),
        "share": float(np.median(checks / (4 * tapped + exact))),
        "peaks": peaks,
        "weights": float(sum(w.nbytes for w in loaded.params.values())),
    }


def in_a_process(**job: Any) -> dict[str, Any]:
    call = [sys.executable, __file__, "--job", json.dumps(job)]
    kept = {variable: value for variable, value in os.environ.items() if variable not in TUNED}
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=kept)
    return json.loads(done.stdout)


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page docs/cost.md from the measurements of each implementation."""
    timed = ("tapped", "oracle", "checks", "share")
    times = [[name, *(f"{one[figure]:.2f}" for figure in timed)] for name, one in found.items()]
    memory = []
    for name, one in found.items():
        greatest, imported = max(one["peaks"]), one["peaks"][0]
        of_weights = [size / one["weights"] for size in (greatest, greatest - imported)]
        peaks = [f"{size / GIB:.2f}" for size in one["peaks"]]
        memory.append([name, *peaks, *(f"{times:.1f}x" for times in of_weights)])
    parts = [TEXT, *table(["implementation", "tapped pass", "oracle", "the checks", "share"], times)]
    parts += [MEMORY.format(weights=next(iter(found.values()))["weights"] / GIB)]
    columns = ["imported", "loaded, tapped", "checked", "of the weights", "after the import"]
    parts += table(["implementation", *columns], memory)
    versions = f"Python {platform.python_version()} and NumPy {np.__version__}"
    made = f"Measured on {date.today()} with {versions} on {psutil.cpu_count()} cores."
    return "\n".join([*parts, "", made, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--job", type=json.loads, help="measure in this process and print JSON")
    parser.add_argument("names", nargs="*", metavar="IMPLEMENTATION", help=", ".join(MEASURED))
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(**arguments.job | {"hparams": HParams(*arguments.job["hparams"])})))
        return
    known = checkpoint.load(catalogue.locate(MODEL).checkpoint)
    tokens = np.random.default_rng(0).integers(0, known.hparams.n_vocab, (1, TOKENS)).astype(np.int32)
    record = records.make_record(records.Case("fresh", tokens, 0), known.params, known.hparams)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "record.safetensors")
        safetensors_mmap.write(path, record.arrays)
        job = {"record": str(path), "weights": str(known.weights), "hparams": known.hparams}
        found = {name: in_a_process(name=name, **job) for name in arguments.names or MEASURED}
    atomic.write_text(OUT, page(found))
    print(OUT.read_text())


if __name__ == "__main__":
    main()
