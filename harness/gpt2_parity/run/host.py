"""What there is to know about the machine that this process runs on."""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2_parity.run import cores

CPUINFO = Path("/proc/cpuinfo")
# of NVIDIA, of AMD (whose PyTorch calls its device cuda too), and of NVIDIA within Windows
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
SECONDS = 20.0  # that nvidia-smi may take; without its persistence daemon a driver needs some to wake up


@functools.cache
def facts(device: str) -> dict[str, Any]:
    """Name, processor, cores and Python of this machine, as JSON, and its GPU if the device is cuda.

    gpu and driver are empty for another device, and where nvidia-smi cannot tell.
    """
    gpu, driver = nvidia() if device == "cuda" else ("", "")
    return {
        "hostname": platform.node(),
        "cpu": cpu_model(),
        "cores": len(cores.available()),
        "gpu": gpu,
        "driver": driver,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def cpu_model() -> str:
    """The processor's name; "" if the system does not tell."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def nvidia() -> tuple[str, str]:
    """The names of the GPUs that CUDA shows this process, and the version of their driver."""
    if not (program := shutil.which("nvidia-smi")):
        return "", ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = [] if visible is None else ["--id", visible]
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [program, *chosen, *query], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "", ""
    pairs = [line.partition(", ") for line in done.stdout.splitlines() if ", " in line]
    names, drivers = ([pair[i].strip() for pair in pairs] for i in (0, 2))
    return ", ".join(names), ", ".join(dict.fromkeys(drivers))


def unseen(devices: Iterable[str]) -> list[str]:
    """Those of some devices that this machine cannot have, as far as it shows.

    A backend may say cuda and compute on the CPU: so what it says is compared with the driver's files.
    """
    return sorted({device for device in devices if device == "cuda" and not sees_a_gpu()})


def sees_a_gpu() -> bool:
    """Whether a driver of NVIDIA or AMD is loaded, and its GPUs are not hidden from this process."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(path.exists() for path in DRIVERS)
