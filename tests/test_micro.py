"""The script that makes micro: a few steps of it give a checkpoint, and a broken one spoils none."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from harness import checkpoint

SCRIPT = Path(__file__).parent.parent / "golden" / "make_micro.py"


@pytest.fixture
def make_micro(monkeypatch, tmp_path):
    """The script as a module, with a twentieth of its text, and two steps, into tmp_path/micro."""
    for package in ("jax", "optax", "tensorflow", "tokenizers"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("make_micro", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = module.documents()[::20]
    monkeypatch.setattr(module, "documents", lambda: texts)
    monkeypatch.setattr(module, "WARM_UP", 1)
    words = ["make_micro.py", "--steps", "2", "--out", str(tmp_path / "micro")]
    monkeypatch.setattr("sys.argv", words)
    return module


def test_two_steps_give_a_checkpoint_that_has_learnt(make_micro, tmp_path):
    make_micro.main()
    loaded = checkpoint.load(tmp_path / "micro")
    assert loaded.hparams == make_micro.HPARAMS
    w = loaded.params["h0/mlp/c_proj/w"]
    begun = make_micro.gpt2_jax.by_name(*make_micro.initial_params(np.random.default_rng(1)))
    first = np.asarray(begun["h0/mlp/c_proj/w"])
    assert w.shape == first.shape
    rate = make_micro.PEAK_RATE  # of the second step; the first one's is 0
    assert 0.5 * rate < np.abs(w - first).max() < 1.5 * rate
    report = json.loads((tmp_path / "micro_training.json").read_text())
    assert report["steps"] == 2
    assert report["held_out_nats_per_token"] == pytest.approx(np.log(1000), rel=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["micro", "micro_training.json"]


def test_a_training_that_fails_leaves_the_old_checkpoint_whole(make_micro, tmp_path, monkeypatch):
    old = tmp_path / "micro"
    old.mkdir()
    (old / "vocab.bpe").write_text("old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_micro, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        make_micro.main()
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]
    assert (old / "vocab.bpe").read_text() == "old"
