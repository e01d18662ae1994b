"""The reports in docs/gallery/, made by real runs: `nox -s gallery`.

What each is to show is planted here; the exit code of each run is known beforehand and demanded.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import named, write
from faults.edits import NUMPY

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
CRASH = """

whole = forward


def forward(model, tokens, past=None, tap=None):
    if past is not None:  # the first decode through the cache is its last
        import os

        os.kill(os.getpid(), 11)
    return whole(model, tokens, past, tap)
"""
# page -> implementations, exit code
CASES = {
    "clean": (["numpy", "torch", "jax", "tensorflow"], 0),
    "planted_fault": (["erf_gelu.py", "numpy"], 1),
    "precision_mismatch": (["bfloat16_inputs.py", "numpy"], 1),
    "crashed_backend": (["crashes_in_decode.py", "numpy"], 1),
}


def plant(folder: Path) -> None:
    """The implementations that go wrong, as files that a user might have written."""
    for name in ("erf_gelu", "bfloat16_inputs"):
        write(named(name), folder)
    crashes = NUMPY.read_text(encoding="utf-8") + CRASH
    (folder / "crashes_in_decode.py").write_text(crashes, encoding="utf-8")


def main() -> None:
    GALLERY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(folder)
        for page, (impls, code) in CASES.items():
            chosen = [word for impl in impls for word in ("--impl", impl)]
            rest = ["--target", "cpu-float32", "--seed", "7", "--out", page]
            command = [sys.executable, "-c", "from harness.cli import main; main()", "verify"]
            done = subprocess.run([*command, *chosen, *rest], cwd=folder, check=False)
            if done.returncode != code:
                sys.exit(f"{page}: exit code {done.returncode}, expected {code}; nothing was copied")
            shutil.copyfile(folder / page / "report.html", GALLERY / f"{page}.html")
            print(f"written: docs/gallery/{page}.html")


if __name__ == "__main__":
    main()
