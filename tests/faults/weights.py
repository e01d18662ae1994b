"""Mistakes in the weights: single ones, rows and columns, all of them rounded."""

import numpy as np

from .plain import Plain
from .products import PRODUCTS
from .rounding import BFLOAT16, cut, through_float16
from .shelf import BLACK_BOX, altered, fault, put


def scaled(name, place=None):
    """One weight is 1 % too large: the greatest, if none is chosen, for near 0 it is below rounding."""

    def change(p):
        w = p[name]
        w[place or np.unravel_index(np.abs(w).argmax(), w.shape)] *= 1.01
        return p

    return altered("converted", change)


for _name, _place in {
    "h1/attn/c_attn/w": (5, 300),
    "h2/attn/c_proj/w": (100, 3),
    "h0/mlp/c_fc/w": (77, 400),
    "h3/mlp/c_proj/w": None,
}.items():
    put(
        f"one_percent_of_{_name.replace('/', '_')}",
        converted=scaled(_name, _place),
        blame=_name.removesuffix("/w"),
        diagnosis="one_weight",
        trips="local",
    )
put("one_percent_of_ln_g", converted=scaled("h2/ln_2/g", (17,)), blame="h2/ln_2")
put("one_percent_of_wpe", converted=scaled("wpe", (200, 9)), blame="embed", trips="weights")
put("one_percent_of_wte", converted=scaled("wte", (901, 9)), blame="embed logits", trips="weights")


@fault(
    "one_percent_in_the_very_array_that_was_given",
    replaces="converted",
    blame="h1/mlp/c_fc",
    diagnosis="one_weight",
    trips="local",
)
def in_the_array_that_was_given(params, hparams, dtype):
    """The array is mapped from a file: a judge that used the same mapping would see nothing wrong."""
    params["h1/mlp/c_fc/w"][77, 400] *= 1.01
    return Plain.converted(params, hparams, dtype)


@fault(
    "one_bias_of_c_attn", alters="converted", blame="h1/attn/c_attn", diagnosis="one_bias", trips="local"
)
def one_bias_of_c_attn(p):
    """At a single position it could be any weight of that column."""
    p["h1/attn/c_attn/b"][5] += 0.01
    return p


def one_position(p):
    p["wpe"][3, 9] += 0.1
    return p


put(
    "position_wrong_in_a_black_box",  # which prompts of one token do not have
    converted=altered("converted", one_position),
    **BLACK_BOX,
    blame="logits",
    trips="logits lengths",
)


@fault("weight_rows_exchanged", alters="converted", blame="h1/mlp/c_fc", diagnosis="inputs_swapped")
def rows_exchanged(p):
    p["h1/mlp/c_fc/w"][[3, 90]] = p["h1/mlp/c_fc/w"][[90, 3]]
    return p


@fault(
    "weight_columns_exchanged", alters="converted", blame="h1/attn/c_attn", diagnosis="columns_swapped"
)
def columns_exchanged(p):
    for leaf in "wb":
        array = p[f"h1/attn/c_attn/{leaf}"]
        array[..., [3, 90]] = array[..., [90, 3]]
    return p


@fault("vocabulary_rows_exchanged", alters="converted", blame="embed logits")
def vocabulary_rows_exchanged(p):
    p["wte"][[20, 30]] = p["wte"][[30, 20]]
    return p


def matrices(p, change):
    return p | {name: change(w) for name, w in p.items() if name.endswith("/w")}


@fault(
    "bfloat16_weights",
    alters="converted",
    blame=PRODUCTS,
    diagnosis="bfloat16_weights",
    trips="precision",
)
def bfloat16_weights(p):
    return matrices(p, lambda w: cut(w, BFLOAT16).astype(w.dtype))


@fault("float16_weights", alters="converted", blame=PRODUCTS, diagnosis="float16_weights")
def float16_weights(p):
    return matrices(p, through_float16)


@fault("int8_weights", alters="converted", blame=PRODUCTS, diagnosis="int8_weights")
def int8_weights(p):
    def quantised(w):
        scale = np.abs(w).max(axis=0, keepdims=True) / 127
        return np.round(w / scale) * scale

    return matrices(p, quantised)


@fault("int8_weights_by_reciprocals", alters="weights", blame=PRODUCTS, diagnosis="int8_weights")
def int8_weights_by_reciprocals(p):
    """As torchao has it. Half way, w * (1 / scale) is rounded to the other neighbour."""

    def quantised(w):
        scale = np.abs(w).max(axis=0, keepdims=True) / np.float32(127.5)
        return np.clip(np.round(w * (1 / scale)), -128, 127) * scale

    return matrices(p, quantised)


def in_groups(p, most, group, scales):
    """Each w in groups of the inputs of an output, with a scale of its own, as ggml has it."""
    for name, w in p.items():
        if name.endswith("/w"):
            parts = w.T.reshape(w.shape[1], -1, group)
            scale = (np.abs(parts).max(-1, keepdims=True) / most).astype(scales).astype(np.float32)
            whole = np.clip(np.round(parts / scale), -int(most + 0.5), int(most))
            p[name] = np.ascontiguousarray((whole * scale).reshape(w.shape[::-1]).T)
    return p


for _name, _most, _group, _scales in (
    ("int8_weights_in_groups_of_32", 127, 32, np.float16),
    ("int8_weights_in_groups_of_64_of_127.5", 127.5, 64, np.float32),
    ("int4_weights_in_groups_of_32", 7, 32, np.float16),
    ("int4_weights_in_groups_of_64_of_8", 8, 64, np.float16),
):
    put(
        _name,
        converted=altered("converted", lambda p, m=_most, g=_group, s=_scales: in_groups(p, m, g, s)),
        blame=PRODUCTS,
        diagnosis=f"{_name[:4]}_weights",
        trips="local precision",
    )


put(
    "int8_weights_in_groups_in_a_black_box",
    converted=altered("converted", lambda p: in_groups(p, 127, 32, np.float16)),
    blame="logits",
    diagnosis="int8_weights",
    **BLACK_BOX,
)
