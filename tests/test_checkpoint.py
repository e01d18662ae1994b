"""The checkpoint is read once, checked, shared, and refused if anything is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tf_bundle
from gpt2_parity.contract.architecture import HParams, parameter_shapes, variable_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest, safetensors_mmap
from gpt2_parity.model import catalogue, checkpoint, tf_variables

MICRO = catalogue.GOLDEN / "micro"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(MICRO, tmp_path / "micro")


@pytest.fixture
def good():
    """Variables as stored, for a tiny model."""
    hparams = HParams(n_vocab=5, n_ctx=4, n_embd=4, n_head=2, n_layer=1)
    shapes = variable_shapes(hparams)
    return hparams, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def test_micro_has_the_official_layout():
    assert sorted(os.listdir(MICRO)) == sorted(checkpoint.FILES)
    assert (MICRO / "checkpoint").read_text().startswith('model_checkpoint_path: "model.ckpt"\n')


def test_names_and_shapes_are_the_official_ones():
    """The 124M checkpoint has 148 variables and 124,439,808 parameters."""
    shapes = variable_shapes(HParams(50257, 1024, 768, 12, 12))
    assert len(shapes) == 148
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 124_439_808
    assert shapes["h0/attn/c_attn/w"] == (1, 768, 2304)
    assert shapes["h11/mlp/c_proj/w"] == (1, 3072, 768)
    assert shapes["ln_f/g"] == (768,)


def test_what_is_loaded_is_what_is_stored_without_the_leading_1(prepared):
    """That this is what TensorFlow reads, test_tf_variables.py shows."""
    stored = tf_variables.read(MICRO / checkpoint.INDEX, MICRO / checkpoint.DATA)
    assert stored.keys() == prepared.checkpoint.params.keys()
    for name, value in prepared.checkpoint.params.items():
        assert value.tobytes() == stored[name].tobytes(), name
        assert value.shape == parameter_shapes(prepared.checkpoint.hparams)[name]


NO_FRAMEWORK = """
import sys
for name in ("tensorflow", "jax", "torch"):
    sys.modules[name] = None  # importing it raises
from gpt2_parity.model import catalogue, checkpoint, tf_variables
print(checkpoint.load(catalogue.GOLDEN / "micro").weights)
"""


def test_the_first_load_needs_no_framework(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", NO_FRAMEWORK], check=True, capture_output=True, text=True
    )
    assert digest.sha256(Path(done.stdout.strip()))
    assert checkpoint.load(MICRO).weights.parent == tmp_path / "weights"


CONVERT = """
import sys
from pathlib import Path
from gpt2_parity.model import checkpoint

def most():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1])

folder = Path(sys.argv[1])
hparams = checkpoint.read_hparams(folder / "hparams.json")
before = most()
checkpoint.convert(folder, hparams, folder / "weights.safetensors")
print(most() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc (Linux)")
def test_a_first_load_holds_one_weight_at_a_time(tmp_path):
    """The largest weight has 8 MB, and there are 85. Of a checksum's step, 16 MiB, it fills a half."""
    hparams = HParams(n_vocab=4096, n_ctx=256, n_embd=512, n_head=8, n_layer=6)
    (tmp_path / "hparams.json").write_text(json.dumps(hparams._asdict()))
    weights = tf_bundle.write(tmp_path / "model.ckpt", variable_shapes(hparams))
    done = subprocess.run([sys.executable, "-c", CONVERT, tmp_path], check=True, capture_output=True)
    assert weights > 80e6
    assert int(done.stdout) * 1024 < 40e6


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="PSS is read from /proc (Linux)")
def test_two_processes_share_one_copy_of_the_weights(prepared, tmp_path):
    """Each of two processes that have touched all weights is charged half of them (PSS)."""
    path = tmp_path / "weights.safetensors"
    safetensors_mmap.write(path, {"w": np.ones((4096, 4096), np.float32)})  # 64 MiB
    code = (
        "import sys; from pathlib import Path; from gpt2_parity.files import safetensors_mmap;"
        "w = safetensors_mmap.read(Path(sys.argv[1]))['w']; total = float(w.sum());"
        "print('ready', flush=True); input()"
    )
    start = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pair = [subprocess.Popen(start, **pipes) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in pair] == [b"ready\n"] * 2
        charged = [pss(process.pid, path.name) for process in pair]
    finally:
        for process in pair:
            process.communicate(b"\n")
    assert charged == pytest.approx([32, 32], abs=2)


def pss(pid: int, name: str) -> float:
    """MiB of a mapped file that a process is charged with: its share of shared pages."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps") as lines:
        for line in lines:
            if "-" in line.split()[0]:
                inside = line.rstrip().endswith(name)
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_one_flipped_byte_anywhere_is_refused_and_the_file_named(name, copy, prepared):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CannotJudge, match=f"{name}: SHA-256"):
        checkpoint.load(copy, prepared.checkpoint.sha256)


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_missing_or_empty_file_is_named(name, how, copy):
    (copy / name).unlink()
    if how == "empty":
        (copy / name).touch()
    with pytest.raises(CannotJudge, match=f"{name}: missing or empty"):
        checkpoint.load(copy)


def test_a_corrupt_tensor_is_found_by_its_crc(copy):
    """Without a manifest to compare with, the checkpoint's own checksums name the variable."""
    path = copy / checkpoint.DATA
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CannotJudge, match=r"data-00000-of-00001: variable model/h2\S+ does not match"):
        checkpoint.load(copy)


@pytest.mark.parametrize("cut", [0.1, 0.9])
def test_a_truncated_data_file_is_refused(copy, cut):
    path = copy / checkpoint.DATA
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(CannotJudge, match=r"data-00000-of-00001: \d+ bytes, but hparams"):
        checkpoint.load(copy)


