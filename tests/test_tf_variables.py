"""Our reader of TensorFlow's checkpoints reads what TensorFlow reads, and refuses what it cannot."""

import importlib.util
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tf_bundle
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model import catalogue, checkpoint, tf_index, tf_variables

MICRO = catalogue.GOLDEN / "micro"
INDEX, DATA = MICRO / checkpoint.INDEX, MICRO / checkpoint.DATA

TENSORFLOW = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
from gpt2_parity.files import safetensors_mmap

micro, out = Path(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(20261123)

def save(name, arrays, slices=""):
    tf.raw_ops.SaveV2(prefix=str(out / name), tensor_names=list(arrays),
                      shape_and_slices=[slices] * len(arrays), tensors=list(arrays.values()))

def dump(prefix, name):
    reader = tf.train.load_checkpoint(str(prefix))
    found = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    safetensors_mmap.write(out / f"{name}.safetensors",
                           {key.removeprefix("model/"): np.asarray(a) for key, a in found.items()})

dump(micro / "model.ckpt", "micro")
any_bits = {}
for i in range(12_000):  # so that the index has several blocks
    bits = rng.integers(0, 2**32, rng.integers(1, 9, i % 4), np.uint32)
    any_bits[f"model/{'scope/' * (i % 9)}{i}"] = bits.view(np.float32)
save("random", any_bits)
dump(out / "random", "random")
save("one", {"model/a": np.ones(3, np.float32)})
save("two", {"model/b": np.ones(3, np.float32)})
tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[str(out / "one"), str(out / "two")],
                              destination_prefix=str(out / "shards"), delete_old_dirs=False)
save("slices", {"model/a": np.ones((2, 4), np.float32)}, "4 4 0,2:-")
save("float64", {"model/a": np.ones(3)})
save("text", {"model/a": np.array(["text"])})
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints that TensorFlow has written, and arrays that TensorFlow's own reader has read."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    out = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", TENSORFLOW, MICRO, out], check=True, capture_output=True)
    return out


def files(folder, name):
    return folder / f"{name}.index", folder / f"{name}.data-00000-of-00001"


@pytest.mark.parametrize("name", ["micro", "random"])
def test_every_variable_is_bit_by_bit_what_tensorflow_reads(name, written):
    raw = safetensors_mmap.read(written / f"{name}.safetensors")
    ours = tf_variables.read(*((INDEX, DATA) if name == "micro" else files(written, name)))
    assert ours.keys() == raw.keys()
    assert len(ours) == {"micro": 52, "random": 12_000}[name]
    for key, value in raw.items():
        assert ours[key].shape == value.shape
        assert ours[key].dtype == value.dtype == np.float32
        assert ours[key].tobytes() == value.tobytes(), key


def test_the_random_index_has_several_blocks(written):
    table = files(written, "random")[0].read_bytes()
    _, at = tf_index._handle(table, len(table) - tf_index.FOOTER)
    index, _ = tf_index._handle(table, at)
    assert len(list(tf_index._pairs(tf_index._block(table, index)))) > 1


def test_micro_is_stored_with_a_leading_1_and_loaded_without():
    stored = tf_variables.read(INDEX, DATA)
    assert stored["h0/attn/c_attn/w"].shape == (1, 128, 384)
    squeezed = stored.squeezed()
    assert squeezed["h0/attn/c_attn/w"].shape == (128, 384)
    assert all(squeezed[name].tobytes() == stored[name].tobytes() for name in stored)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shards", r"shards\.index: the checkpoint has 2 data files \(shards\)"),
        ("slices", r"slices\.index: variable model/a is stored in slices"),
        ("float64", r"float64\.index: variable model/a is float64, expected float32"),
        ("text", r"text\.index: variable model/a is string, expected float32"),
    ],
)
def test_what_tensorflow_writes_in_other_forms_is_refused_by_name(name, message, written):
    with pytest.raises(CannotJudge, match=message):
        tf_variables.read(*files(written, name))


# Indexes that are written here.


@pytest.fixture
def place(tmp_path):
    return tmp_path / "x.index"


def test_an_index_that_is_written_here_is_read(place):
    """Else what follows would be refused for another reason."""
    place.write_bytes(tf_bundle.index(tf_bundle.pairs(tf_index.read(INDEX))))
    assert tf_index.read(place) == tf_index.read(INDEX)


@pytest.mark.parametrize(("kind", "name"), [(1, "snappy"), (2, "compression number 2")])
def test_a_compressed_block_is_refused_by_name(kind, name, place):
    place.write_bytes(tf_bundle.index(tf_bundle.pairs(tf_index.read(INDEX)), kind))
    with pytest.raises(CannotJudge, match=rf"x\.index: the block at byte 0 is compressed \({name}\)"):
        tf_index.read(place)


@pytest.mark.parametrize("name", tf_bundle.FORMS | tf_bundle.LIES)
def test_an_index_that_is_not_to_be_had_is_refused(name, place):
    change, message = (tf_bundle.FORMS | tf_bundle.LIES)[name]
    pairs = tf_bundle.pairs(tf_index.read(INDEX))
    change(pairs)
    place.write_bytes(tf_bundle.index(pairs))
    with pytest.raises(CannotJudge) as caught:
        tf_index.read(place)
    assert message in str(caught.value)
    assert ("OpenAI's releases" in str(caught.value)) == (name in tf_bundle.FORMS)


