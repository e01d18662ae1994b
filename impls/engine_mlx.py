"""MLX: GPT-2 in its array operations, with its fused layer norm and attention; every tap.

Needs mlx and NumPy; on Linux the extra mlx[cpu] brings the processor's kernels. MLX evaluates lazily:
numpy() waits. The cache is a pair of arrays for each layer, grown by concatenation.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    params: dict  # checkpoint name -> array
    hparams: object


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    mx.set_default_device(mx.cpu)
    return Model({name: mx.array(w) for name, w in params.items()}, hparams)


def numpy(x):
    return np.array(x)


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them.

    The cache has k and v of every layer, each [batch, n_head, n_past + n, head].
    """
    p, hparams = model
    tokens = np.asarray(tokens)
    n_past = past[0][0].shape[2] if past else 0
    refuse_bad_tokens(tokens, n_past, hparams)

    def seen(name, x):
        if tap:
            tap(name, x)
        return x

    def norm(name, x):
        return seen(name, mx.fast.layer_norm(x, p[f"{name}/g"], p[f"{name}/b"], 1e-5))

    def linear(name, x):
        return seen(name, mx.addmm(p[f"{name}/b"], x, p[f"{name}/w"]))

    positions = mx.arange(n_past, n_past + tokens.shape[1])
    x = seen("embed", p["wte"][mx.array(tokens)] + p["wpe"][positions])
    present = []
    for i in range(hparams.n_layer):
        h = f"h{i}"
        qkv = linear(f"{h}/attn/c_attn", norm(f"{h}/ln_1", x))
        heads, kv = attention(qkv, past[i] if past else None, hparams.n_head)
        present.append(kv)
        x = seen(f"{h}/resid_mid", x + linear(f"{h}/attn/c_proj", seen(f"{h}/attn/heads", heads)))
        hidden = nn.gelu_approx(linear(f"{h}/mlp/c_fc", norm(f"{h}/ln_2", x)))  # the tanh form
        x = seen(h, x + linear(f"{h}/mlp/c_proj", seen(f"{h}/mlp/gelu", hidden)))
    return norm("ln_f", x) @ p["wte"].T, present  # the head is tied to the embedding


def attention(qkv, past, n_head):
    """Heads [batch, n, n_embd] of qkv [batch, n, 3 * n_embd] after past, and keys and values so far."""
    batch, n, width = qkv.shape
    # q, k, v, each [batch, n_head, n, head]
    q, k, v = qkv.reshape(batch, n, 3, n_head, width // 3 // n_head).transpose(2, 0, 3, 1, 4)
    if past:
        k, v = mx.concatenate([past[0], k], axis=2), mx.concatenate([past[1], v], axis=2)
    # "causal" aligns the last query with the last key
    heads = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")
    return heads.transpose(0, 2, 1, 3).reshape(batch, n, width // 3), (k, v)


def refuse_bad_tokens(tokens, n_past, hparams):
    """MLX checks no index, so this guard is ours."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")
