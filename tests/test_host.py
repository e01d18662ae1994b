"""What is reported about the machine of each target."""

import io
import json
import os
import platform
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import gpt2_parity
from commands import module
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.report import runs, terminal
from gpt2_parity.run import cores, host

SMI = """#!/bin/sh
[ "$1" = --id ] && [ "$2" = 1 ] && shift 2 && echo 'Card B, 570.1' && exit
[ "$1" = --id ] && echo 'No devices were found' >&2 && exit 6
echo 'Card A, 570.1'; echo 'Card B, 570.1'
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi, which has two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    host.facts.cache_clear()
    yield
    host.facts.cache_clear()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ("Card A, Card B", "570.1")), ("1", ("Card B", "570.1")), ("7", ("", ""))],
)
def test_a_gpu_and_its_driver_are_named_as_nvidia_smi_does(visible, expected, smi, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = host.facts("cuda")
    assert (found["gpu"], found["driver"]) == expected


def test_a_cpu_target_names_no_gpu(smi):
    assert (host.facts("cpu")["gpu"], host.facts("cpu")["driver"]) == ("", "")


def test_each_target_of_a_run_has_its_machine_in_results_and_report(tmp_path, prepared):
    out = tmp_path / "out"
    assert gpt2_parity.verify("numpy", only=["logits"], out=out).passed
    found = json.loads((out / "results.json").read_text())["environment"]["hosts"]
    assert found.keys() == {"numpy-cpu-float32", "numpy-cpu-float64"}
    for each in found.values():
        assert each["hostname"] == platform.node()
        assert each["cores"] == len(cores.available())
        assert each["versions"]["numpy"] == np.__version__
    [made] = map(runs.made_with, runs.read([out]))
    [pairs] = [dict(pairs) for name, pairs in made.pairs if name == "hosts"]
    shown = pairs["numpy-cpu-float32"]
    assert f"hostname {platform.node()}, cpu " in shown
    assert f"numpy {np.__version__}" in shown
    assert ", gpu " not in shown
    assert not set("{}'") & set(shown)


FALLS_BACK = """
def targets():
    return [("cuda", "float32"), ("cpu", "float32")]
real_load = load
def load(params, hparams, *, device, dtype):
    return real_load(params, hparams, device="cpu", dtype=dtype)
