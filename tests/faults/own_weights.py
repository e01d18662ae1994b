"""Mistakes of weights(model): weights that are not declared, that are another's, or that nobody uses."""

import numpy as np

from .plain import Plain
from .products import PRODUCTS
from .shelf import BLACK_BOX, altered, put
from .weights import in_groups

int8 = altered("converted", lambda p: in_groups(p, 127, 32, np.float16))


def those_of(self, model):
    """What it multiplies with."""
    return model.params


put(
    "own_weights_undeclared",
    converted=int8,
    weights=those_of,
    blame="weights",
    trips="own_weights logits",
)
put(
    "own_weights_undeclared_in_a_black_box",
    converted=int8,
    weights=those_of,
    **BLACK_BOX,
    blame="weights",
    trips="own_weights logits",
)


def before_quantising(params, hparams, dtype):
    given = {name: np.array(w, dtype) for name, w in params.items()}
    return int8(params, hparams, dtype) | {"given": given}


def given(self, model):
    """The checkpoint's, which it does not multiply with."""
    return model.params["given"]


LIES = {"converted": before_quantising, "weights": given, "WEIGHTS": "quantized"}
put(
    "own_weights_are_said_to_be_the_checkpoints",
    **LIES,
    blame=PRODUCTS,
    diagnosis="int8_weights",
    trips="local logits",
)
put(
    "own_weights_are_said_to_be_the_checkpoints_in_a_black_box",
    **LIES,
    **BLACK_BOX,
    blame="logits",
    diagnosis="int8_weights",
    trips="logits",
)


def rounded(self, model):
    """In 4 bits, which it does not multiply with."""
    return in_groups({name: w.copy() for name, w in model.params.items()}, 7, 32, np.float16)


put(
    "own_weights_that_are_not_used",
    weights=rounded,
    WEIGHTS="quantized",
    blame=PRODUCTS,
    trips="local logits",
)


def turned(p):
    p["h1/attn/c_proj/w"] = p["h1/attn/c_proj/w"].T.copy()
    return p


put(
    "own_weights_of_no_quantising",
    converted=altered("converted", turned),
    weights=those_of,
    WEIGHTS="quantized",
    blame="weights",
    trips="own_weights logits",
)


def of_one_size(params, hparams, dtype):
    """Rows in another order, in models of one size."""
    p = Plain.converted(params, hparams, dtype)
    if hparams.n_embd == 192:
        p["h0/mlp/c_fc/w"] = np.roll(p["h0/mlp/c_fc/w"], 32, axis=0)
    return in_groups(p, 127, 32, np.float16)


put(
    "own_weights_of_another_size_are_wrong",
    converted=of_one_size,
    weights=those_of,
    WEIGHTS="quantized",
    blame="sizes",
    trips="sizes",
)
