# /// script
# dependencies = ["nox>=2025.5.1"]
# ///
"""The project's doors. `nox -l` lists them; words after `--` are passed on."""

import os

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"  # uv ignores pip's find-links
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests", "parity"]

FRAMEWORKS = ("jax", "torch", "tensorflow")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def install(session: nox.Session, *groups: str, extras: tuple[str, ...] = FRAMEWORKS) -> None:
    """The project in editable form, with pinned frameworks and dependency groups."""
    wanted = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)
    project = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", project, *wanted)


@nox.session
def parity(session: nox.Session) -> None:
    """Verify all implementations on micro; `nox -s parity -- --impl numpy` for some of them."""
    install(session)
    session.run("parity", "verify", *(session.posargs or ["--out", "out"]), env=QUIET)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, in parallel."""
    install(session, "test")
    workers = ["-n", str(os.cpu_count() or 1)]
    # one thread each: OpenBLAS threads that spin collapse where processes outnumber cores
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    session.run("pytest", *workers, *session.posargs, env=QUIET | threads)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and types."""
    install(session, "lint", extras=())
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Prove the verifier: planted faults and honest variants; `-- --seeds 20 --large` for all of it."""
    install(session, "test")
    session.run("python", "tests/score.py", *(session.posargs or ["--seeds", "2"]), env=QUIET)


@nox.session
def golden(session: nox.Session) -> None:
    """Check the golden records against the oracle; `-- build` makes them anew."""
    install(session)
    session.run("parity", "golden", *(session.posargs or ["verify"]), env=QUIET)


@nox.session(default=False)
def micro(session: nox.Session) -> None:
    """Train the micro checkpoint anew (about 15 minutes), then remake its golden records."""
    install(session, "micro")
    session.run("python", "golden/make_micro.py", *session.posargs, env=QUIET)
    session.run("parity", "golden", "build", env=QUIET)
