"""What there is to know about the machine that this process runs on."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

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


GPU = ("cuda", "gpu", "rocm")  # as frameworks call what targets call cuda


class Seen(NamedTuple):
    """What was seen of an implementation on the GPU that it declares, after a forward pass."""

    array: str  # the device of its logits, as their framework says; "" if they have none that says
    framework: bool | None  # whether that framework has anything on a GPU; None: not looked
    memory: int | None  # bytes by which GPU memory has grown since the process began; None: not looked

    @property
    def there(self) -> bool | None:
        """Whether it uses a GPU; None if nobody could look."""
        looks = [self.framework, None if self.memory is None else self.memory > 0]
        return None if looks == [None, None] else True in looks

    def __str__(self) -> str:
        where = (
            f"its logits are on {self.array}" if self.array else "its logits do not say where they are"
        )
        if self.memory is None:
            return f"{where}, and GPU memory was not looked at"
        return f"{where}, and GPU memory has grown by {self.memory} bytes"


def seen(logits: Any, used: int | None) -> Seen:
    """What is to be seen on a GPU. used: gpu_used() when the process began."""
    array, framework = array_device(logits), None
    if array:
        framework = array in GPU or holds_gpu_memory(logits)
    own, now = gpu_memory(), gpu_used()
    grown = None if now is None or used is None else max(0, now - used)
    return Seen(array, framework, own or grown)


def array_device(x: Any) -> str:
    """The device of an array as its framework says: cpu, cuda, ...; "" for any other value.

    Nothing is imported: whose array it is, that framework is there.
    """
    try:
        match type(x).__module__.partition(".")[0]:
            case "torch":
                return str(x.device.type)
            case "jax" | "jaxlib":
                platforms = {str(device.platform) for device in x.devices()}
                return next((each for each in platforms if each in GPU), *sorted(platforms)[:1])
            case "tensorflow":  # /job:localhost/replica:0/task:0/device:GPU:0
                return str(x.device).rpartition("device:")[2].partition(":")[0].lower()
            case "cupy":
                return "cuda"
    except Exception:  # an array of another version: then it does not say
        return ""
    return ""


def holds_gpu_memory(x: Any) -> bool:
    """Whether the framework of an array has others on a GPU: the logits may have been brought back."""
    try:
        match type(x).__module__.partition(".")[0]:
            case "torch":
                cuda = sys.modules["torch"].cuda
                return bool(cuda.is_initialized() and cuda.memory_allocated() > 0)
            case "jax" | "jaxlib":
                return any(array_device(array) in GPU for array in sys.modules["jax"].live_arrays())
    except Exception:
        return False
    return False


def gpu_used() -> int | None:
    """Bytes in use on all GPUs, by whatever process, from NVML, or None as for gpu_memory."""
    return _from_nvml(lambda nvml, device: int(nvml.nvmlDeviceGetMemoryInfo(device).used))


def gpu_memory() -> int | None:
    """Bytes that this process holds on GPUs, from NVML, or None without nvidia-ml-py or a driver."""

    def own(nvml: Any, device: Any) -> int:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(device)
        return sum(each.usedGpuMemory or 0 for each in running if each.pid == os.getpid())

    # a container may show other process ids, or none; then the answer is not known
    return _from_nvml(own) or None


def _from_nvml(of: Callable[[Any, Any], int]) -> int | None:
    """The sum over all devices; None where they cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return sum(of(pynvml, device) for device in devices)
    except pynvml.NVMLError:
        return None
