"""Verify engines and write docs/engines.md: python docs/engines.py [--install] [NAME...]

`parity verify` runs each engine (all, if none is named) on micro and on shape:124M, into
out/engines/NAME-MODEL. With --install its extra is installed first. The table is then made from the
files in out/engines. An engine that cannot be installed or imported is listed as untested, with its
error.
"""

import argparse
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.files import atomic
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue
from gpt2_parity.reference import golden
from gpt2_parity.report import results
from gpt2_parity.report.markdown import escape, table

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parent.parent
MODELS = ("micro", "shape:124M")
WORDS = "error.txt"  # written instead of results: the last line of the error
VARIANTS = {  # engines that need the extra of another
    "ctranslate2_int8": "ctranslate2",
    "onnxruntime_int8": "onnxruntime",
    "openvino_float32": "openvino",
    "torch_compile": "torch",
    "transformer_lens_unprocessed": "transformer_lens",
}
DISTRIBUTIONS = {  # others: the engine's name
    "llama_cpp": "llama-cpp-python",
    "keras_hub": "keras-hub",
    "transformer_lens": "transformer-lens",
}
VERDICTS = {0: "passes (0)", 1: "disagrees (1)", 2: "not judged (2)"}
HEADER = [
    *("engine", "version", "model", "verdict (exit code)", "worst share of a limit", "found"),
    "not localised",
]
TEXT = """# Engines through the verification

Written by docs/engines.py, which `nox -s engines` runs; do not edit. Every engine got the same float32
weights from the same checkpoint and was judged as any implementation is (`parity verify --impl NAME`),
declared `cpu-float32`.

| column | meaning |
| --- | --- |
| worst share of a limit | the measurement that came nearest to its limit, or went furthest beyond it |
| not localised | operations whose result the engine does not show: no error can be blamed on them |

A black box that is wrong is diagnosed as a whole, by evaluating GPT-2 with one known mistake in
every layer.

| why an engine disagrees | engine |
| --- | --- |
| bfloat16 where the processor has it, unless `INFERENCE_PRECISION_HINT` is `f32` | `openvino` |
| weights in int8 are other weights | `torchao` |
| weights and inputs of products are in int8, with one scale for each token | `ctranslate2_int8` |
| the same with one scale for all: rows and later tokens change each other | `onnxruntime_int8` |
| weights are folded and centred; the probabilities are the same | `transformer_lens` |
| GELU is looked up in a float16 table | `llama_cpp` |
"""


def place(name: str, model: str) -> Path:
    return ROOT / "out" / "engines" / f"{name}-{model.removeprefix('shape:')}"


def install(name: str) -> str:
    """Install an engine's extra. Returns the last line of the error, or "" if it succeeded."""
    extra = VARIANTS.get(name, name).replace("_", "-")
    wanted = ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{extra}]"]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    errors = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
    return (errors or [f"pip exited with {done.returncode}"])[-1] if done.returncode else ""


def parity(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the parity command in a process of its own and capture its output."""
    command = [sys.executable, "-c", "from gpt2_parity.cli import main; main()", *words]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def prepare(model: str) -> None:
    """Make the golden records of a model if they are missing or stale."""
    try:
        golden.read(catalogue.locate(model))
    except CannotJudge:
        print(parity("golden", "build", "--model", model).stdout, flush=True)


def verify(name: str, model: str) -> None:
    """Run parity verify; if it writes no results, save the last line of its output."""
    out = place(name, model)
    options = ["--impl", name, "--model", model, "--target", "cpu-float32", "--out", str(out)]
    done = parity("verify", *options)
    print(done.stdout, flush=True)
    if not (out / results.NAME).is_file():
        excuse(name, model, (done.stdout.strip().splitlines() or ["no output"])[-1])


def excuse(name: str, model: str, reason: str) -> None:
    """Save the reason why there are no results, and delete those of an earlier run."""
    out = place(name, model)
    out.mkdir(parents=True, exist_ok=True)
    for file in results.FILES:
        (out / file).unlink(missing_ok=True)
    (out / WORDS).write_text(reason, encoding="utf-8")


def line(name: str, model: str) -> list[str]:
    """One row of the table."""
    out = place(name, model)
    if not (out / results.NAME).is_file():
        reason = (out / WORDS).read_text(encoding="utf-8") if (out / WORDS).is_file() else "not run"
        return [f"`{name}`", "", model, "untested", "", escape(reason), ""]
    frame = results.read(out)
    refused = frame[(frame.check == "load") & frame.detail.str.match("ImportError|ModuleNotFoundError")]
    if len(refused):
        return [f"`{name}`", "", model, "untested", "", escape(refused.detail.iloc[0]), ""]
    package = VARIANTS.get(name, name)
    version = frame.attrs["versions"].get(DISTRIBUTIONS.get(package, package), "")
    verdict = VERDICTS[exit_code(results.load(out).rows)]
    silent = int((frame[frame.check == "activations"].verdict == "unlocalised").sum())
    hidden = f"all {silent} operations" if silent else "nothing"
    return [f"`{name}`", version, model, verdict, worst(frame), escape(found(frame)), hidden]


def worst(frame: "pd.DataFrame") -> str:
    """The greatest share of a limit that any measurement used, and the name of that measurement."""
    if frame.ratio.notna().sum() == 0:
        return ""
    row = frame.loc[frame.ratio.idxmax()]
    share = f"{row.ratio:.0%}" if row.ratio < 10 else f"{row.ratio:.2g} times"
    where = ", ".join(part for part in (row.case, row.scope, row.metric) if part)
    return f"{share} ({escape(f'{row.check}: {where}')})"


def found(frame: "pd.DataFrame") -> str:
    """What failed, where and why; for a pass, the number of measurements."""
    failed = frame[frame.verdict == "fail"]
    if failed.empty:
        return f"nothing wrong in {(frame.verdict == 'pass').sum()} measurements"
    counts = failed.groupby("check", sort=False).size()
    checks = ", ".join(f"{check} ({count})" for check, count in counts.items())
    explained = failed[failed.mistake != ""]
    shown = (failed if explained.empty else explained).sort_values("ratio", ascending=False).iloc[0]
    return f"fails in {checks}. At worst, {shown.blame}: {shown.diagnosis or shown.detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="install each engine's extra first")
    parser.add_argument("names", nargs="*", help="engines; all, if none is named")
    arguments = parser.parse_args()
    for model in MODELS:
        prepare(model)
    for name in arguments.names or discovery.engines():
        error = install(name) if arguments.install else ""
        for model in MODELS:
            if error:
                excuse(name, model, error)
            else:
                verify(name, model)
    write()


def write() -> None:
    """Write docs/engines.md from the results of the runs."""
    lines = [line(name, model) for name in discovery.engines() for model in MODELS]
    machine = f"{platform.system()} {platform.machine()}"
    made = f"Measured on {date.today()} with Python {platform.python_version()} on {machine}."
    text = "\n".join([TEXT, *table(HEADER, lines), "", made, ""])
    atomic.write_text(ROOT / "docs" / "engines.md", text)
    print(text)


if __name__ == "__main__":
    main()
