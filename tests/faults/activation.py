"""Mistakes of the activation: another function instead of tanh GELU, or other constants in it."""

import functools
import math

import numpy as np

from .plain import Plain
from .rounding import BFLOAT16, TF32, cut, through_float16
from .shelf import fault, only_at, put

GELU = "h*/mlp/gelu"


@fault("sigmoid_gelu", replaces="gelu", blame=GELU, diagnosis="sigmoid_gelu", trips="local")
def sigmoid_gelu(x, at):
    return x / (1 + np.exp(-1.702 * x))


@fault("relu", replaces="gelu", blame=GELU, diagnosis="relu", trips="local")
def relu(x, at):
    return np.maximum(x, 0)


@fault("silu", replaces="gelu", blame=GELU, diagnosis="silu", trips="local")
def silu(x, at):
    return x / (1 + np.exp(-x))


@fault("gelu_skipped", replaces="gelu", blame=GELU, diagnosis="gelu_skipped", trips="local")
def skipped(x, at):
    return x


ROOT = math.sqrt(2 / math.pi)


def tanh_gelu(x, at, half=0.5, root=ROOT, cubic=0.044715):
    """The right function, with constants that a fault can change."""
    return half * x * (1 + np.tanh(root * (x + cubic * (x * x * x))))


for _name, _constant in {
    "gelu_without_half": {"half": 1.0},
    "gelu_cubic_missing": {"cubic": 0.0},
    "gelu_cubic_0.44715": {"cubic": 0.44715},
    "gelu_cubic_0.0447": {"cubic": 0.0447},
    "gelu_root_0.8": {"root": 0.8},
    "gelu_root_0.7979": {"root": 0.7979},
}.items():
    _gelu = functools.partial(tanh_gelu, **_constant)
    put(_name, gelu=_gelu, blame=GELU, diagnosis=_name, trips="local")


@fault("erf_gelu", replaces="gelu", blame=GELU, diagnosis="erf_gelu", trips="logits activations local")
def erf_gelu(x, at):
    from scipy.special import erf  # only where it is planted: a worker imports all faults

    return (0.5 * x * (1 + erf(x.astype(float) / math.sqrt(2)))).astype(x.dtype)


put(
    "gelu_in_one_layer_only",
    gelu=only_at("h2/mlp/gelu", "gelu", erf_gelu),
    blame="h2/mlp/gelu",
    diagnosis="erf_gelu",
)


@fault("gelu_float16_table", replaces="gelu", blame=GELU, diagnosis="gelu_float16_table")
def float16_table(x, at):
    exact = tanh_gelu(through_float16(x).astype(float), at)
    return through_float16(exact).astype(x.dtype)


@fault("tanh_as_a_quotient_of_exps", replaces="gelu", blame="overflow", trips="overflow")
def tanh_by_exps(x, at):
    with np.errstate(all="ignore"):
        e = np.exp(2 * ROOT * (x + 0.044715 * x * x * x))
        return 0.5 * x * (1 + (e - 1) / (e + 1))


def weights_and_numpy_raises(params, hparams, dtype):
    np.seterr(all="raise")
    return Plain.converted(params, hparams, dtype)


def softmax_that_may_underflow(scores, at):
    with np.errstate(under="ignore"):
        return Plain.softmax(scores, at)


put(
    "gelu_wrong_and_numpy_raises",  # which must not stop the verdict's own arithmetic
    converted=weights_and_numpy_raises,
    softmax=softmax_that_may_underflow,
    gelu=functools.partial(tanh_gelu, cubic=0.05),
    blame=GELU,
    trips="local",
)


def late_bias(x, at):
    """Of c_fc, whose tap is as it should be."""
    [b] = at._replace(name=at.name.replace("gelu", "c_fc")).weights("b")
    return Plain.gelu(x - b, at) + b


put("bias_after_gelu", gelu=late_bias, blame=GELU, diagnosis="bias_after_gelu", trips="local")


@fault(
    "gelu_cut_off_at_-4",
    replaces="gelu",
    blame=f"{GELU} h?/mlp/gelu?",
    diagnosis="gelu_cut_off",
    trips="local",
)
def cut_off(x, at):
    return np.where(x < -4, np.float32(0), Plain.gelu(x, at))


@fault("gelu_cut_off_at_3", replaces="gelu", blame=GELU, diagnosis="gelu_cut_off", trips="local")
def cut_off_above(x, at):
    return np.where(x > 3, x, Plain.gelu(x, at))


@fault(
    "gelu_in_the_memory_order_of_another",
    replaces="gelu",
    blame=GELU,
    diagnosis="memory_order",
    trips="local",
)
def in_wrong_order(x, at):
    return Plain.gelu(np.asfortranarray(x).ravel("K").reshape(x.shape), at)


def coarse_tanh(x, at, cast):
    return x * (1 + cast(np.tanh(ROOT * (x + 0.044715 * (x * x * x))))) / 2


for _name, _bits in {"tf32": TF32, "bfloat16": BFLOAT16}.items():
    put(
        f"tanh_of_{_name}",
        gelu=functools.partial(coarse_tanh, cast=lambda t, bits=_bits: cut(t, bits)),
        blame=GELU,
        diagnosis="gelu_coarse_tanh",
        trips="local",
    )


@fault("tanh_in_float16", replaces="gelu", blame=GELU, diagnosis="gelu_coarse_tanh", trips="local")
def tanh_in_float16(x, at):
    half = x.astype(np.float16)
    with np.errstate(over="ignore"):
        t = np.tanh(np.float16(ROOT) * (half + np.float16(0.044715) * half * half * half))
    return np.float32(0.5) * x * (1 + t.astype(x.dtype))
