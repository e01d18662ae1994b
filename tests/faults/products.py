"""Mistakes of the matrix products: their bias, and the layout of their weights."""

import functools

import numpy as np

from .plain import Plain
from .shelf import BLACK_BOX, fault, put

PRODUCTS = "h*/attn/c_attn h*/attn/c_proj h*/mlp/c_fc h*/mlp/c_proj"


@fault("no_bias", replaces="linear", blame=PRODUCTS, diagnosis="no_bias")
def no_bias(x, w, b, at):
    return x @ w


@fault("bias_twice", replaces="linear", blame=PRODUCTS, diagnosis="bias_twice")
def bias_twice(x, w, b, at):
    return x @ w + 2 * b


@fault(
    "transposed_c_proj",
    replaces="linear",
    blame="h*/attn/c_proj",
    diagnosis="transposed",
    trips="logits activations greedy",
)
def transposed_c_proj(x, w, b, at):
    return Plain.linear(x, w.T if at.name.endswith("attn/c_proj") else w, b, at)


@fault("reshaped_c_attn", replaces="linear", blame="h*/attn/c_attn", diagnosis="transposed")
def reshaped_c_attn(x, w, b, at):
    """Reads w [n_in, n_out] as if its memory layout were [n_out, n_in]."""
    return Plain.linear(x, w.reshape(w.shape[::-1]).T if at.name.endswith("c_attn") else w, b, at)


def int8(x, axis):
    scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(127)
    return np.round(x * (1 / scale)) * scale  # as engines do it: half way, it is not x / scale


def uint8(x, axis):
    """Around a zero point, as ONNX's DynamicQuantizeLinear."""
    low, high = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    scale = (high - low) / np.float32(255)
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def int8_linear(x, w, b, at, axis, inputs=int8, outputs=0):
    """Both factors in int8: the inputs with scales along axis, the weights with one for each column."""
    return inputs(x, axis) @ int8(w, outputs) + b


put(
    "int8_inputs",
    linear=lambda x, w, b, at: int8(x, -1) @ w + b,
    blame=PRODUCTS,
    diagnosis="int8_inputs",
    trips="local precision",
)
put(
    "int8_products",
    linear=functools.partial(int8_linear, axis=-1),
    blame=PRODUCTS,
    diagnosis="int8_products",
    trips="local precision",
)
put(
    "int8_products_by_tensor",
    linear=functools.partial(int8_linear, axis=None),
    blame=PRODUCTS,
    diagnosis="int8_products_by_tensor",
    trips="local precision causality",
)
put(
    "uint8_inputs_by_tensor",
    linear=functools.partial(int8_linear, axis=None, inputs=uint8, outputs=None),
    blame=PRODUCTS,
    diagnosis="int8_products_by_tensor",
    trips="local precision causality batch",
)
put(
    "int8_products_in_a_black_box",  # as CTranslate2 has it: wte too, in the embedding and in the head
    linear=functools.partial(int8_linear, axis=-1),
    embed=lambda tokens, wte, wpe, at: Plain.embed(tokens, int8(wte, 1), wpe, at),
    head=lambda x, wte, at: int8(x, -1) @ int8(wte, 1).T,
    blame="logits",
    diagnosis="int8_products",
    **BLACK_BOX,
)


def strassen(x, w, levels):
    """x [n, n_in] @ w [n_in, n_out] in seven products of halves, where everything is even."""
    if not levels or len(x) % 2 or len(w) % 2 or w.shape[1] % 2:
        return x @ w
    (a, b), (c, d) = (np.split(half, 2, axis=1) for half in np.split(x, 2))
    (e, f), (g, h) = (np.split(half, 2, axis=1) for half in np.split(w, 2))
    pairs = (
        (a, f - h),
        (a + b, h),
        (c + d, e),
        (d, g - e),
        (a + d, e + h),
        (b - d, g + h),
        (a - c, e + f),
    )
    p1, p2, p3, p4, p5, p6, p7 = (strassen(*pair, levels - 1) for pair in pairs)
    return np.block([[p5 + p4 - p2 + p6, p1 + p2], [p3 + p4, p1 + p5 - p3 - p7]])


def fast_linear(x, w, b, at, levels):
    return strassen(x.reshape(-1, len(w)), w, levels).reshape(*x.shape[:-1], -1) + b


for _levels in (1, 2):
    put(
        f"strassen_of_{_levels}_levels",  # lawful, but beyond the rounding of each element
        linear=functools.partial(fast_linear, levels=_levels),
        blame=" ".join(f"{product}?" for product in PRODUCTS.split()),
        diagnosis="fast_product",
        trips="local",
    )


@fault("logits_shifted", alters="head", blame="logits", diagnosis="logits_shifted", trips="local")
def shifted(logits):
    return logits + np.float32(0.5)
