"""Measure memory and time by number of parameters and tokens, and write docs/scale.md:

    python docs/scale.py [SIZE...]

For each size (all four, if none is named), it runs the float64 oracle alone on 16, 64 and 256 tokens,
then `parity golden build` and `parity verify --impl numpy --impl torch` on shape:SIZE. Each runs in a
process of its own, whose memory is watched from here. The tables are made from the files in out/scale.
"""

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from gpt2_parity.contract.architecture import variable_shapes
from gpt2_parity.files import atomic, safetensors_mmap
from gpt2_parity.model import catalogue, synthetic
from gpt2_parity.reference import oracle
from gpt2_parity.report.markdown import table

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out" / "scale"
TOKENS = (16, 64, 256)
JOBS = {
    "golden": ("golden", "build"),
    "verify": ("verify", "--impl", "numpy", "--impl", "torch", "--target", "cpu-float32"),
}
GIB = 2**30
TEXT = """# Memory and time

Written by docs/scale.py, which `nox -s scale` runs; do not edit. Times are of one run on a machine
that may have been busy: look at how they grow. Memory is the peak of what was seen ten times a
second.
"""
ORACLE = """## The float64 oracle

All weights stay in the mapped file; *own memory* is all other memory of the process (RssAnon),
NumPy included. It is bounded by the 8,192 rows of wte that the head converts at a time, or by one
layer's largest matrix in float64, plus the activations of one operation and, at the end, the
logits. It does not grow with n_layer. For many tokens, float64 products take the time; for few,
reading and converting every weight does (from the disk the first time, which for some sizes is the
first row).
"""
COMMANDS = """## The commands

Peak memory of the whole process tree (PSS: a page that several processes map counts once). The
golden of a generated model has three cases, of 1, 48 and 128 tokens; `verify` adds 48 fresh ones,
and runs NumPy and PyTorch in float32, one after the other, on the same mapped weights. The memory
of `golden build` was TensorFlow's, which held copies of the weights when this was measured; its
time was that of 33 evaluations of each case side by side (the truth, and eight draws of the noise
at four precisions).
"""


@contextlib.contextmanager
def watched(measure, every: float = 0.1) -> Iterator[list[float]]:  # type: ignore[no-untyped-def]
    """The greatest value of measure() while the block runs, as the only element of a list."""
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            most[0] = max(most[0], measure())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def anonymous() -> float:
    """Anonymous memory of this process in bytes. Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.partition("RssAnon:")[2].split()[0])


def tree(process: psutil.Process) -> float:
    """PSS in bytes of a process and all its descendants."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += each.memory_full_info().pss
    return float(total)


def evaluate(size: str, n: int) -> dict[str, float]:
    """Run the oracle on n tokens in this process: seconds, and peak of anonymous memory in bytes."""
    folder = catalogue.locate(f"shape:{size}").checkpoint
    params, hparams = safetensors_mmap.read(folder / synthetic.WEIGHTS), synthetic.OFFICIAL[size]
    tokens = np.random.default_rng(0).integers(0, hparams.n_vocab, (1, n)).astype(np.int32)
    with watched(anonymous, 0.01) as most:
        started = time.perf_counter()
        oracle.forward(params, hparams, tokens)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": most[0]}


def command(words: tuple[str, ...]) -> dict[str, float]:
    """Run a parity command: seconds, and peak of its process tree in bytes.

    Raises CalledProcessError if it fails.
    """
    call = [sys.executable, "-c", "from gpt2_parity.cli import main; main()", *words]
    started = time.perf_counter()
    with subprocess.Popen(call) as process, watched(lambda: tree(psutil.Process(process.pid))) as most:
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, call)
    return {"seconds": time.perf_counter() - started, "bytes": most[0]}


def measure(size: str) -> None:
    """Measure one size and write out/scale/SIZE.json, updated after each figure."""
    catalogue.locate(f"shape:{size}")  # its weights are generated before anything is timed
    found = {}

    def keep(name: str, figures: dict[str, float]) -> None:
        found[name] = figures
        atomic.write_text(OUT / f"{size}.json", json.dumps(found, indent=1) + "\n")

    for n in TOKENS:
        call = [sys.executable, __file__, "--oracle", size, str(n)]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        keep(f"oracle {n}", json.loads(done.stdout))
    for name, words in JOBS.items():
        keep(name, command((*words, "--model", f"shape:{size}")))


def write() -> None:
    """Write docs/scale.md from the measurements in out/scale."""
    alone, commands = [], []
    for size, hparams in synthetic.OFFICIAL.items():
        n_params = sum(int(np.prod(shape)) for shape in variable_shapes(hparams).values())
        what = [f"`shape:{size}`", f"{n_params / 1e6:.0f} M", f"{4 * n_params / GIB:.2f} GiB"]
        path = OUT / f"{size}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        for name in [f"oracle {n}" for n in TOKENS] + list(JOBS):
            figures = found.get(name)
            cells = ["not run", ""]
            if figures:
                cells = [f"{figures['seconds']:.1f} s", f"{figures['bytes'] / GIB:.2f} GiB"]
            if name in JOBS:
                commands.append([*what, f"`parity {' '.join(JOBS[name])}`", *cells])
            else:
                alone.append([*what, name.split()[1], *cells])
    size = ["model", "parameters", "weights, mapped"]
    parts = [TEXT, ORACLE, *table([*size, "tokens", "time", "own memory"], alone), ""]
    parts += [COMMANDS, *table([*size, "command", "time", "peak of the process tree"], commands), ""]
    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total / GIB
    made = f"Measured on {date.today()} with Python {platform.python_version()}"
    parts += [f"{made} on {cores} cores and {memory:.0f} GiB.", ""]
    atomic.write_text(ROOT / "docs" / "scale.md", "\n".join(parts))
    print("\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--oracle", action="store_true", help="SIZE N: run the oracle once and print JSON"
    )
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=", ".join(synthetic.OFFICIAL))
    arguments = parser.parse_args()
    if arguments.oracle:
        size, n = arguments.sizes
        print(json.dumps(evaluate(size, int(n))))
        return
    for size in arguments.sizes or synthetic.OFFICIAL:
        measure(size)
    write()


if __name__ == "__main__":
    main()