"""


@pytest.mark.skipif(host.sees_a_gpu(), reason="there is a GPU here")
def test_a_device_that_is_declared_and_not_there_is_not_believed(tmp_path, prepared):
    """It computes on the CPU, and would pass everything."""
    path = module(tmp_path, "falls_back", FALLS_BACK)
    with pytest.raises(CannotJudge, match="falls_back declares it, but none is visible on this machine"):
        gpt2_parity.gate(path, require_device="cuda")
    verdict = gpt2_parity.gate(path, only=["logits"])
    assert verdict.passed
    shown = Console(file=io.StringIO())
    terminal.show(shown, verdict.results)
    assert "cuda: declared, but no GPU is visible" in shown.file.getvalue()


def test_a_gpu_is_seen_by_its_driver(tmp_path, monkeypatch):
    driver = tmp_path / "nvidiactl"
    monkeypatch.setattr(host, "DRIVERS", (tmp_path / "kfd", driver))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert host.unseen(["cuda", "cpu", "mps"]) == ["cuda"]
    driver.touch()
    assert host.unseen(["cuda", "cpu"]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert host.unseen(["cuda"]) == ["cuda"]


# -- where it computes: with stand-ins, not on a GPU


def array(framework, device):
    """An array of a framework that is a stand-in."""
    made = type("Array", (), {"__module__": f"{framework}.somewhere", "device": device})()
    made.devices = lambda: [device]
    return made


PLACES = [
    ("torch", SimpleNamespace(type="cuda"), "cuda"),
    ("torch", SimpleNamespace(type="cpu"), "cpu"),
    ("jaxlib", SimpleNamespace(platform="gpu"), "gpu"),
    ("jaxlib", SimpleNamespace(platform="cpu"), "cpu"),
    ("tensorflow", "/job:localhost/replica:0/task:0/device:GPU:0", "gpu"),
    ("tensorflow", "/job:localhost/replica:0/task:0/device:CPU:0", "cpu"),
    ("cupy", None, "cuda"),
    ("torch", None, ""),  # of a version that calls it otherwise
    ("mine", SimpleNamespace(type="cuda"), ""),
]


@pytest.mark.parametrize(("framework", "device", "expected"), PLACES)
def test_an_array_says_where_it_lives(framework, device, expected):
    assert host.array_device(array(framework, device)) == expected


def test_real_arrays_say_it_too():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    assert host.array_device(torch.zeros(1)) == "cpu"
    assert host.array_device(jax.numpy.zeros(1)) == "cpu"
    assert host.array_device(np.zeros(1)) == ""
    assert not host.holds_gpu_memory(torch.zeros(1))
    assert not host.holds_gpu_memory(jax.numpy.zeros(1))


class Nvml(SimpleNamespace):
    """A stand-in for pynvml: one device with so many bytes in use."""

    NVMLError = OSError

    def __init__(self, used, processes=()):
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: 1,
            nvmlDeviceGetHandleByIndex=lambda i: i,
            nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=used),
            nvmlDeviceGetComputeRunningProcesses=lambda device: processes,
        )


ON_CPU = array("torch", SimpleNamespace(type="cpu"))
ON_GPU = array("torch", SimpleNamespace(type="cuda"))
OF_THE_HOST = np.zeros(1)


def torch_with(n_bytes):
    cuda = SimpleNamespace(is_initialized=lambda: n_bytes > 0, memory_allocated=lambda: n_bytes)
    return SimpleNamespace(cuda=cuda)


def process(pid, n_bytes):
    return SimpleNamespace(pid=pid, usedGpuMemory=n_bytes)


@pytest.mark.parametrize(
    ("logits", "held", "nvml", "there"),
    [
        (ON_GPU, 0, None, True),
        (ON_CPU, 0, None, False),
        (ON_CPU, 9, None, True),  # the logits were brought back, the weights were not
        (ON_CPU, 0, Nvml(100), False),
        (OF_THE_HOST, 0, None, None),  # nobody can look
        (OF_THE_HOST, 0, Nvml(100), False),
        (OF_THE_HOST, 0, Nvml(150), True),
        (OF_THE_HOST, 0, Nvml(100, [process(os.getpid(), 7)]), True),
        (OF_THE_HOST, 0, Nvml(100, [process(1, 7)]), False),  # another process's
    ],
)
def test_a_gpu_is_used_if_anything_shows_it(logits, held, nvml, there, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch_with(held))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: it cannot be imported
    assert host.seen(logits, 100).there is there


def test_what_could_not_be_looked_at_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert host.gpu_used() is None
    text = str(host.seen(OF_THE_HOST, None))
    assert text == "its logits do not say where they are, and GPU memory was not looked at"
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(100))
    assert str(host.seen(ON_CPU, 70)) == "its logits are on cpu, and GPU memory has grown by 30 bytes"


BRINGS_TORCH = """
import torch
targets = lambda: [("cuda", "float32"), ("cpu", "float32")]
first_load, first_forward, first_numpy = load, forward, numpy
def load(params, hparams, *, device, dtype):
    return first_load(params, hparams, device="cpu", dtype=dtype)
def forward(model, tokens, past=None, tap=None, **more):
    logits, present = first_forward(model, tokens, past, tap, **more)
    return RETURN(logits), present
def numpy(x):
    return x.numpy() if isinstance(x, torch.Tensor) else first_numpy(x)
"""


@pytest.fixture
def with_a_driver(tmp_path, monkeypatch):
    """As if this machine had a GPU, but no nvidia-ml-py."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(host, "DRIVERS", (tmp_path / "nvidiactl",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def gate(path, **options):
    return gpt2_parity.gate(path, isolated=False, only=["logits"], targets="cuda-float32", **options)


def test_logits_on_the_cpu_are_no_cuda(tmp_path, prepared, with_a_driver):
    """The driver is there, so that only the arrays tell that it fell back."""
    pytest.importorskip("torch")
    code = BRINGS_TORCH.replace("RETURN", "torch.from_numpy")
    path = module(tmp_path, "falls_back_with_torch", code)
    with pytest.raises(gpt2_parity.CannotJudge, match="nothing is seen of it there: its logits are on"):
        gate(path, require_device="cuda")
    found = gate(path).environment
    assert found["cuda"].startswith("declared, but nothing is seen there: its logits are on cpu")
    [made] = found["hosts"].values()
    assert made["seen"] == {"array": "cpu", "framework": False, "memory": None}


def test_where_nobody_can_look_that_is_said(tmp_path, prepared, with_a_driver):
    pytest.importorskip("torch")
    path = module(tmp_path, "shows_nothing", BRINGS_TORCH.replace("RETURN", ""))
    verdict = gate(path, require_device="cuda")
    assert verdict.passed
    assert verdict.environment["cuda"] == "present; not looked at whether it is used"
