"""Compiled programs are few, are kept between runs, and cannot decide a verdict."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import gpt2_parity
from commands import module
from gpt2_parity.bench import setup
from gpt2_parity.run import compiled_programs
from gpt2_parity.verdict import explain

MOST = 40  # programs for a whole verification of one target
PROGRAM = """
import json, jax, numpy as np
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
product = np.asarray(jax.jit(lambda x: x @ x)(np.full((3, 3), 2, np.float32)))
print(json.dumps([float(product[0, 0]), events.count("cache_hits"), events.count("cache_misses")]))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty cache, and an environment without the caller's own settings."""
    return prepare(monkeypatch, tmp_path)


def prepare(patch, home):
    """Set the environment to a cache in home, and to no settings of the caller; returns the cache."""
    for name in (*compiled_programs.environment(), "XLA_FLAGS"):
        patch.delenv(name, raising=False)
    patch.setenv("PARITY_HOME", str(home))
    patch.setattr(compiled_programs, "DRIVER", home / "no driver")
    return home / "compiled" / compiled_programs.machine()


def run():
    """A program's result, and how often it was found in the cache or had to be compiled and stored."""
    environment = {**compiled_programs.environment(), **os.environ}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A home whose cache has one program, and a copy of that cache."""
    pytest.importorskip("jax")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        place = prepare(patch, home)
        assert run()[0] == [12.0, 0, 1]
    shutil.copytree(place, home / "kept")
    return home


@pytest.fixture
def filled(compiled_once, monkeypatch):
    """A cache with the program in it. Its path is in the keys, so every test gets the same."""
    place = prepare(monkeypatch, compiled_once)
    shutil.rmtree(place)
    return shutil.copytree(compiled_once / "kept", place)


def test_a_second_process_compiles_nothing(filled):
    assert run()[0] == [12.0, 1, 0]


@pytest.mark.parametrize("left", [0, 20, -1], ids=["empty", "cut", "last_byte"])
def test_a_damaged_entry_is_compiled_again(filled, left):
    [entry] = filled.glob("*-cache")
    entry.write_bytes(entry.read_bytes()[:left])
    (result, hits, _), message = run()
    assert (result, hits) == (12.0, 0)
    assert "Error reading persistent compilation cache entry" in message


def test_an_entry_that_a_killed_worker_left_half_is_replaced(filled):
    [entry], [stamp] = filled.glob("*-cache"), filled.glob("*-atime")
    entry.write_bytes(b"half")
    stamp.unlink()
    assert run()[0] == [12.0, 0, 1]
    assert run()[0] == [12.0, 1, 0]


def test_the_callers_own_cache_is_theirs_alone(own, monkeypatch):
    assert compiled_programs.environment()["JAX_COMPILATION_CACHE_DIR"] == str(own)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/theirs")
    # a limit of size would delete their programs
    assert not {name for name in compiled_programs.environment() if name.startswith("JAX_")}


SHOWS = """
import os
def load(*_, **__):
    raise RuntimeError(f"{os.environ['XLA_FLAGS']} {os.environ['JAX_COMPILATION_CACHE_DIR']}")
"""


@pytest.mark.parametrize("flags", ["", "--xla_gpu_autotune_level=4"], ids=["ours", "theirs"])
def test_a_worker_gets_the_settings_and_the_callers_come_first(flags, own, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled_programs, "DRIVER", tmp_path)  # as on a machine with a GPU
    if flags:
        monkeypatch.setenv("XLA_FLAGS", flags)
    [row] = gpt2_parity.verify(module(tmp_path, "shows", SHOWS), targets="cpu-float32").rows
    assert f"{flags or '--xla_gpu_autotune_level=0'} {own}" in explain.detail(row)


def test_jax_without_a_gpu_knows_the_flag(own, monkeypatch, tmp_path):
    """XLA ends the process at a flag that it does not know."""
    pytest.importorskip("jax")
    monkeypatch.setattr(compiled_programs, "DRIVER", tmp_path)
    assert run()[0] == [12.0, 0, 1]
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_no_such_flag=0")
    with pytest.raises(AssertionError, match="Unknown flag"):
        run()


def test_no_cache_where_no_folder_can_be_made(own, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("PARITY_HOME", str(file))
    assert not {name for name in compiled_programs.environment() if name.startswith("JAX_")}


def test_a_benchmark_compiles_as_users_do(own):
    assert not compiled_programs.environment().keys() & setup.environment(1).keys()


def test_a_verification_of_jax_compiles_few_programs(monkeypatch, tmp_path, prepared):
    """What a worker compiles it stores, each program once. Another dtype has as many."""
    pytest.importorskip("jax")
    for name, value in compiled_programs.jax_cache(tmp_path).items():
        monkeypatch.setenv(name, value)
    # as many programs, each compiled in less time
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    verdict = gpt2_parity.verify("jax", targets="cpu-float32", seed=1)
    assert verdict.exit_code == 0
    assert 20 < len(list(tmp_path.glob("*-cache"))) <= MOST
