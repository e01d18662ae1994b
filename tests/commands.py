"""Run the command as users do, and write implementations for tests."""

import io
import signal
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from gpt2_parity import cli
from gpt2_parity.implementation.discovery import IMPLS

SPECIMEN = (IMPLS / "gpt2_numpy.py").read_text(encoding="utf-8")


def parity(*arguments, **options):
    """Run the command; returns the finished process with its text."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


def here(*arguments, cwd="."):
    """The same without a process for the command, for what it prints and writes: that costs no start."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["parity", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__package__", None)  # not: python -m pytest
        patch.setattr(sys, "path", [*sys.path])  # the working folder is added to it
        patch.setattr(signal, "signal", lambda *_: None)
        patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return subprocess.CompletedProcess(arguments, ended.value.code or 0, out.getvalue(), err.getvalue())


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
