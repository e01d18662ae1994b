"""GPT-2 in JAX, on CPU or GPU: NumPy's forward pass with ``import jax.numpy as np``.

Needs only JAX: copy the file and it runs alone. A pass through all layers is one compiled program, and
there are few: tokens are padded to 1, 32 or a multiple of 128 (causality hides the padding), the cache
has room for a multiple of 128, and how much of it is filled is data. Around the programs NumPy works on
the host, because each operation of JAX outside of them would be compiled too. Shapes in comments:
batch, n (new tokens, padded), room (positions of the cache), rows = batch * n_head, head.
"""

import functools
import math
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as np
import numpy as onp  # host arrays: tokens and embeddings in, results out

TAPS = "all"  # every tap of the contract is promised
ORDER = "F"  # load gets each w in memory as [n_out, n_in], as it is kept: no copy is needed
SHORT, STEP = 32, 128  # n is padded to 1, SHORT or multiples of STEP; 2 * STEP queries attend at a time
# JAX's default for float32 on a GPU is TF32; sums are in float32 for bfloat16 too
EXACT = dict(precision="highest", preferred_element_type=np.float32)


class Model(NamedTuple):
    ends: dict  # what is outside the layers: checkpoint name -> array
    layers: tuple  # of dicts: name within the layer -> array, w as [n_out, n_in], which decodes faster
    tables: dict  # wte and wpe on the host, to look up the tokens of forward
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
    tables = {name: onp.asarray(ends[name]) for name in ("wte", "wpe")}  # on a CPU the same memory
    return Model(ends, tuple(layer(f"h{i}/") for i in range(hparams.n_layer)), tables, hparams)


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


def extended(past, new, n_past):
    """A layer's keys or values [rows, room, head] with new ones [rows, n, head] from n_past on."""
    if past is None:  # new is all there is
        return new
    room, n = past.shape[1], new.shape[1]
    longer = np.pad(past, ((0, 0), (0, n - 1), (0, 0)))  # the padding of new may reach beyond the room
    return jax.lax.dynamic_update_slice(longer, new, (0, n_past, 0))[:, :room]


@functools.partial(jax.jit, static_argnames="n_head")  # so that it is traced once for all layers
def block(x, p, k_past, v_past, n_past, *, n_head):
    """One transformer block: x [batch, n, n_embd], the layer's k and v, and the taps by name."""
    taps = OrderedDict()  # a dict would come out sorted

    def step(name, value):
        taps[name] = value.astype(x.dtype)  # what the next operation gets is in the declared dtype
        return taps[name]

    def affine(name, value):
        return step(name, linear(value, p[f"{name}/w"].T, p[f"{name}/b"]))

    def norm(name, value):
        return step(name, layer_norm(wide(value), wide(p[f"{name}/g"]), wide(p[f"{name}/b"])))

    batch, n, _ = x.shape
    qkv = affine("attn/c_attn", norm("ln_1", x))  # [batch, n, 3 * n_embd]
    # -> q, k, v, each [rows, n, head]
    split = qkv.reshape(batch, n, 3, n_head, -1).transpose(2, 0, 3, 1, 4)
    q, k_new, v_new = split.reshape(3, batch * n_head, n, -1)
    k, v = extended(k_past, k_new, n_past), extended(v_past, v_new, n_past)
    heads = attention(q, k, v, n_past, fresh=k_past is None).reshape(batch, n_head, n, -1)
    heads = step("attn/heads", heads.swapaxes(1, 2).reshape(x.shape))  # heads merged
    x = step("resid_mid", wide(x) + wide(affine("attn/c_proj", heads)))
    hidden = affine("mlp/c_fc", norm("ln_2", x))  # [batch, n, 4 * n_embd]
    hidden = affine("mlp/c_proj", step("mlp/gelu", gelu(wide(hidden))))
    return step("", wide(x) + wide(hidden)), k, v, taps


def embed(tables, tokens, n_past):
    """Token plus position embedding [batch, n, n_embd]; tables: wte and wpe, on the host or traced."""
    position = n_past + onp.arange(tokens.shape[1])
    x = wide(tables["wte"][tokens]) + wide(tables["wpe"][position])
    return x.astype(tables["wte"].dtype)


def blocks(layers, x, past, n_head):
    """x [batch, n, n_embd] after all blocks, the extended k and v, and the taps by name."""
    k, v, taps = list(past.k), list(past.v), OrderedDict()
    for i, layer in enumerate(layers):
        x, k[i], v[i], found = block(x, layer, k[i], v[i], past.n, n_head=n_head)
        taps |= {f"h{i}/{name}".removesuffix("/"): value for name, value in found.items()}
    return x, tuple(k), tuple(v), taps


def last_norm(ends, x):
    return layer_norm(wide(x), wide(ends["ln_f/g"]), wide(ends["ln_f/b"])).astype(x.dtype)


def head(ends, x):
    """Logits [batch, n, n_vocab] of x [batch, n, n_embd]: the head is tied to the embedding."""
    return product(x, ends["wte"]).astype(x.dtype)


