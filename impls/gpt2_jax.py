"""GPT-2 in JAX, on CPU or GPU: NumPy's forward pass with ``import jax.numpy as np``.

Needs JAX and nothing else: copy the file and it runs alone. The whole forward pass is one jitted
function of fixed shapes: the cache is allocated for n_ctx once, lengths are padded up to buckets,
and the number of cached tokens is data, so that a new length seldom compiles anything. Padding
sits behind the real tokens, where causality hides it. Taps leave the traced function as results.
Shapes in comments: batch, n (new tokens), n_keys (bucket of past + new), head = n_embd / n_head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as np
import numpy as onp  # host arrays: tokens in, results out

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    params: dict  # checkpoint name -> array, w as [n_in, n_out]
    hparams: object


class Cache(NamedTuple):
    k: tuple  # per layer [batch, n_head, n_ctx, head]
    v: tuple
    n_past: int  # how many of the n_ctx slots are filled


def targets():
    devices = {device.platform for device in jax.devices()} | {"cpu"}
    names = ["cuda" if device == "gpu" else device for device in sorted(devices)]
    return [(device, dtype) for device in names for dtype in ("float32", "bfloat16")]


def load(params, hparams, *, device, dtype):
    place = jax.devices("gpu" if device == "cuda" else device)[0]
    put = functools.partial(jax.device_put, device=place)
    return Model({name: put(onp.asarray(w, np.dtype(dtype))) for name, w in params.items()}, hparams)


def numpy(x):
    x = onp.asarray(x)
    return x.astype(onp.float32) if x.dtype == np.bfloat16 else x


def gelu(x):
    """GELU by its tanh approximation, as OpenAI has it (not the exact erf form)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def softmax(x):
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp_x / exp_x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return g * (centred / np.sqrt(variance + eps)) + b


def linear(x, w, b):
    return wide(np.matmul(x, w, preferred_element_type=np.float32)) + wide(b)


def wide(x):
    """bfloat16 is for storing and multiplying; sums, norms and softmax are done in float32."""
    return x.astype(np.float32)


