"""Make example reports in out/gallery by real runs: python tests/gallery.py [--picture]

The faults that each report shows are planted here, and each run must exit with the expected code.
With --picture, headless Chromium takes the README's picture again.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import named, write
from faults.edits import NUMPY

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "out" / "gallery"
PICTURE = ROOT / "docs" / "images" / "planted_fault.png"
CRASH = """

whole = forward


def forward(model, tokens, past=None, tap=None):
    if past is not None:  # the first decode through the cache is its last
        import os

        os.kill(os.getpid(), 11)
    return whole(model, tokens, past, tap)
"""
ERF_GELU = """

erf = np.vectorize(math.erf, otypes=[float])


def gelu(x):
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)
"""
# page -> implementations, exit code
CASES = {
    "clean": (["numpy", "torch", "jax", "tensorflow"], 0),
    "planted_fault": (["erf_gelu.py", "numpy"], 1),
    "precision_mismatch": (["bfloat16_inputs.py", "numpy"], 1),
    "crashed_backend": (["crashes_in_decode.py", "numpy"], 1),
    "mine": (["mine.py"], 1),  # the README's picture
}


def plant(folder: Path) -> None:
    """Write the faulty implementations, as files that a user might have written."""
    for name in ("erf_gelu", "bfloat16_inputs"):
        write(named(name), folder)
    specimen = NUMPY.read_text(encoding="utf-8")
    (folder / "mine.py").write_text(specimen + ERF_GELU, encoding="utf-8")
    (folder / "crashes_in_decode.py").write_text(specimen + CRASH, encoding="utf-8")


def draw(page: Path) -> None:
    """The head of a page as the README's picture. Needs chromium (Debian's package of that name)."""
    window = ["--hide-scrollbars", "--window-size=1200,820"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *window]
    subprocess.run([*command, f"--screenshot={PICTURE}", page.as_uri()], check=True)
    print(f"written: {PICTURE.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--picture", action="store_true", help="take the README's picture anew")
    picture = parser.parse_args().picture
    GALLERY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(folder)
        for page, (impls, code) in CASES.items():
            chosen = [word for impl in impls for word in ("--impl", impl)]
            rest = ["--target", "cpu-float32", "--seed", "7", "--out", page]
            command = [sys.executable, "-c", "from gpt2_parity.cli import main; main()", "verify"]
            done = subprocess.run([*command, *chosen, *rest], cwd=folder, check=False)
            if done.returncode != code:
                sys.exit(f"{page}: exit code {done.returncode}, expected {code}; nothing was copied")
            shutil.copyfile(folder / page / "report.html", GALLERY / f"{page}.html")
            print(f"written: out/gallery/{page}.html")
    if picture:
        draw(GALLERY / "mine.html")


if __name__ == "__main__":
    main()
