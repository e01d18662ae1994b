"""CTranslate2: its Transformer decoder, fed through its own model format. A black box: no taps.

Needs ctranslate2 and NumPy. The model is written to a temporary folder, which is removed once it is
loaded. Two of the engine's functions are verified: ``forward_batch``, which has no cache, so "past" is
the tokens so far and decode computes them again; and ``generate_batch``, which has one.
"""

import tempfile
from typing import NamedTuple

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

TAPS = ()  # a black box
# CTranslate2's int8 is another model, not a rounding of this one, so it is not offered
DTYPES = ("float32",)


class Model(NamedTuple):
    generator: ctranslate2.Generator
    hparams: object


def targets():
    return [("cpu", dtype) for dtype in DTYPES]


def load(params, hparams, *, device, dtype):
    with tempfile.TemporaryDirectory(prefix="parity-ctranslate2-") as folder:
        written(params, hparams).save(folder)
        return Model(ctranslate2.Generator(folder, device=device, compute_type=dtype), hparams)


def written(params, hparams):
    """The model as CTranslate2's specification; its linear weights are [n_out, n_in]."""
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        hparams.n_layer,
        hparams.n_head,
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
    )

    def norm(place, scope):
        place.gamma, place.beta = np.array(params[f"{scope}/g"]), np.array(params[f"{scope}/b"])

    def linear(place, scope):
        place.weight = np.ascontiguousarray(params[f"{scope}/w"].T)
        place.bias = np.array(params[f"{scope}/b"])

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = np.array(params["wte"])
    decoder.position_encodings.encodings = np.array(params["wpe"])
    decoder.projection.weight = decoder.embeddings.weight  # the head is tied to the embedding
    for i, layer in enumerate(decoder.layer):
        norm(layer.self_attention.layer_norm, f"h{i}/ln_1")
        linear(layer.self_attention.linear[0], f"h{i}/attn/c_attn")
        linear(layer.self_attention.linear[1], f"h{i}/attn/c_proj")
        norm(layer.ffn.layer_norm, f"h{i}/ln_2")
        linear(layer.ffn.linear_0, f"h{i}/mlp/c_fc")
        linear(layer.ffn.linear_1, f"h{i}/mlp/c_proj")
    norm(decoder.layer_norm, "ln_f")
    spec.register_vocabulary([str(token) for token in range(hparams.n_vocab)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize()
    return spec


def numpy(x):
    return np.array(x)


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and all tokens so far."""
    tokens = np.asarray(tokens)
    refuse_bad_tokens(tokens, 0 if past is None else past.shape[1], model.hparams)
    history = tokens if past is None else np.concatenate([past, tokens], axis=1)
    view = model.generator.forward_batch(history.tolist())
    return np.array(view)[:, -tokens.shape[1] :], history


def refuse_bad_tokens(tokens, n_past, hparams):
    """CTranslate2 checks neither ids nor length, so this guard is ours."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation int32 [batch, n_new] of tokens [batch, n] by the engine's loop and cache."""
    tokens = np.asarray(tokens)
    refuse_bad_tokens(tokens, n_new - 1, model.hparams)
    prompts = [[str(token) for token in row] for row in tokens.tolist()]
    results = model.generator.generate_batch(
        prompts,
        max_length=n_new,
        sampling_topk=1,
        end_token=[],  # no token ends the text
        include_prompt_in_result=False,
    )
    return np.array([result.sequences_ids[0] for result in results], np.int32)