def attention(qkv, k_past, v_past, n_past, n_keys, n_head):
    """Causal attention of the new positions over the first n_keys slots of the cache."""
    batch, n, width = qkv.shape
    # [batch, n, 3 * n_embd] -> q, k, v, each [batch, n_head, n, head]
    q, k, v = qkv.reshape(batch, n, 3, n_head, width // 3 // n_head).transpose(2, 0, 3, 1, 4)
    k = jax.lax.dynamic_update_slice(k_past, k, (0, 0, n_past, 0))  # [batch, n_head, n_ctx, head]
    v = jax.lax.dynamic_update_slice(v_past, v, (0, 0, n_past, 0))
    keys, values = k[:, :, :n_keys], v[:, :, :n_keys]
    dot = functools.partial(np.einsum, preferred_element_type=np.float32)
    scores = dot("bhqd,bhkd->bhqk", q, keys) * (1 / math.sqrt(q.shape[-1]))
    visible = np.arange(n_keys) <= n_past + np.arange(n)[:, None]  # key j <= query position
    probs = softmax(np.where(visible, scores, -np.inf)).astype(v.dtype)
    heads = dot("bhqk,bhkd->bqhd", probs, values).reshape(batch, n, width // 3)  # merged again
    return heads, k, v


@functools.partial(jax.jit, static_argnames=("n_layer", "n_head", "n_keys", "want_taps"))
def traced(p, tokens, k, v, n_past, *, n_layer, n_head, n_keys, want_taps):
    """The forward pass: logits [batch, n, n_vocab], new k and v, and the taps (or none)."""
    taps = {}
    dtype = p["wte"].dtype

    def step(name, value):
        value = value.astype(dtype)  # what one operation hands to the next is in the declared dtype
        if want_taps:
            taps[name] = value
        return value

    def affine(name, x):
        return step(name, linear(x, p[f"{name}/w"], p[f"{name}/b"]))

    def norm(name, x):
        return step(name, layer_norm(wide(x), wide(p[f"{name}/g"]), wide(p[f"{name}/b"])))

    position = n_past + np.arange(tokens.shape[1])
    x = step("embed", wide(p["wte"][tokens]) + wide(p["wpe"][position]))  # [batch, n, n_embd]
    k, v = list(k), list(v)
    for i in range(n_layer):
        qkv = affine(f"h{i}/attn/c_attn", norm(f"h{i}/ln_1", x))  # [batch, n, 3 * n_embd]
        heads, k[i], v[i] = attention(qkv, k[i], v[i], n_past, n_keys, n_head)
        heads = affine(f"h{i}/attn/c_proj", step(f"h{i}/attn/heads", heads))
        x = step(f"h{i}/resid_mid", wide(x) + wide(heads))
        hidden = affine(f"h{i}/mlp/c_fc", norm(f"h{i}/ln_2", x))  # [batch, n, 4 * n_embd]
        hidden = affine(f"h{i}/mlp/c_proj", step(f"h{i}/mlp/gelu", gelu(wide(hidden))))
        x = step(f"h{i}", wide(x) + wide(hidden))
    x = norm("ln_f", x)
    logits = np.matmul(x, p["wte"].T, preferred_element_type=np.float32)  # tied to the embedding
    return logits.astype(dtype), tuple(k), tuple(v), taps


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    p, hparams = model
    tokens = onp.asarray(tokens, onp.int32)
    past = past or empty_cache(model, tokens.shape[0])
    refuse_bad_tokens(tokens, past.n_past, hparams)
    n = tokens.shape[1]
    n_pad = bucket(n, hparams.n_ctx - past.n_past)
    n_keys = bucket(past.n_past + n_pad, hparams.n_ctx)
    padded = onp.pad(tokens, ((0, 0), (0, n_pad - n)))
    static = dict(n_layer=hparams.n_layer, n_head=hparams.n_head, n_keys=n_keys)
    # "highest": on a GPU JAX's default for float32 would be TF32
    with jax.default_matmul_precision("highest"):
        logits, k, v, taps = traced(
            p, padded, past.k, past.v, past.n_past, **static, want_taps=tap is not None
        )
    for name, value in taps.items():
        tap(name, value[:, :n])
    return logits[:, :n], Cache(k, v, past.n_past + n)


def bucket(n, most):
    """The next power of two from 16 on, but never more than most."""
    return min(most, max(16, 1 << (n - 1).bit_length()))


def empty_cache(model, batch):
    wte, hp = model.params["wte"], model.hparams
    shape = (batch, hp.n_head, hp.n_ctx, hp.n_embd // hp.n_head)
    zeros = np.zeros_like(wte, shape=shape)  # same dtype, same device
    return Cache((zeros,) * hp.n_layer, (zeros,) * hp.n_layer, 0)


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError for what JAX would silently clamp."""
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
        new.append(onp.asarray(logits[:, -1].argmax(axis=-1), onp.int32))
        if len(new) == n_new:
            return onp.stack(new, axis=1)
        logits, past = forward(model, new[-1][:, None], past)


def loss(p, tokens, hparams):
    """Mean next-token cross entropy in nats of tokens [batch, n]; differentiable in p."""
    past = empty_cache(Model(p, hparams), tokens.shape[0])
    static = dict(n_layer=hparams.n_layer, n_head=hparams.n_head, n_keys=tokens.shape[1])
    logits, *_ = traced(p, tokens, past.k, past.v, 0, **static, want_taps=False)
    log_probs = jax.nn.log_softmax(wide(logits[:, :-1]))
    return -np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean()


def loss_and_grads(model, tokens):
    """The loss, and its gradient by checkpoint name."""
    refuse_bad_tokens(onp.asarray(tokens), 0, model.hparams)
    with jax.default_matmul_precision("highest"):
        value, grads = jax.value_and_grad(loss)(model.params, np.asarray(tokens), model.hparams)
    return float(value), grads
