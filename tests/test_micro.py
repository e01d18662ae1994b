"""The script that makes micro: two steps of it give a checkpoint, and a broken one spoils none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_parity.model import checkpoint

SCRIPT = Path(__file__).parent.parent / "golden" / "make_micro.py"
PART = "asyncio"  # of the standard library; to parse all of it takes seconds
SHORTENED = f"""
import importlib.util, sys, sysconfig
spec = importlib.util.spec_from_file_location("make_micro", {str(SCRIPT)!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
part = sysconfig.get_path("stdlib") + "/{PART}"
script.sysconfig.get_path = lambda _: part
script.BATCH, script.HELD_OUT, script.WARM_UP = 4, 4, 1
"""


def make_micro(folder: Path, but: str = "") -> subprocess.CompletedProcess:
    """Two steps, the first of which has a rate of 0, on a part of the text; but: a last change."""
    code = f"{SHORTENED}\n{but}\nscript.main()"
    words = [sys.executable, "-c", code, "--steps", "2", "--out", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_two_steps_give_a_checkpoint_that_has_learnt(tmp_path):
    done = make_micro(tmp_path / "micro")
    assert done.returncode == 0, done.stderr
    loaded = checkpoint.load(tmp_path / "micro")
    rate = 2e-3  # of the second step, and the most that Adam then moves a weight by
    assert np.abs(loaded.params["h0/ln_1/g"] - 1).max() == pytest.approx(rate, rel=0.2)
    report = json.loads((tmp_path / "micro_training.json").read_text())
    assert report["steps"] == 2
    assert report["n_params"] == 954_112
    assert report["held_out_nats_per_token"] == pytest.approx(np.log(1000), rel=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["micro", "micro_training.json"]


def test_a_training_that_fails_leaves_the_old_checkpoint_whole(tmp_path):
    old = tmp_path / "micro"
    old.mkdir()
    (old / "vocab.bpe").write_text("old")
    done = make_micro(old, "def fail(*_): raise KeyboardInterrupt\nscript.train = fail")
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]
    assert (old / "vocab.bpe").read_text() == "old"
