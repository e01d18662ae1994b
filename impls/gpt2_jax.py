"""GPT-2 in JAX, on CPU or GPU: NumPy's forward pass with ``import jax.numpy as np``.

Needs only JAX: copy the file and it runs alone. One block is compiled once for all layers; in
``generate`` a whole step is. There are few shapes: lengths are padded up to buckets (causality hides the
padding), and the number of cached tokens is data. Traced functions return taps as results. Shapes in
comments: batch, n (new tokens, padded), room (positions of the cache), rows = batch * n_head, head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as np
import numpy as onp  # host arrays: tokens in, results out

TAPS = "all"  # every tap of the contract is promised
ORDER = "F"  # load gets each w in memory as [n_out, n_in], as it is kept: no copy is needed
STEP = 128  # long inputs and the cache are padded to multiples of it; 2 * STEP queries attend at a time
# JAX's default for float32 on a GPU is TF32; sums are in float32 for bfloat16 too
EXACT = dict(precision="highest", preferred_element_type=np.float32)


class Model(NamedTuple):
    ends: dict  # what is outside the layers: checkpoint name -> array
    layers: tuple  # of dicts: name within the layer -> array, w as [n_out, n_in], which decodes faster
    hparams: object


class Cache(NamedTuple):
    k: tuple  # per layer [rows, room, head], as products read it: XLA would copy another layout
    v: tuple
    n: int  # how many of the room positions are filled


def targets():
    devices = {device.platform for device in jax.devices()} | {"cpu"}
    names = ["cuda" if device == "gpu" else device for device in sorted(devices)]
    return [(device, dtype) for device in names for dtype in ("float32", "bfloat16")]


def load(params, hparams, *, device, dtype):
    place = jax.devices("gpu" if device == "cuda" else device)[0]

    def put(name):
        w = params[name].T if name.endswith("/w") else params[name]
        return jax.device_put(onp.asarray(w, np.dtype(dtype), order="C"), place)

    def layer(scope):
        return {name.removeprefix(scope): put(name) for name in params if name.startswith(scope)}

    ends = {name: put(name) for name in ("wte", "wpe", "ln_f/g", "ln_f/b")}
    return Model(ends, tuple(layer(f"h{i}/") for i in range(hparams.n_layer)), hparams)


def numpy(x):
    x = onp.asarray(x)
    return x.astype(onp.float32) if x.dtype == np.bfloat16 else x


def gelu(x):
    """GELU by its tanh approximation, as in OpenAI's code (not the exact erf form)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def softmax(x):
    return jax.nn.softmax(x, axis=-1)


def layer_norm(x, g, b, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return g * (centred / np.sqrt(variance + eps)) + b


def linear(x, w, b):
    return product(x, w.T) + wide(b)  # [..., n_in] -> [..., n_out]


def product(x, w):
    """x [..., n_in] times w [n_out, n_in]; matrix times vector for one row, which XLA reads faster."""
    if x.size == x.shape[-1]:
        return np.matmul(w, x.reshape(-1), **EXACT).reshape(*x.shape[:-1], -1)
    return np.matmul(x, w.T, **EXACT)


def wide(x):
    """bfloat16 is for storage and products; sums, norms and softmax are in float32."""
    return x.astype(np.float32)


def attention(q, k, v, n_past, fresh):
    """Causal attention, a block of queries at a time; fresh: no cached keys, n_past is 0."""
    dot = functools.partial(np.einsum, **EXACT)
    blocks = []
    for first in range(0, q.shape[1], 2 * STEP):
        some = q[:, first : first + 2 * STEP]
        position = n_past + first + np.arange(some.shape[1])
        seen = slice(first + 2 * STEP if fresh else None)  # later keys are masked anyway
        keys, values = k[:, seen], v[:, seen]
        scores = dot("rqd,rkd->rqk", some, keys) * (1 / math.sqrt(q.shape[-1]))
        visible = np.arange(keys.shape[1]) <= position[:, None]  # key <= query
        probs = softmax(np.where(visible, scores, -np.inf)).astype(v.dtype)
        blocks.append(dot("rqk,rkd->rqd", probs, values))
    return np.concatenate(blocks, axis=1)


def block(x, p, k_past, v_past, n_past, *, n_head, fresh, want_taps):
    """One transformer block: x [batch, n, n_embd], the layer's k and v, and the taps."""
    taps = {}

    def step(name, value):
        value = value.astype(x.dtype)  # results passed to the next operation are in the declared dtype
        if want_taps:
            taps[name] = value
        return value

    def affine(name, value):
        return step(name, linear(value, p[f"{name}/w"].T, p[f"{name}/b"]))

    def norm(name, value):
        return step(name, layer_norm(wide(value), wide(p[f"{name}/g"]), wide(p[f"{name}/b"])))

    batch, n, _ = x.shape
    qkv = affine("attn/c_attn", norm("ln_1", x))  # [batch, n, 3 * n_embd]
    # -> q, k, v, each [rows, n, head]
    split = qkv.reshape(batch, n, 3, n_head, -1).transpose(2, 0, 3, 1, 4)
    q, k_new, v_new = split.reshape(3, batch * n_head, n, -1)
    k = jax.lax.dynamic_update_slice(k_past, k_new, (0, n_past, 0))  # [rows, room, head]
    v = jax.lax.dynamic_update_slice(v_past, v_new, (0, n_past, 0))
    keys, values = (k_new, v_new) if fresh else (k, v)
    heads = attention(q, keys, values, n_past, fresh).reshape(batch, n_head, n, -1)
    heads = step("attn/heads", heads.swapaxes(1, 2).reshape(x.shape))  # heads merged
    x = step("resid_mid", wide(x) + wide(affine("attn/c_proj", heads)))
    hidden = affine("mlp/c_fc", norm("ln_2", x))  # [batch, n, 4 * n_embd]
    hidden = affine("mlp/c_proj", step("mlp/gelu", gelu(wide(hidden))))
    return step("", wide(x) + wide(hidden)), k, v, taps


@jax.jit
def embed(ends, tokens, n_past):
    position = n_past + np.arange(tokens.shape[1])
    x = wide(ends["wte"][tokens]) + wide(ends["wpe"][position])  # [batch, n, n_embd]
    return x.astype(ends["wte"].dtype)


@jax.jit
def head(ends, x):
    """The last layer norm of x [batch, n, n_embd], and the logits: the head is tied to the embedding."""
    x = layer_norm(wide(x), wide(ends["ln_f/g"]), wide(ends["ln_f/b"])).astype(x.dtype)
    return x, product(x, ends["wte"]).astype(x.dtype)


@jax.jit
def choose(ends, x, at):
    """The likeliest token [batch, 1] after position at; computes the logits of that position only."""
    logits = head(ends, jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1))[1]
    return logits.argmax(axis=-1).astype(np.int32)


