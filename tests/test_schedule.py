"""What is examined when, by how many workers at once; and what is reported meanwhile."""

import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.progress import Update
from gpt2_parity.model import synthetic
from gpt2_parity.report import terminal
from gpt2_parity.run import cores, history, schedule
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.schedule import Schedule, Unit, shares

F32, BF16, GPU = Target("cpu", "float32"), Target("cpu", "bfloat16"), Target("cuda", "float32")
GPU16 = Target("cuda", "bfloat16")
MICRO = HParams(1000, 256, 128, 4, 4)


def states(n: int) -> list[RunState]:
    return [RunState(f"it{i}", "micro", MICRO, ()) for i in range(n)]


def hello(state: RunState, *targets: Target) -> None:
    state.handle("hello", {"targets": targets, "versions": {}})


def end(state: RunState, target: Target) -> None:
    state.handle("begin", {"target": target})
    state.handle("end", {"target": target})


def test_each_implementation_is_started_once_in_the_order_given():
    plan = Schedule(states(3), (), {})
    assert [plan.next() for _ in range(3)] == [Unit(0, None), Unit(1, None), Unit(2, None)]


def test_the_first_worker_takes_a_target_and_others_the_rest():
    both = states(2)
    plan = Schedule(both, (), {})
    assert (plan.next(), plan.next()) == (Unit(0, None), Unit(1, None))
    hello(both[0], F32, BF16)
    hello(both[1], F32)
    assert plan.claim(0) == F32
    assert plan.claim(1) == F32
    end(both[1], F32)
    plan.release(1)
    assert plan.next() == Unit(0, BF16)  # the first worker is still on float32
    assert plan.next() is None


def test_what_took_longest_starts_first_and_what_is_unknown_before_it():
    three = states(3)
    seconds = {"micro it0": {"cpu-float32": 1.0, "cpu-bfloat16": 5.0}, "micro it1": {"cpu-float32": 9.0}}
    plan = Schedule(three, (), seconds)
    assert [plan.next() for _ in range(3)] == [Unit(2, None), Unit(1, None), Unit(0, None)]
    hello(three[0], F32, BF16)
    assert plan.claim(0) == BF16


def test_what_was_measured_is_remembered_beside_what_was_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    assert history.read() == {}
    one, two = states(2)
    for state, target in ((one, F32), (two, F32), (one, BF16)):
        hello(state, F32, BF16)
        state.handle("begin", {"target": target})
        state.targets[target].seconds = {"load": 1.0, "logits": 2.0}
        history.add([state])
    assert history.read() == {
        "micro it1": {"cpu-float32": 3.0},
        "micro it0": {"cpu-float32": 3.0, "cpu-bfloat16": 3.0},
    }
    (tmp_path / history.NAME).write_text("nonsense")
    assert history.read() == {}


def test_only_wanted_targets_are_handed_out():
    [state] = one = states(1)
    plan = Schedule(one, [BF16], {})
    assert plan.next() == Unit(0, None)
    hello(state, F32, BF16)
    assert plan.claim(0) == BF16
    assert plan.claim(0) is None


def test_an_idle_worker_waits_for_what_a_starting_implementation_will_offer():
    [state] = one = states(1)
    plan = Schedule(one, (), {})
    assert plan.next() == Unit(0, None)
    found: list[Unit | None] = []
    idle = threading.Thread(target=lambda: found.append(plan.next()))
    idle.start()
    time.sleep(0.1)
    assert idle.is_alive()
    hello(state, F32, BF16)
    assert plan.claim(0) == F32
    idle.join(60)
    assert found == [Unit(0, BF16)]


def test_a_device_has_one_target_at_a_time():
    both = states(2)
    plan = Schedule(both, (), {})
    plan.next(), plan.next()
    hello(both[0], GPU, F32, GPU16)
    hello(both[1], GPU)
    assert plan.claim(0) == GPU
    assert plan.claim(1) is None  # its only target waits for the device
    plan.release(1)
    assert plan.next() == Unit(0, F32)
    end(both[0], GPU)
    plan.release(0)
    assert plan.next() == Unit(0, GPU16)
    end(both[0], GPU16)
    plan.release(0)
    assert plan.next() == Unit(1, GPU)
    assert plan.next() is None


