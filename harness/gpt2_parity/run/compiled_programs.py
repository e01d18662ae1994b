"""Workers that verify keep the programs that compilers make, so that the next run need not compile them.

XLA looks a program up by its operations, its compiler flags and its own version, never by the name of a
file or function: an edited implementation cannot be given an old program. An entry that XLA cannot read
is compiled again. PyTorch's compiler and Triton keep theirs by themselves, in folders of their own.

Benchmarks do without, because they time what users start with.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from gpt2_parity.model import checkpoint

MOST = 2**29  # bytes that XLA keeps; it deletes what was not used for the longest time
SAYS_WHAT_IT_CAN = ("model name", "flags", "CPU implementer", "CPU part", "Features")
DRIVER = Path("/dev/nvidiactl")  # exists where a CUDA device can be used


def environment() -> dict[str, str]:
    """Settings for the environment of a worker, which the caller's own replace."""
    settings = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the limit of size would delete what is theirs
        settings |= jax_cache(checkpoint.home().absolute() / "compiled" / machine())
    if DRIVER.exists():
        # XLA would try dozens of kernels for each product, which takes minutes and pays in a long run
        settings["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    return settings


def jax_cache(folder: Path) -> dict[str, str]:
    """Settings with which JAX keeps every program in folder; none if there can be no such folder."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)  # who can write there can run code as the user
    except OSError:
        return {}
    drop_halves(folder)
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(MOST),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def drop_halves(folder: Path) -> None:
    """Delete entries that a killed worker did not finish. While there is one, JAX can store nothing.

    Of an entry JAX writes NAME-cache and then NAME-atime, and holds the file .lockfile meanwhile.
    """
    from filelock import FileLock  # 50 ms, which commands that start no worker need not pay

    with contextlib.suppress(OSError, NotImplementedError), FileLock(folder / ".lockfile", timeout=10):
        for path in folder.glob("*-cache"):
            if not path.with_name(path.name.removesuffix("-cache") + "-atime").exists():
                path.unlink(missing_ok=True)


def machine() -> str:
    """A name for the processor's abilities: a program compiled for other ones may crash here."""
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines += sorted({line for line in text.splitlines() if line.startswith(SAYS_WHAT_IT_CAN)})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
