"""Ten mistakes that are each made in one place, for a model of the official shape."""

import functools

from .activation import erf_gelu
from .attention import no_scale, swapped
from .layer_norm import without_bias
from .plain import Plain
from .precision import narrow_linear
from .products import no_bias
from .rounding import TF32
from .shelf import IN_LAYER, Fault, only_at
from .weights import scaled


def in_layer(name, place, diagnosis, **replaced):
    IN_LAYER.append(Fault(name, frozenset([place]), diagnosis, frozenset(["local"]), replaced))


def made_at(place, diagnosis, operation, function, name=""):
    """An operation that is wrong in one place alone."""
    in_layer(name or diagnosis, place, diagnosis, **{operation: only_at(place, operation, function)})


def transposed(x, w, b, at):
    return x @ w.T + b


def only_the_branch(x, branch, at):
    return branch


made_at(
    "h0/ln_1", "epsilon_1e-06", "layer_norm", functools.partial(Plain.layer_norm, eps=1e-6), "epsilon"
)
made_at("h7/ln_2", "norm_without_bias", "layer_norm", without_bias)
made_at("h3/mlp/c_fc", "no_bias", "linear", no_bias)
made_at("h2/attn/c_proj", "transposed", "linear", transposed)
made_at("h5/attn/c_attn", "tf32_inputs", "linear", functools.partial(narrow_linear, bits=TF32))
made_at("h6/attn/heads", "no_scale", "scores", no_scale)
made_at("h10/attn/heads", "heads_swapped", "merge_heads", swapped)
made_at("h11/mlp/gelu", "erf_gelu", "gelu", erf_gelu)
made_at("h4", "residual_missing", "add", only_the_branch)
in_layer("one_weight", "h9/mlp/c_proj", "one_weight", converted=scaled("h9/mlp/c_proj/w"))