@functools.partial(jax.jit, static_argnames=("n_head", "want_taps"))
def whole_pass(ends, layers, x, past, want_logits, *, n_head, want_taps):
    """From embeddings x [batch, n, n_embd] to logits, k, v, and the taps by name."""
    x, k, v, taps = blocks(layers, x, past, n_head)
    taps["ln_f"] = x = last_norm(ends, x)
    zeros = np.zeros((*x.shape[:2], len(ends["wte"])), x.dtype)
    logits = jax.lax.cond(want_logits, lambda: head(ends, x), lambda: zeros)
    return logits, k, v, taps if want_taps else {}


def extend(model, x, past, tap=None, want_logits=True):
    """Logits [batch, n, n_vocab] of embeddings x [batch, n, n_embd], and the cache after them."""
    hp, (batch, n, _) = model.hparams, x.shape
    n_past = past.n if past else 0
    n_pad = min(hp.n_ctx, 1 if n == 1 else SHORT if n <= SHORT else up(n))
    fills = n_pad == hp.n_ctx or n_pad % STEP == 0  # a cache without room to spare
    past = empty(hp.n_layer) if fills and n_past == 0 else with_room(model, past, batch, n_past + n_pad)
    x = onp.pad(x, ((0, 0), (0, n_pad - n), (0, 0)))
    # a single token always comes with taps, so that one program does
    static = dict(n_head=hp.n_head, want_taps=n == 1 or tap is not None)
    logits, k, v, taps = whole_pass(model.ends, model.layers, x, past, want_logits, **static)
    for name, value in taps.items() if tap else ():
        tap(name, onp.asarray(value)[:, :n])
    return onp.asarray(logits)[:, :n] if want_logits else None, Cache(k, v, n_past + n)


def up(n):
    return -(-n // STEP) * STEP


def empty(n_layer):
    return Cache((None,) * n_layer, (None,) * n_layer, 0)


def with_room(model, past, batch, n):
    """past with room for n positions in all; zeros for None."""
    hp, wte = model.hparams, model.ends["wte"]
    room = min(hp.n_ctx, up(n))
    if past is None:
        shape = (batch * hp.n_head, room, hp.n_embd // hp.n_head)
        zeros = (jax.device_put(onp.zeros(shape, wte.dtype), wte.sharding),) * hp.n_layer
        return Cache(zeros, zeros, 0)
    if (more := room - past.k[0].shape[1]) <= 0:
        return past

    def longer(x):
        return jax.device_put(onp.pad(x, ((0, 0), (0, more), (0, 0))), wte.sharding)

    return Cache(*jax.tree.map(longer, past[:2]), past.n)


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
    tokens, n_past = onp.asarray(tokens, onp.int32), past.n if past else 0
    refuse_bad_tokens(tokens, n_past, model.hparams)
    x = embed(model.tables, tokens, n_past)
    if tap:
        tap("embed", x)
    return extend(model, x, past, tap)


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]; the host waits only for the last token."""
    tokens = onp.asarray(tokens, onp.int32)
    refuse_bad_tokens(tokens, n_new - 1, model.hparams)
    x = embed(model.tables, tokens[:, :-1], 0)  # the last token is the first that another follows
    _, past = extend(model, x, None, want_logits=False)
    k, v, n = with_room(model, past, len(tokens), past.n + n_new)
    new = [jax.device_put(tokens[:, -1:], model.ends["wte"].sharding)]
    for at in range(n, n + n_new):
        token, k, v = following(*model[:2], new[-1], k, v, at, n_head=model.hparams.n_head)
        new.append(token)
    return onp.concatenate(new[1:], axis=1)


@functools.partial(jax.jit, static_argnames="n_head", donate_argnames=("k", "v"))
def following(ends, layers, token, k, v, n, *, n_head):
    """The likeliest token [batch, 1] after token, which is at n; k and v in place."""
    x, k, v, _ = blocks(layers, embed(ends, token, n), Cache(k, v, n), n_head)
    return head(ends, last_norm(ends, x)).argmax(axis=-1).astype(np.int32), k, v


def loss(parts, tokens, n_head):
    """Mean next-token cross entropy (nats) of tokens [batch, n]; parts: a model's ends and layers."""
    ends, layers = parts
    x, *_ = blocks(layers, embed(ends, tokens, 0), empty(len(layers)), n_head)
    log_probs = jax.nn.log_softmax(wide(head(ends, last_norm(ends, x))[:, :-1]))
    return -np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean()


def by_name(ends, layers):
    """Weights or gradients by checkpoint name, w as [n_in, n_out]."""
    named = dict(ends)
    for i, layer in enumerate(layers):
        named |= {f"h{i}/{name}": w.T if name.endswith("/w") else w for name, w in layer.items()}
    return named


@functools.partial(jax.jit, static_argnames="n_head")
def loss_and_slope(parts, tokens, *, n_head):
    value, slope = jax.value_and_grad(loss)(parts, tokens, n_head)
    return value, by_name(*slope)


def loss_and_grads(model, tokens):
    """The loss (nats) of tokens [batch, n], and its gradients by checkpoint name, w as [n_in, n_out]."""
    tokens = onp.asarray(tokens, onp.int32)
    refuse_bad_tokens(tokens, 0, model.hparams)
    value, grads = loss_and_slope(model[:2], tokens, n_head=model.hparams.n_head)
    return float(value), grads
