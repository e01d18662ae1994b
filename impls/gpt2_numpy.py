"""GPT-2 in NumPy, to be read top to bottom as a forward pass.

Needs NumPy and nothing else: copy the file and it runs alone. Scalars are Python floats on
purpose: under NEP 50 an ``np.float64`` scalar (``np.sqrt(2 / np.pi)``, say) silently turns all
float32 work after it into float64.

Architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
Shapes in comments: batch, n (new tokens), n_past (cached tokens), head = n_embd / n_head.
"""

import math
from typing import NamedTuple

import numpy as np

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    params: dict  # checkpoint name -> array, w as [n_in, n_out]
    hparams: object
    dtype: str


def targets():
    return [("cpu", "float32"), ("cpu", "float64")]


def load(params, hparams, *, device, dtype):
    if (device, dtype) not in targets():
        raise ValueError(f"gpt2_numpy runs on {targets()}, not on {(device, dtype)}")
    # asarray copies nothing when the dtype is right: float32 weights stay memory-mapped
    return Model({name: np.asarray(w, dtype) for name, w in params.items()}, hparams, dtype)


def numpy(x):
    return np.asarray(x)


def gelu(x):
    """GELU by its tanh approximation, as OpenAI has it (not the exact erf form)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def softmax(x):
    """Softmax over the last axis; the maximum is taken off first so that exp cannot overflow."""
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp_x / exp_x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    """Zero mean and unit (biased) variance over the last axis, then scale by g and shift by b."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return g * (centred / np.sqrt(variance + eps)) + b


def linear(x, w, b):
    return x @ w + b  # [..., n_in] @ [n_in, n_out] -> [..., n_out]


def attention(qkv, past, n_head):
    """Causal attention of the new positions over the cached and the new ones."""
    batch, n, width = qkv.shape
    # [batch, n, 3 * n_embd] -> q, k, v, each [batch, n_head, n, head]
    q, k, v = qkv.reshape(batch, n, 3, n_head, width // 3 // n_head).transpose(2, 0, 3, 1, 4)
    if past is not None:  # [batch, n_head, n_past, head] + new -> [batch, n_head, n_past + n, head]
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]))  # [batch, n_head, n, n_past + n]
    n_keys = k.shape[2]
    visible = np.arange(n_keys) <= np.arange(n_keys - n, n_keys)[:, None]  # key j <= query position
    probs = softmax(np.where(visible, scores, -np.inf))
    heads = (probs @ v).swapaxes(1, 2).reshape(batch, n, width // 3)  # heads merged again
    return heads, (k, v)


def block(x, p, scope, past, n_head, tap):
    """One transformer block: attention and MLP, each behind a layer norm, each added back."""

    def step(leaf, value):
        tap(f"{scope}/{leaf}", value)
        return value

    def affine(leaf, value):
        return step(leaf, linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"]))

    def norm(leaf, value):
        return step(leaf, layer_norm(value, p[f"{scope}/{leaf}/g"], p[f"{scope}/{leaf}/b"]))

    qkv = affine("attn/c_attn", norm("ln_1", x))  # [batch, n, 3 * n_embd]
    heads, present = attention(qkv, past, n_head)
    x = step("resid_mid", x + affine("attn/c_proj", step("attn/heads", heads)))
    hidden = step("mlp/gelu", gelu(affine("mlp/c_fc", norm("ln_2", x))))  # [batch, n, 4 * n_embd]
    x = x + affine("mlp/c_proj", hidden)
    tap(scope, x)
    return x, present


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    p, hparams, _ = model
    tap = tap or (lambda name, array: None)
    tokens = np.asarray(tokens)
    n_past = 0 if past is None else past[0][0].shape[2]
    refuse_bad_tokens(tokens, n_past, hparams)
    n = tokens.shape[1]
    x = p["wte"][tokens] + p["wpe"][n_past : n_past + n]  # [batch, n, n_embd]
    tap("embed", x)
    present = []
    for i in range(hparams.n_layer):
        layer_past = None if past is None else past[i]
        x, layer_present = block(x, p, f"h{i}", layer_past, hparams.n_head, tap)
        present.append(layer_present)
    x = layer_norm(x, p["ln_f/g"], p["ln_f/b"])
    tap("ln_f", x)
    return x @ p["wte"].T, present  # the head is tied to the embedding


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError for what NumPy would wrap (negative ids) or fail on obscurely."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]. Prefill once, then decode through the cache."""
    new = []
    logits, past = forward(model, tokens)
    while True:
        new.append(logits[:, -1].argmax(axis=-1).astype(np.int32))
        if len(new) == n_new:
            return np.stack(new, axis=1)
        logits, past = forward(model, new[-1][:, None], past)
