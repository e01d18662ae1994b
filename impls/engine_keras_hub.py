"""keras-hub: its GPT2CausalLM unchanged, on the Keras backend that KERAS_BACKEND names (default torch).

Needs keras-hub, the backend and NumPy. The model is built from sizes alone: no presets, no hub. The
cache is keras-hub's own, with n_ctx positions from the start. To tap a layer, its ``call`` is replaced
for one pass by a function that reports the result.
"""

import os
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras  # the import chooses the backend
import keras_hub

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    net: keras_hub.models.GPT2CausalLM
    hparams: object


class Cache(NamedTuple):
    places: object  # [batch, n_layer, 2, n_ctx, n_head, head]
    filled: int


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=hparams.n_vocab,
        num_layers=hparams.n_layer,
        num_heads=hparams.n_head,
        hidden_dim=hparams.n_embd,
        intermediate_dim=4 * hparams.n_embd,
        max_sequence_length=hparams.n_ctx,
        dropout=0.0,
        dtype=dtype,
    )
    for variable in backbone.weights:
        value = ours(variable.path, params)
        variable.assign(value.reshape(variable.shape))
    return Model(keras_hub.models.GPT2CausalLM(backbone), hparams)


LEAVES = {"kernel": "w", "bias": "b", "gamma": "g", "beta": "b"}
SCOPES = {
    "self_attention/attention_output": "attn/c_proj",
    "self_attention_layer_norm": "ln_1",
    "feedforward_layer_norm": "ln_2",
    "feedforward_intermediate_dense": "mlp/c_fc",
    "feedforward_output_dense": "mlp/c_proj",
}


def ours(path, params):
    """Our weight for the path of a variable, such as transformer_layer_0/self_attention/query/kernel."""
    scope, _, leaf = path.rpartition("/")
    if scope.endswith("token_embedding"):
        return params["wte"]
    if scope.endswith("position_embedding"):
        return params["wpe"]
    if scope == "layer_norm":
        return params[f"ln_f/{LEAVES[leaf]}"]
    layer, _, place = scope.partition("/")
    h = f"h{layer.removeprefix('transformer_layer_')}"
    if place in SCOPES:
        return params[f"{h}/{SCOPES[place]}/{LEAVES[leaf]}"]
    third = ("query", "key", "value").index(place.removeprefix("self_attention/"))
    return np.split(params[f"{h}/attn/c_attn/{LEAVES[leaf]}"], 3, axis=-1)[third]


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    hparams = model.hparams
    tokens = np.asarray(tokens)
    filled = 0 if past is None else past.filled
    refuse_bad_tokens(tokens, filled, hparams)
    batch, n = tokens.shape
    if past is None:
        head = hparams.n_embd // hparams.n_head
        shape = (batch, hparams.n_layer, 2, hparams.n_ctx, hparams.n_head, head)
        past = Cache(keras.ops.zeros(shape, dtype=model.net.compute_dtype), 0)
    with ExitStack() as listening:
        if tap:
            listen(model.net.backbone, tap, listening)
        logits, _, places = model.net.call_with_cache(
            keras.ops.convert_to_tensor(tokens), past.places, filled
        )
    return keras.ops.stop_gradient(logits), Cache(keras.ops.stop_gradient(places), filled + n)


def listen(net, tap, listening):
    """Replace the methods that compute tapped results, until the ExitStack listening is closed."""

    def replace(owner, method, after):
        original = getattr(owner, method)

        def called(*args, **kwargs):
            result = original(*args, **kwargs)
            after(args, result)
            return result

        setattr(owner, method, called)
        listening.callback(setattr, owner, method, original)

    def result(name, args, out):
        tap(name, out[0] if isinstance(out, tuple) else out)

    def norm(name, stream, args, out):
        tap(stream, args[0])
        tap(name, out)

    def activation(scope, args, out):
        tap(f"{scope}/mlp/c_fc", args[0])
        tap(f"{scope}/mlp/gelu", out)

    replace(net.embeddings_add, "call", partial(result, "embed"))
    for i, layer in enumerate(net.transformer_layers):
        h, attention = f"h{i}", layer._self_attention_layer
        thirds = []
        for dense_layer in (attention._query_dense, attention._key_dense, attention._value_dense):
            replace(dense_layer, "call", lambda args, out, thirds=thirds: thirds.append(flat(out)))

        def heads(args, out, h=h, thirds=thirds):
            tap(f"{h}/attn/c_attn", keras.ops.concatenate(thirds, axis=-1))
            tap(f"{h}/attn/heads", flat(out[0]))

        replace(attention, "_compute_attention", heads)
        replace(attention._output_dense, "call", partial(result, f"{h}/attn/c_proj"))
        replace(layer._self_attention_layer_norm, "call", partial(result, f"{h}/ln_1"))
        replace(layer._feedforward_layer_norm, "call", partial(norm, f"{h}/ln_2", f"{h}/resid_mid"))
        replace(layer._feedforward_intermediate_dense, "activation", partial(activation, h))
        replace(layer._feedforward_output_dense, "call", partial(result, f"{h}/mlp/c_proj"))
        replace(layer, "call", partial(result, h))
    replace(net.layer_norm, "call", partial(result, "ln_f"))


def flat(x):
    """[batch, n, n_head, head] as [batch, n, n_embd]."""
    return keras.ops.reshape(x, (*x.shape[:2], -1))


def refuse_bad_tokens(tokens, n_past, hparams):
    """keras-hub silently clips positions beyond its cache, so this guard is ours."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")
