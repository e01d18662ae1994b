"""Run the command as users do, and write implementations for tests."""

import subprocess
import sys
import textwrap
from pathlib import Path

from gpt2_parity.implementation.discovery import IMPLS

SPECIMEN = (IMPLS / "gpt2_numpy.py").read_text(encoding="utf-8")


def parity(*arguments, **options):
    """Run the command; returns the finished process with its text."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "gpt2_parity", *map(str, arguments)]


def interruptible(*arguments) -> list[str]:
    """The same as a command that Ctrl-C ends: a shell's background job, and so a test, may ignore it.

    Not by preexec_fn: it forks, which warns in a process that has imported JAX.
    """
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from gpt2_parity.cli import main; main()"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


def module(folder: Path, name: str, extra: str) -> Path:
    """The NumPy specimen with code added at its end, as a file of its own."""
    path = folder / f"{name}.py"
    path.write_text(SPECIMEN + "\n\n" + textwrap.dedent(extra), encoding="utf-8")
    return path