one_block = jax.jit(block, static_argnames=("n_head", "fresh", "want_taps"))


def hidden(ends, layers, tokens, past, tap=None, *, n_head, fresh):
    """The last block's result [batch, n, n_embd] for tokens [batch, n], and the extended k and v."""
    x = embed(ends, tokens, past.n)
    if tap:
        tap("embed", x)
    static = dict(n_head=n_head, fresh=fresh, want_taps=tap is not None)
    k, v = list(past.k), list(past.v)
    for i, layer in enumerate(layers):
        x, k[i], v[i], taps = one_block(x, layer, k[i], v[i], past.n, **static)
        for name, value in taps.items():
            tap(f"h{i}/{name}".removesuffix("/"), value)
    return x, tuple(k), tuple(v)


def extend(model, tokens, past=None, tap=None, n_more=0):
    """hidden() of tokens padded to a bucket, and the cache after them, with room for n_more."""
    n_past, n_ctx = past.n if past else 0, model.hparams.n_ctx
    refuse_bad_tokens(tokens, n_past + n_more, model.hparams)
    batch, n = tokens.shape
    n_pad = 1 if n == 1 else max(16, min(up(n), 1 << (n - 1).bit_length()))
    n_pad = min(n_pad, n_ctx - n_past)
    past = with_room(model, past, batch, min(n_ctx, up(n_past + max(n_pad, n + n_more))))
    padded, n_head = onp.pad(tokens, ((0, 0), (0, n_pad - n))), model.hparams.n_head
    x, k, v = hidden(*model[:2], padded, past, tap, n_head=n_head, fresh=n_past == 0)
    return x, Cache(k, v, n_past + n)


def up(n):
    return -(-n // STEP) * STEP


def with_room(model, past, batch, room):
    """past with at least room positions; an empty cache for None."""
    hp = model.hparams
    if past is None:
        shape = (batch * hp.n_head, room, hp.n_embd // hp.n_head)
        empty = (np.zeros_like(model.ends["wte"], shape=shape),) * hp.n_layer  # same dtype and device
        return Cache(empty, empty, 0)
    if (more := room - past.k[0].shape[1]) <= 0:
        return past
    return Cache(*jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, more), (0, 0))), past[:2]), past.n)


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError for ids and positions that JAX would silently clamp."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    tokens = onp.asarray(tokens, onp.int32)
    new = onp.s_[:, : tokens.shape[1]]  # cut on the host: on the device, each length would be compiled
    x, present = extend(model, tokens, past, tap and (lambda name, x: tap(name, onp.asarray(x)[new])))
    x, logits = head(model.ends, x)
    if tap:
        tap("ln_f", onp.asarray(x)[new])
    return onp.asarray(logits)[new], present


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]; the host waits only for the last token."""
    tokens = onp.asarray(tokens, onp.int32)
    x, (k, v, n) = extend(model, tokens, n_more=n_new - 1)
    new = [choose(model.ends, x, tokens.shape[1] - 1)]
    for at in range(n, n + n_new - 1):
        token, k, v = following(*model[:2], new[-1], k, v, at, n_head=model.hparams.n_head)
        new.append(token)
    return onp.concatenate(new, axis=1)


@functools.partial(jax.jit, static_argnames="n_head", donate_argnames=("k", "v"))
def following(ends, layers, token, k, v, n, *, n_head):
    """The token [batch, 1] after token, which is at n; k and v in place. One call for all layers."""
    x, k, v = hidden(ends, layers, token, Cache(k, v, n), n_head=n_head, fresh=False)
    return choose(ends, x, 0), k, v


def loss(parts, tokens, hparams):
    """Mean next-token cross entropy (nats) of tokens [batch, n]; parts: a model's ends and layers."""
    empty = with_room(Model(*parts, hparams), None, *tokens.shape)
    x, *_ = hidden(*parts, tokens, empty, n_head=hparams.n_head, fresh=True)
    log_probs = jax.nn.log_softmax(wide(head(parts[0], x)[1][:, :-1]))
    return -np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean()


def loss_and_grads(model, tokens):
    """The loss (nats) of tokens [batch, n], and its gradients by checkpoint name."""
    refuse_bad_tokens(onp.asarray(tokens), 0, model.hparams)
    value, grads = jax.value_and_grad(loss)(model[:2], np.asarray(tokens), model.hparams)
    return float(value), by_name(*grads)


def by_name(ends, layers):
    """Weights or gradients by checkpoint name, w as [n_in, n_out]."""
    named = dict(ends)
    for i, layer in enumerate(layers):
        named |= {f"h{i}/{name}": w.T if name.endswith("/w") else w for name, w in layer.items()}
    return named
