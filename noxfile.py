# /// script
# dependencies = ["nox>=2025.5.1"]
# ///
"""The project's commands. `nox -l` lists them; arguments after `--` are passed on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"  # uv ignores pip's find-links
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests", "parity"]

FRAMEWORKS = ("jax", "torch", "tensorflow")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def install(session: nox.Session, *groups: str, extras: tuple[str, ...] = FRAMEWORKS) -> None:
    """Install the project in editable form, with figures, pinned frameworks and dependency groups."""
    wanted = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)
    project = f".[{','.join(('report', *extras))}]"
    session.install("-c", "constraints.txt", "-e", project, *wanted)


def kernels(session: nox.Session, python: Path | None = None) -> dict[str, str]:
    """QUIET, plus a setting for PyTorch if the virtual machine announces AMX but cannot run it."""
    probe = "import torch; x = torch.ones(64, 64).bfloat16(); x @ x"
    command = [python or Path(session.bin, "python"), "-c", probe]
    ended = subprocess.run(command, capture_output=True, check=False)
    if ended.returncode != -signal.SIGILL:
        return QUIET
    session.log("this machine announces AMX but cannot run it: bfloat16 is computed without it")
    return QUIET | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@nox.session
def parity(session: nox.Session) -> None:
    """Verify all implementations on micro; `nox -s parity -- --impl numpy` for some of them."""
    install(session)
    words = session.posargs or ["--out", "out", "--search", "3"]  # eight targets: 10 s each is much
    session.run("parity", "verify", *words, env=kernels(session))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, in parallel."""
    install(session, "test")
    # one more than cores, because many tests wait for a process
    workers = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "loadgroup"]
    # one thread each: spinning OpenBLAS threads are very slow if processes outnumber cores
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    session.run("pytest", *workers, *session.posargs, env=kernels(session) | threads)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and types."""
    install(session, "lint", extras=())
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


PEERS = ("transformers",)  # other people's implementations, timed beside ours; each is an extra


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Time implementations and peers side by side; `-- --quick` aims at two minutes."""
    install(session, extras=(*FRAMEWORKS, *PEERS))
    arguments = session.posargs
    if not any(word.startswith("--impl") for word in arguments):
        arguments = [*(f"--impl={name}" for name in (*PEERS, "numpy", "torch", "jax")), *arguments]
    if not any(word.startswith("--out") for word in arguments):
        arguments = ["--out=out", *arguments]
    session.run("parity", "bench", *arguments, env=QUIET)


@nox.session(default=False)
def asv(session: nox.Session) -> None:
    """Track speed from commit to commit; arguments after -- go to asv (default: run HEAD^!)."""
    wanted = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "asv")
    session.install("-c", "constraints.txt", *wanted)
    session.run("asv", "machine", "--yes")  # without a terminal asv cannot ask, and exits 1
    session.run("asv", *(session.posargs or ["run", "HEAD^!"]), env=QUIET)


@nox.session(default=False, venv_backend="none")
def faults(session: nox.Session) -> None:
    """Prove the verifier with planted faults and honest variants; `-- --seeds 20 --large` for all."""
    # it needs what the tests need
    session.run(sys.executable, "-m", "nox", "-s", "tests", "--install-only", external=True)
    python = Path(".nox", "tests", "bin", "python")
    words = session.posargs or ["--seeds", "2"]
    session.run(str(python), "tests/score.py", *words, env=kernels(session, python), external=True)


@nox.session(default=False, venv_backend="none")
def conditions(session: nox.Session) -> None:
    """Score the search by faults that need a condition; `-- --count 2000 --seeds 4 --budget 10,60`."""
    session.run(sys.executable, "-m", "nox", "-s", "tests", "--install-only", external=True)
    python = Path(".nox", "tests", "bin", "python")
    words = session.posargs or ["--count", "2000", "--seeds", "4"]
    session.run(str(python), "tests/conditions.py", *words, external=True)


@nox.session(default=False)
def gallery(session: nox.Session) -> None:
    """Make example reports in out/gallery by real runs; `-- --picture` for the README's picture."""
    install(session)
    session.run("python", "tests/gallery.py", *session.posargs, env=QUIET)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Check the pages of `nox -s gallery` in headless Chromium; skipped without Chromium."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        session.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    install(session, "browser", extras=())
    pages = session.posargs or sorted(map(str, Path("out/gallery").glob("*.html")))
    if not pages:
        session.error("no pages in out/gallery; make them with: nox -s gallery")
    session.run("python", "tests/browser.py", *pages, "--shots", "out/browser")


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Compare the golden with other people's GPT-2: transformers and gpt-2-simple."""
    install(session, "peers", extras=("torch", "tensorflow"))
    session.install("--no-deps", "gpt-2-simple==0.8.1")  # its model needs none of its dependencies
    session.run("python", "tests/peers.py", *session.posargs, env=QUIET)


@nox.session
def golden(session: nox.Session) -> None:
    """Check the golden records against the oracle; `-- build` remakes them."""
    install(session)
    session.run("parity", "golden", *(session.posargs or ["verify"]), env=QUIET)


@nox.session(default=False)
def engines(session: nox.Session) -> None:
    """Install and verify other people's engines, and write docs/engines.md; `-- NAME...` for some."""
    install(session, extras=("tensorflow",))  # makes the golden of shape:124M
    session.run("python", "docs/engines.py", "--install", *session.posargs, env=QUIET)


@nox.session(default=False)
def cost(session: nox.Session) -> None:
    """Measure what a verification costs, into docs/cost.md; `-- NAME...` for some implementations."""
    install(session, extras=(*FRAMEWORKS, *PEERS))
    session.run("python", "docs/cost.py", *session.posargs, env=kernels(session))


@nox.session(default=False)
def scale(session: nox.Session) -> None:
    """Measure memory and time by model size, into docs/scale.md; `-- 124M` for one size."""
    install(session, extras=("torch", "tensorflow"))
    session.run("python", "docs/scale.py", *session.posargs, env=kernels(session))


@nox.session(default=False)
def micro(session: nox.Session) -> None:
    """Train the micro checkpoint again (about 15 minutes), then remake its golden records."""
    install(session, "micro")
    session.run("python", "golden/make_micro.py", *session.posargs, env=QUIET)
    session.run("parity", "golden", "build", env=QUIET)
