"""Mistakes of a whole model that taps nothing: only its logits can tell them."""

import functools

import numpy as np

from .plain import Plain
from .rounding import BFLOAT16, TF32, cut
from .shelf import BLACK_BOX, altered, put


def turned(p):
    return p | {name: w.T.copy() for name, w in p.items() if name.endswith("attn/c_proj/w")}


put(
    "transposed_c_proj_in_a_black_box",
    converted=altered("converted", turned),
    **BLACK_BOX,
    blame="logits",
    diagnosis="transposed",
    trips="logits",
)


def less_the_greatest(logits):
    """As after a softmax that leaves its argument shifted: by another constant at each position."""
    return logits - logits.max(axis=-1, keepdims=True)


put(
    "logits_shifted_in_a_black_box",
    head=altered("head", less_the_greatest),
    **BLACK_BOX,
    blame="logits",
    diagnosis="logits_shifted",
    trips="logits",
)

# -- a coarser precision of everything


def factors(bits):
    """The factors of all products, in attention too, with fewer bits."""

    def narrow(x):
        return cut(np.asarray(x, np.float32), bits)

    return {
        "linear": lambda x, w, b, at: Plain.linear(narrow(x), narrow(w), b, at),
        "head": lambda x, wte, at: Plain.head(narrow(x), narrow(wte), at),
        "scores": lambda q, keys, at: Plain.scores(narrow(q), narrow(keys), at),
        "weigh": lambda probs, values, at: Plain.weigh(narrow(probs), narrow(values), at),
    }


def results(bits):
    """Weights, and the result of every operation, with fewer bits."""

    def narrow(x):
        return cut(np.asarray(x, np.float32), bits)

    def after(operation):
        right = getattr(Plain, operation)
        return functools.wraps(right)(lambda *given: narrow(right(*given)))

    operations = ("embed", "layer_norm", "linear", "scores", "softmax", "weigh", "add", "gelu", "head")
    weights = altered("converted", lambda p: {name: narrow(w) for name, w in p.items()})
    return {operation: after(operation) for operation in operations} | {"converted": weights}


for _name, _replaced in {
    "whole_tf32": factors(TF32),
    "whole_bfloat16_factors": factors(BFLOAT16),
    "whole_bfloat16": results(BFLOAT16),
    "whole_float16": results(TF32),
}.items():
    put(
        f"{_name}_in_a_black_box",
        **_replaced,
        **BLACK_BOX,
        blame="logits",
        diagnosis=_name,
        trips="logits",
    )
