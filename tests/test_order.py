"""Weights in the memory order that an implementation asks for, and the files that hold them."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model import weight_layout

TURNED = SimpleNamespace(ORDER="F")
RNG = np.random.default_rng(0)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors_mmap.write(path, {name: drawn(*shape) for name, shape in SHAPES.items()})
    return path


SHAPES = {
    "wte": (64, 16),
    "h0/attn/c_attn/w": (16, 48),
    "h0/attn/c_attn/b": (48,),
    "h0/mlp/c_fc/w": (16, 64),
}


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def given(weights, impl=TURNED, **known):
    return weight_layout.params_for(impl, weights, **known)


def test_either_order_has_the_same_names_shapes_and_values(weights):
    stored, plain, turned = (
        safetensors_mmap.read(weights),
        given(weights, SimpleNamespace()),
        given(weights),
    )
    assert list(plain) == list(turned) == list(stored)
    for name, value in stored.items():
        np.testing.assert_array_equal(plain[name], value)
        np.testing.assert_array_equal(turned[name], value)
        assert plain[name].flags.c_contiguous
        assert turned[name].flags.f_contiguous == (name.endswith("/w") or value.ndim == 1)


def test_nothing_is_copied_and_all_is_aligned(weights):
    for name, value in given(weights).items():
        assert not value.flags.owndata
        assert value.ctypes.data % safetensors_mmap.ALIGNED == 0, name


@pytest.mark.parametrize("known", [False, True])
def test_what_one_implementation_writes_into_another_does_not_see(weights, known):
    before = safetensors_mmap.read(weights)["h0/mlp/c_fc/w"].copy()
    given(weights)["h0/mlp/c_fc/w"][:] = 0
    np.testing.assert_array_equal(given(weights, known=known)["h0/mlp/c_fc/w"], before)


def other_weights(weights, turned):
    safetensors_mmap.write(weights, {name: drawn(*shape) for name, shape in SHAPES.items()})


def one_bit(weights, turned):
    turned.write_bytes(turned.read_bytes()[:-1] + b"\x01")


def sign_of_a_zero(weights, turned):
    """Equal as numbers, and yet not what was written."""
    params = {name: np.array(w) for name, w in safetensors_mmap.read(weights).items()}
    params["h0/mlp/c_fc/w"][3, 5] = -0.0
    safetensors_mmap.write(weights, params)


def cut_off(weights, turned):
    turned.write_bytes(turned.read_bytes()[:-4])


def one_weight_less(weights, turned):
    safetensors_mmap.write(turned, dict(list(safetensors_mmap.read(turned).items())[1:]))


def not_there(weights, turned):
    turned.unlink()


def integers(weights, turned):
    turned.write_bytes(turned.read_bytes().replace(b'"F32"', b'"I32"'))


def numbers(weights, turned):
    safetensors_mmap.write(turned, {name: np.array(1.0) for name in safetensors_mmap.read(turned)})


DAMAGES = [
    other_weights,
    one_bit,
    sign_of_a_zero,
    cut_off,
    one_weight_less,
    not_there,
    integers,
    numbers,
]


@pytest.mark.parametrize("change", DAMAGES)
def test_a_second_file_that_is_not_the_first_ones_is_made_anew(weights, change):
    params = {name: np.array(w) for name, w in safetensors_mmap.read(weights).items()}
    params["h0/mlp/c_fc/w"][3, 5] = 0
    safetensors_mmap.write(weights, params)
    given(weights)
    change(weights, weights.with_suffix(".turned.safetensors"))
    anew = given(weights)
    for name, value in safetensors_mmap.read(weights).items():
        assert (anew[name].dtype, anew[name].tobytes()) == (value.dtype, value.tobytes()), name


@pytest.mark.parametrize("known", [False, True])
def test_where_no_second_file_can_be_kept_the_weights_are_turned_in_memory(weights, known):
    """A folder stands for a disk that is full or not to be written to: root may write anywhere."""
    weights.with_suffix(".turned.safetensors").mkdir()
    for name, value in given(weights, known=known).items():
        np.testing.assert_array_equal(value, safetensors_mmap.read(weights)[name])
        assert value.flags.f_contiguous == (name.endswith("/w") or value.ndim == 1)


def test_an_order_that_there_is_not_is_refused(weights):
    with pytest.raises(CannotJudge, match="ORDER is 'f'; weights are given in order C or F"):
        given(weights, SimpleNamespace(ORDER="f"))


def test_a_second_file_that_is_right_is_left_alone(weights):
    given(weights)
    turned = weights.with_suffix(".turned.safetensors")
    before = turned.stat().st_ino
    given(weights)
    assert turned.stat().st_ino == before


def test_glances_keep_to_the_file_that_they_were_opened_on(weights):
    glances, before = (
        safetensors_mmap.MappedArrays(weights),
        safetensors_mmap.read(weights)["h0/mlp/c_fc/w"].copy(),
    )
    safetensors_mmap.write(weights, {"another": drawn(3), "h0/mlp/c_fc/w": drawn(16, 64)})
    np.testing.assert_array_equal(glances["h0/mlp/c_fc/w"], before)
    weights.unlink()
    np.testing.assert_array_equal(glances["h0/mlp/c_fc/w"], before)


@pytest.mark.parametrize("large", [0, safetensors_mmap.LARGE])
def test_what_is_written_the_safetensors_package_reads(tmp_path, monkeypatch, large):
    monkeypatch.setattr(safetensors_mmap, "LARGE", large)
    path = tmp_path / "x.safetensors"
    arrays = {
        "odd": drawn(3),
        "ids": np.arange(5, dtype=np.int32)[None],
        "turned": drawn(4, 6).T,
        "wide": np.arange(2.0),
        "long": np.arange(3),
        "none": np.zeros((0, 7), np.float32),
        "scalar": np.array(2.5),
        "é\n": drawn(2, 2, 2)[:, ::2],
    }
    safetensors_mmap.write(path, arrays)
    for found in (load_file(path), safetensors_mmap.read(path)):
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, strict=True)
    assert all(value.ctypes.data % value.itemsize == 0 for value in safetensors_mmap.read(path).values())


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.dtype(">f4")])
def test_what_could_not_be_read_again_is_not_written(tmp_path, dtype):
    with pytest.raises(CannotJudge, match=r"'x' is .*; supported are F64, F32, I32, I64"):
        safetensors_mmap.write(tmp_path / "x.safetensors", {"x": np.zeros(2, dtype)})
    assert not list(tmp_path.iterdir())
