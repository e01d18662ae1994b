"""Mistakes of precision: inputs, sums or results of products that are narrower than declared."""

import functools

from .attention import HEADS
from .plain import Plain
from .products import PRODUCTS
from .rounding import BFLOAT16, TF32, cut, through_float16
from .shelf import fault, put

# -- inputs


def narrow_linear(x, w, b, at, bits):
    return cut(x, bits) @ cut(w, bits) + b


def narrow_head(x, wte, at, bits):
    return cut(x, bits) @ cut(wte, bits).T


def fused_linear(x, w, b, at, bits):
    """What made the input is fused with the product: so it is not quite what the tap has."""
    return narrow_linear(x * (1 + 2**-23), w, b, at, bits)


for _name, _bits in {"tf32": TF32, "bfloat16": BFLOAT16}.items():
    put(
        f"{_name}_inputs",
        linear=functools.partial(narrow_linear, bits=_bits),
        head=functools.partial(narrow_head, bits=_bits),
        blame=f"{PRODUCTS} logits",
        diagnosis=f"{_name}_inputs",
        trips="precision local",
    )
    put(
        f"{_name}_inputs_fused_with_what_made_them",  # as XLA does it on a GPU
        linear=functools.partial(fused_linear, bits=_bits),
        blame=PRODUCTS,
        diagnosis=f"{_name}_inputs",
        trips="precision local",
    )


def tf32_linear(x, w, b, at):
    return Plain.linear(x, w, b, at) if x.size == x.shape[-1] else narrow_linear(x, w, b, at, TF32)


def tf32_head(x, wte, at):
    return Plain.head(x, wte, at) if x.size == x.shape[-1] else narrow_head(x, wte, at, TF32)


put(
    "tf32_but_for_single_rows",
    linear=tf32_linear,
    head=tf32_head,  # as cuBLAS has it
    blame=f"{PRODUCTS} logits",
    diagnosis="tf32_inputs",
    trips="precision local",
)


@fault("float16_inputs", replaces="linear", blame=PRODUCTS, trips="precision")
def float16_inputs(x, w, b, at):
    """No diagnosis: where nothing underflows, float16 factors are TF32 factors."""
    return Plain.linear(through_float16(x), through_float16(w), b, at)


# -- sums


def narrow_sums(x, w, b, at, bits):
    y = 0 * (x[..., :1] * b)
    for i in range(0, len(w), 8):
        y = cut(y + x[..., i : i + 8] @ w[i : i + 8], bits)
    return y + b


for _name, _bits in {"bfloat16": BFLOAT16, "float16": TF32}.items():
    _linear = functools.partial(narrow_sums, bits=_bits)
    put(f"sums_in_{_name}", linear=_linear, blame=PRODUCTS, trips="precision")

# -- results


@fault("residual_in_bfloat16", replaces="residual", blame="h? h*/ln_2?")
def residual_in_bfloat16(self, x, branch, at):
    """In the middle of a block the tap has it before it is rounded."""
    if at.name.endswith("resid_mid"):
        return cut(Plain.residual(self, x, branch, at), BFLOAT16)
    return self.show(cut(self.add(x, branch, at), BFLOAT16), at)


def float16_result_of_c_fc(x, w, b, at):
    y = Plain.linear(x, w, b, at)
    return through_float16(y) if at.name.endswith("c_fc") else y


put(
    "float16_result",
    linear=float16_result_of_c_fc,
    blame="h*/mlp/c_fc",
    diagnosis="float16_result",
    trips="precision",
)


@fault("bfloat16_result", alters="attention", blame=HEADS, diagnosis="bfloat16_result")
def bfloat16_result(heads):
    return cut(heads, BFLOAT16)