def test_a_device_that_carries_several_targets_has_as_many_at_a_time():
    [state] = one = states(1)
    plan, third = Schedule(one, (), {}, {"cuda": 2}), Target("cuda", "float16")
    plan.next()
    hello(state, GPU, GPU16, third)
    assert [plan.claim(0) for _ in range(3)] == [GPU, GPU16, None]
    end(state, GPU)
    assert plan.claim(0) == third


def test_there_is_an_end_for_a_worker_that_waits():
    """A lost implementation has nothing left, and a stopped schedule hands out nothing."""
    [state] = one = states(1)
    plan = Schedule(one, (), {})
    plan.next()
    found: list[Unit | None] = []
    idle = threading.Thread(target=lambda: found.append(plan.next()))
    idle.start()
    state.handle("lost", {"target": None, "message": "gone"})
    plan.release(0)
    idle.join(60)
    assert found == [None]
    plan = Schedule(states(1), (), {})
    plan.stop()
    assert plan.next() is None


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores and GiB."""

    def make(n_cores, gigabytes):
        monkeypatch.setattr(cores, "available", lambda: list(range(n_cores)))
        memory = SimpleNamespace(available=gigabytes * 2**30)
        monkeypatch.setattr(schedule.psutil, "virtual_memory", lambda: memory)

    return make


@pytest.mark.parametrize(
    ("n_cores", "gigabytes", "hparams", "asked", "expected"),
    [
        (2, 24, MICRO, (None, None), (2, 1)),
        (16, 64, MICRO, (None, None), (16, 1)),
        (16, 5, MICRO, (None, None), (3, 1)),  # memory carries three
        (16, 0.5, MICRO, (None, None), (1, 1)),
        (16, 64, synthetic.OFFICIAL["124M"], (None, None), (16, 1)),
        (16, 24, synthetic.OFFICIAL["1558M"], (None, None), (1, 16)),
        (16, 64, MICRO, (4, None), (4, 1)),
        (16, 64, MICRO, (None, 8), (2, 8)),
        (16, 64, synthetic.OFFICIAL["124M"], (4, None), (4, 4)),
    ],
)
def test_workers_and_threads_share_the_cores(n_cores, gigabytes, hparams, asked, expected, machine):
    machine(n_cores, gigabytes)
    assert shares(hparams, *asked) == expected


def lines(*updates: Update) -> list[str]:
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture, terminal.progress(console) as report:
        for update in updates:
            report(update)
    return capture.get().splitlines()


def test_without_a_terminal_a_line_tells_of_each_start_and_each_end():
    assert lines(
        Update("prepares"),
        Update("starts", "numpy", starting=2),
        Update("checks", "numpy", "cpu-float32", 3),
        Update("ends", "numpy", "cpu-float32", 15, 3.21, "", "PASS", 2, 1),
        Update("ends", "torch", outcome="FAIL", targets_left=1),
        Update("again", "torch", "cpu-float32", worker="tcp://10.0.0.2:4000 on node2"),
    ) == [
        "numpy starts",
        "numpy-cpu-float32: PASS in 3.2 s, 2 targets and 1 implementation left",
        "torch: FAIL in 0.0 s, 1 target left",
        "torch-cpu-float32: dask worker tcp://10.0.0.2:4000 on node2 was lost; it begins again",
    ]


def test_on_a_terminal_bars_show_what_is_under_way():
    console = Console(width=100, force_terminal=True)
    with console.capture() as capture, terminal.progress(console) as report:
        report(Update("starts", "numpy", starting=1))
        report(Update("checks", "numpy", "cpu-float32", 3, targets_left=2))
        report(Update("again", "numpy", "cpu-float32", worker="tcp://it:1 on node"))
        report(Update("ends", "numpy", "cpu-float32", 15, 3.21, "", "PASS", 1))
    shown = capture.get()
    assert "numpy-cpu-float32: dask worker tcp://it:1 on node was lost; it begins again" in shown
    assert "numpy starts" in shown
    assert "numpy-cpu-float32" in shown