@pytest.mark.parametrize("name", ["overlap", "beyond_the_end", "another_crc"])
def test_places_that_cannot_be_are_refused(name, place):
    change, message = tf_bundle.PLACES[name]
    tensors = tf_index.read(INDEX)
    change(tensors)
    place.write_bytes(tf_bundle.index(tf_bundle.pairs(tensors)))
    with pytest.raises(CannotJudge) as caught:
        tf_variables.read(place, DATA)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tf_bundle.listed({b"b": b"", b"a": b""}), "key b'a' is not above"),
        (tf_bundle.listed({})[:-4] + b"\xff" * 4, "restart points"),
        (b"\0\x01\x7fk" + bytes(4) + b"\1\0\0\0", "an entry ends beyond its block"),
        (b"\x05\x01\x00k" + bytes(4) + b"\1\0\0\0", "an entry ends beyond its block"),
        (b"\0", "not an intact checkpoint index"),
        (b"", "not an intact checkpoint index"),
    ],
)
def test_a_block_that_lies_is_refused(content, message, place):
    place.write_bytes(tf_bundle.table(content))
    with pytest.raises(CannotJudge, match=message):
        tf_index.read(place)


def test_a_block_that_ends_beyond_the_table_is_refused(place):
    place.write_bytes(tf_bundle.table(b"", beyond=10**6))
    with pytest.raises(CannotJudge, match="the block at byte 0 ends beyond the footer"):
        tf_index.read(place)


@pytest.mark.parametrize("data", [b"", b"x" * 47, b"x" * 100])
def test_what_is_no_table_is_refused(data, place):
    place.write_bytes(data)
    with pytest.raises(CannotJudge, match="its footer is not that of a table"):
        tf_index.read(place)


def test_an_index_of_any_size_is_not_read_into_memory(place):
    with place.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CannotJudge, match="more than 16777216 bytes"):
        tf_index.read(place)


def test_every_flipped_byte_of_an_index_is_found(place):
    good, rng = INDEX.read_bytes(), random.Random(20261123)
    for at in range(len(good)):
        place.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
        with pytest.raises(CannotJudge, match=r"x\.index: "):
            tf_index.read(place)


@given(st.data())
def test_whatever_an_index_says_is_read_or_refused(tmp_path_factory, data):
    """With right checksums, so that the content is reached; a giant number allocates nothing."""
    place = tmp_path_factory.getbasetemp() / "any.index"
    entry = tf_bundle.entry(tf_index.Tensor(0, 4, 0, (1,)))
    at = data.draw(st.integers(0, len(entry)))
    bad = entry[:at] + data.draw(st.binary(max_size=20)) + entry[at + data.draw(st.integers(0, 20)) :]
    pairs = {b"": tf_bundle.header(), data.draw(st.binary(min_size=1, max_size=9)): bad}
    place.write_bytes(tf_bundle.index(pairs))
    tracemalloc.start()
    try:
        found = tf_index.read(place)
    except CannotJudge as error:
        assert "any.index: " in str(error)  # noqa: PT017
    else:
        assert [tensor.size == 4 * np.prod(tensor.shape) for tensor in found.values()] == [True]
    finally:
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_whatever_a_block_holds_is_read_or_refused(tmp_path_factory, content):
    place = tmp_path_factory.getbasetemp() / "any-block.index"
    place.write_bytes(tf_bundle.table(content))
    with pytest.raises(CannotJudge, match=r"any-block\.index: "):
        tf_index.read(place)


# The data file.


def test_a_data_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "cut"
    path.write_bytes(DATA.read_bytes()[:-4])
    with pytest.raises(
        CannotJudge, match=r"cut: 3816444 bytes, but model\.ckpt\.index says that variable"
    ):
        tf_variables.read(INDEX, path)


def test_a_data_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CannotJudge, match="gone: cannot be read"):
        tf_variables.read(INDEX, tmp_path / "gone")


def test_a_flipped_bit_is_found_in_the_first_and_in_the_last_step(tmp_path, monkeypatch):
    """A tensor's checksum is taken in steps, of which the last one is shorter."""
    monkeypatch.setattr(tf_variables, "STEP", 1000)
    tensor = tf_index.read(INDEX)["h2/mlp/c_fc/w"]
    assert tensor.size % 1000
    path, good = tmp_path / "flipped", DATA.read_bytes()
    assert tf_variables.read(INDEX, DATA)
    for at in (tensor.offset, tensor.offset + tensor.size - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(CannotJudge, match=r"flipped: variable model/h2/mlp/c_fc/w .* \(1 in all\)"):
            tf_variables.read(INDEX, path)


def test_arrays_cannot_be_written_to_and_stay_those_of_the_file_that_was_opened(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA.read_bytes())
    found = tf_variables.read(INDEX, path)
    with pytest.raises(ValueError, match="read-only"):
        found["ln_f/g"][0] = 1
    path.unlink()
    path.write_bytes(bytes(DATA.stat().st_size))
    assert found["ln_f/g"].any()
