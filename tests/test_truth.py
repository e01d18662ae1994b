"""Truths are made once, kept, and mapped by every process; what is not ours is made again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt2_parity.files import locks
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.reference import gradient, kept, records, truth


class Maker:
    """Makes an array, and counts how often."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"a": np.arange(100.0)}


@pytest.fixture
def made(tmp_path):
    maker = Maker()
    return maker, lambda **key: kept.entry({"what": "numbers", **key}, maker, tmp_path)


def test_an_entry_is_made_once(made):
    maker, entry = made
    assert entry() == entry()
    assert maker.times == 1
    assert entry(seed=1) != entry()
    assert maker.times == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def note(**changes):
    def spoil(path):
        beside = path.with_suffix(".json")
        beside.write_text(json.dumps(json.loads(beside.read_text()) | changes))

    return spoil


SPOILT = {
    "cut": cut,
    "a bit flipped": flip,
    "its note gone": lambda path: path.with_suffix(".json").unlink(),
    "its note no JSON": lambda path: path.with_suffix(".json").write_text("nonsense"),
    "of another key": note(key="{}"),
    "of another hash": note(sha256="0" * 64),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", SPOILT)
def test_an_entry_that_is_not_as_it_was_written_is_made_again(name, made):
    maker, entry = made
    whole = entry().read_bytes()
    SPOILT[name](entry())
    assert entry().read_bytes() == whole
    assert maker.times == 2


def test_another_entry_of_the_cache_in_its_place_is_refused(made, tmp_path):
    """Both are intact, and each is foreign where the other one lay."""
    _, entry = made
    other = kept.entry({"what": "others"}, lambda: {"a": np.zeros(100)}, tmp_path)
    whole = entry().read_bytes()
    for suffix in (".safetensors", ".json"):
        entry().with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())
    assert entry().read_bytes() == whole


def test_an_entry_of_another_oracle_is_stale(made, monkeypatch):
    maker, entry = made
    before = entry()
    monkeypatch.setattr(kept, "code", lambda: "changed")
    assert entry() != before
    assert maker.times == 2


def test_the_code_of_the_oracle_is_part_of_the_key(tmp_path):
    """In a copy of the package, one changed constant changes every key."""
    import shutil
    from pathlib import Path

    shutil.copytree(Path(kept.__file__).parent.parent, tmp_path / "gpt2_parity")
    show = "from gpt2_parity.reference import kept; print(kept.code())"

    def code():
        command = [sys.executable, "-c", show]
        env = {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=env
        ).stdout.strip()

    assert code() == kept.code()
    oracle = tmp_path / "gpt2_parity" / "reference" / "oracle.py"
    oracle.write_text(oracle.read_text().replace("EPSILON = 1e-5", "EPSILON = 1e-6"))
    assert code() != kept.code()


def test_where_nothing_can_be_written_an_entry_lasts_as_long_as_the_process(tmp_path, monkeypatch):
    (tmp_path / "truth").write_text("a file, where the folder should be")
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    maker = Maker()
    assert kept.entry({"what": "lost"}, maker) == kept.entry({"what": "lost"}, maker)
    assert maker.times == 1


def test_what_was_unused_for_longest_is_removed(made, monkeypatch):
    _, entry = made
    oldest, old = entry(seed=1), entry(seed=2)
    for second, path in enumerate((oldest, old)):  # a clock may not tick between two entries
        os.utime(path.with_suffix(".json"), (second, second))
    monkeypatch.setattr(kept, "MOST", 2 * old.stat().st_size)
    assert oldest == entry(seed=1)  # used again: now the other one is older
    entry(seed=3)
    assert (oldest.exists(), old.exists()) == (True, False)


def test_a_lock_is_waited_for(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gpt2_parity.files import locks\n"
        "with locks.waiting(Path(sys.argv[1])): print('held', flush=True)"
    )
    path = tmp_path / "x.lock"
    with locks.waiting(path):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    assert process.communicate(timeout=60)[0] == b"held\n"


def test_a_kept_record_is_the_oracle_s(prepared, tmp_path):
    case, model = prepared.fresh[0], prepared.checkpoint
    found = truth.record(case, truth.MappedArrays(model.weights), model.hparams, "float32", tmp_path)
    direct = records.make_record(case, model.params, model.hparams, ["float32"])
    assert found.arrays.keys() == direct.arrays.keys()
    assert all(np.array_equal(found.arrays[name], direct.arrays[name]) for name in direct.arrays)


def test_kept_gradients_are_the_oracle_s_in_its_order(tmp_path):
    params = truth.MappedArrays(auxiliary_models.weights(auxiliary_models.SECOND))
    sizes = auxiliary_models.SIZES
    tokens = np.arange(8, dtype=np.int32)[None]
    arguments = (params, sizes, tokens, "bfloat16")
    found = list(truth.gradients(*arguments, tmp_path))
    direct = list(gradient.measure(*arguments, seed=0))
    assert [(name, unit) for name, _, unit in found] == [(name, unit) for name, _, unit in direct]
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(found, direct, strict=True))


def test_changed_weights_are_another_entry(prepared, tmp_path):
    case, model = prepared.fresh[0], prepared.checkpoint
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(model.weights.read_bytes())
    before = truth.record(case, truth.MappedArrays(weights), model.hparams, "float32", tmp_path)
    flip(weights)
    after = truth.record(case, truth.MappedArrays(weights), model.hparams, "float32", tmp_path)
    assert not np.array_equal(before.logits, after.logits)
