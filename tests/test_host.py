"""What is reported about the machine of each target."""

import io
import json
import os
import platform

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