def test_shards_are_refused_by_name(copy):
    (copy / checkpoint.DATA).rename(copy / "model.ckpt.data-00000-of-00002")
    (copy / "model.ckpt.data-00001-of-00002").touch()
    with pytest.raises(CannotJudge, match=r"data-00000-of-00002: .* several data files \(shards\)"):
        checkpoint.load(copy)


def test_a_garbled_index_is_refused(copy):
    (copy / checkpoint.INDEX).write_bytes(b"no index at all")
    with pytest.raises(CannotJudge, match=r"index: not an intact checkpoint index \(its footer"):
        checkpoint.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("h0/ln_1/g"), "model/h0/ln_1/g is missing"),
        (lambda p: p.update(extra=np.ones(1, np.float32)), "unknown variable model/extra"),
        (lambda p: p.update(wte=np.ones((4, 4), np.float32)), r"model/wte has shape \(4, 4\)"),
        (lambda p: p.update(wpe=p["wpe"].astype(np.float64)), "model/wpe is float64"),
        (lambda p: p["ln_f/b"].__setitem__(1, np.nan), "model/ln_f/b has values that are NaN"),
        (lambda p: p["wte"].__setitem__((0, 0), -np.inf), "model/wte has values that are NaN"),
        (
            lambda p: p.update({"h0/mlp/c_fc/w": p["h0/mlp/c_fc/w"][0]}),
            r"model/h0/mlp/c_fc/w has shape \(4, 16\), hparams say \(1, 4, 16\)",
        ),
    ],
)
def test_a_wrong_variable_is_named(good, change, message, tmp_path):
    hparams, params = good
    checkpoint.check(params, hparams, tmp_path)
    change(params)
    with pytest.raises(CannotJudge, match=message) as caught:
        checkpoint.check(params, hparams, tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("n_head", 3), ("n_layer", 0), ("n_ctx", -1), ("n_embd", "128"), ("n_vocab", 1e3), ("n_ctx", True)],
)
def test_absurd_hparams_are_refused(entry, value, copy):
    path = copy / "hparams.json"
    raw = json.loads(path.read_text()) | {entry: value}
    path.write_text(json.dumps(raw))
    with pytest.raises(CannotJudge, match=r"hparams.json: n_"):
        checkpoint.load(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"n_vocab": 1'])
def test_hparams_that_are_no_hparams_are_refused(text, tmp_path):
    path = tmp_path / "hparams.json"
    path.write_text(text)
    with pytest.raises(CannotJudge, match=r"hparams.json: needs n_vocab"):
        checkpoint.read_hparams(path)


def test_hparams_of_another_model_are_refused_by_shape(copy):
    path = copy / "hparams.json"
    path.write_text(path.read_text().replace('"n_ctx": 256', '"n_ctx": 128'))
    with pytest.raises(CannotJudge, match=r"data-00000-of-00001: \d+ bytes, but hparams"):
        checkpoint.load(copy)


def test_a_damaged_cache_is_made_anew(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    weights = checkpoint.load(MICRO).weights
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert checkpoint.load(MICRO).weights.read_bytes() == good


def test_a_cache_in_which_arrays_were_not_aligned_is_made_anew(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path))
    weights = checkpoint.load(MICRO).weights
    good = weights.read_bytes()
    save_file({name: np.array(w) for name, w in safetensors_mmap.read(weights).items()}, weights)
    weights.with_suffix(".sha256").write_text(digest.sha256(weights))
    assert not safetensors_mmap.is_aligned(weights)
    assert checkpoint.load(MICRO).weights.read_bytes() == good


def test_mapped_arrays_can_be_written_to_without_touching_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_mmap.write(path, {"x": np.zeros(3, np.float32)})
    safetensors_mmap.read(path)["x"][:] = 1
    assert safetensors_mmap.read(path)["x"].tolist() == [0, 0, 0]


def test_a_glance_sees_the_file_whatever_others_wrote(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_mmap.write(path, {"x": np.zeros(3, np.float32), "y": np.arange(4)})
    glances = safetensors_mmap.MappedArrays(path)
    glances["x"][:] = 1
    assert glances["x"].tolist() == [0, 0, 0]
    assert sorted(glances) == ["x", "y"]
    assert glances.keys() == safetensors_mmap.read(path).keys()
    with pytest.raises(KeyError):
        glances["z"]
    (tmp_path / "bad.safetensors").write_bytes(b"")
    with pytest.raises(CannotJudge, match=r"bad\.safetensors: not a readable"):
        safetensors_mmap.MappedArrays(tmp_path / "bad.safetensors")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="mappings are read from /proc (Linux)")
def test_what_nobody_holds_is_not_mapped(tmp_path):
    path = tmp_path / "only_here.safetensors"
    safetensors_mmap.write(path, {"x": np.zeros(3, np.float32), "y": np.arange(4)})

    def mappings():
        return Path("/proc/self/maps").read_text().count(path.name)

    glances = safetensors_mmap.MappedArrays(path)
    assert mappings() == 0
    held = glances["x"]
    assert held.sum() + glances["y"].sum() == 6
    assert mappings() == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"\x10" + b"\0" * 7 + b"{}", b"\2" + b"\0" * 7 + b"[]"]
)
def test_what_is_no_safetensors_file_is_refused(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CannotJudge, match=r"x\.safetensors: not a readable"):
        safetensors_mmap.read(path)


def test_a_header_that_points_outside_the_file_is_refused(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CannotJudge, match="lie outside the file"):
        safetensors_mmap.read(path)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(Exception, match="complex"):
        safetensors_mmap.write(tmp_path / "x.safetensors", {"x": np.zeros(3, np.complex256)})
    assert list(tmp_path.iterdir()) == []
