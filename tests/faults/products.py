"""Mistakes of the matrix products: their bias, and the layout of their weights."""

from .plain import Plain
from .shelf import fault

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
