"""GPT-2 in NumPy, to be read top to bottom as a forward pass.

Needs only NumPy: copy the file and it runs alone. Scalars are Python floats on purpose: under NEP 50 an
``np.float64`` scalar (``np.sqrt(2 / np.pi)``, say) silently turns all float32 work after it into
float64.

Each decoded token reads every weight once, so memory bandwidth limits decode, and the code avoids all
other work. Prefill is as fast as BLAS; NumPy's other work runs in one thread, so it is done in place, on
blocks that stay in the processor's cache.

Architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
Shapes in comments: batch, n (new tokens), n_past (cached tokens), head = n_embd / n_head.
"""

import math
from typing import NamedTuple

import numpy as np

TAPS = "all"  # every tap of the contract is promised
ORDER = "F"  # load gets each w in memory as [n_out, n_in], which one row times w reads faster
ROWS = 32  # rows whose GELU is computed at a time
QUERIES = 64  # queries that attend at a time, over only the keys that the last one sees


class Model(NamedTuple):
    params: dict  # checkpoint name -> array, w as [n_in, n_out]
    hparams: object
    dtype: str


class Cache(NamedTuple):
    """The keys and values of n positions, and room for more."""

    kv: np.ndarray  # [n_layer, 2, batch, n_head, head, room]: products read long rows
    n: int
    filled: list  # [number of positions of kv in use], one list for all caches that share kv


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
    """GELU by its tanh approximation, as in OpenAI's code (not the exact erf form); overwrites x."""
    rows = x.reshape(-1, x.shape[-1])
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        y = some * some
        y *= 0.044715
        y += 1
        y *= some
        y *= math.sqrt(2 / math.pi)
        np.tanh(y, out=y)
        y += 1
        y *= 0.5
        some *= y  # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    return x


def softmax(x):
    """Softmax over the last axis, minus the maximum so that exp cannot overflow; overwrites x."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def layer_norm(x, g, b, eps=1e-5):
    """Zero mean and unit (biased) variance over the last axis, then scale by g and shift by b."""
    y = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]
    variance = np.vecdot(y, y)[..., None] / x.shape[-1]
    y /= np.sqrt(variance + eps)
    y *= g
    y += b
    return y


def linear(x, w, b):
    y = x.reshape(-1, x.shape[-1]) @ w  # one product, whatever the batch: [rows, n_in] @ [n_in, n_out]
    y += b
    return y.reshape(*x.shape[:-1], -1)


def attention(qkv, kv, n_past, n_head):
    """Causal attention of the new positions over all so far; adds their keys and values to the cache."""
    batch, n, width = qkv.shape
    # [batch, n, 3 * n_embd] -> q, k, v, each [batch, n_head, n, head]
    q, k, v = qkv.reshape(batch, n, 3, n_head, width // 3 // n_head).transpose(2, 0, 3, 1, 4)
    q = q * (1 / math.sqrt(q.shape[-1]))
    new = slice(n_past, n_past + n)
    kv[0, ..., new], kv[1, ..., new] = k.swapaxes(-1, -2), v.swapaxes(-1, -2)
    heads = np.empty((batch, n, n_head, width // 3 // n_head), qkv.dtype)
    for start in range(0, n, QUERIES):
        stop = min(start + QUERIES, n)
        k, v = kv[..., : n_past + stop]  # [batch, n_head, head, n_past + stop]
        scores = q[:, :, start:stop] @ k  # [batch, n_head, stop - start, n_past + stop]
        if n > 1:  # each query's later positions are hidden
            future = ~np.tri(stop - start, dtype=bool)
            np.copyto(scores[..., n_past + start :], -np.inf, where=future)
        heads[:, start:stop] = (softmax(scores) @ v.swapaxes(-1, -2)).swapaxes(1, 2)
    return heads.reshape(batch, n, width // 3)  # heads merged


def block(x, p, scope, kv, n_past, n_head, tap):
    """One transformer block: attention and MLP, each behind a layer norm, each added back."""

    def step(leaf, value):
        tap(f"{scope}/{leaf}", value)
        return value

    def affine(leaf, value):
        return step(leaf, linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"]))

    def norm(leaf, value):
        return step(leaf, layer_norm(value, p[f"{scope}/{leaf}/g"], p[f"{scope}/{leaf}/b"]))

    qkv = affine("attn/c_attn", norm("ln_1", x))  # [batch, n, 3 * n_embd]
    heads = step("attn/heads", attention(qkv, kv, n_past, n_head))
    x = step("resid_mid", x + affine("attn/c_proj", heads))
    hidden = step("mlp/gelu", gelu(affine("mlp/c_fc", norm("ln_2", x))))  # [batch, n, 4 * n_embd]
    x = x + affine("mlp/c_proj", hidden)
    tap(scope, x)
    return x


def forward(model, tokens, past=None, tap=None, last_only=False):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    p, hparams, _ = model
    # a tapped array may be overwritten later, so tap gets a copy
    keep = (lambda name, x: tap(name, x.copy())) if tap else (lambda name, x: None)
    tokens = np.asarray(tokens)
    n_past = 0 if past is None else past.n
    refuse_bad_tokens(tokens, n_past, hparams)
    n = tokens.shape[1]
    x = p["wte"][tokens] + p["wpe"][n_past : n_past + n]  # [batch, n, n_embd]
    keep("embed", x)
    present = extended(past, *tokens.shape, model)
    for i in range(hparams.n_layer):
        x = block(x, p, f"h{i}", present.kv[i], n_past, hparams.n_head, keep)
    x = layer_norm(x[:, -1:] if last_only else x, p["ln_f/g"], p["ln_f/b"])
    keep("ln_f", x)
    return x @ p["wte"].T, present  # the head is tied to the embedding


def extended(past, batch, n, model):
    """The cache with n more positions, not yet filled.

    The first continuation of past extends it in place. If there is no room, or another continuation
    has used it, the cache is copied, with twice the room: one past may be continued in several ways.
    """
    _, n_ctx, n_embd, n_head, n_layer = model.hparams
    n_past = past.n if past else 0
    if past and past.filled == [n_past] and n_past + n <= past.kv.shape[-1]:
        past.filled[0] += n
        return past._replace(n=n_past + n)
    room = min(2 * (n_past + n), n_ctx) | 16  # rows a power of two apart would conflict in CPU caches
    kv = np.empty((n_layer, 2, batch, n_head, n_embd // n_head, room), model.dtype)
    if past:
        kv[..., :n_past] = past.kv[..., :n_past]
    return Cache(kv, n_past + n, [n_past + n])


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError for ids that NumPy would wrap (negative ones) or reject with an unclear error."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]. Prefill once, then decode through the cache."""
    new = []
    logits, past = forward(model, tokens, last_only=True)
    while True:
        new.append(logits[:, -1].argmax(axis=-1).astype(np.int32))
        if len(new) == n_new:
            return np.stack(new, axis=1)
        logits, past = forward(model, new[-1][:, None], past, last_only=True)
