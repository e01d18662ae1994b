"""GPT-2 in TensorFlow 2, on CPU or GPU, to be read top to bottom as a forward pass.

Needs only TensorFlow: copy the file and it runs alone. In float32 it represents the framework that the
official weights were published for; in float64 it is the second oracle, whose agreement with the NumPy
oracle makes a record golden. It runs eagerly on purpose: no compiler rewrites the code that you read.
Shapes in comments: batch, n (new tokens), n_past (cached tokens), head = n_embd / n_head.
"""

import math
from typing import NamedTuple

import tensorflow as tf

TAPS = "all"  # every tap of the contract is promised
ALIGNED = 64  # bytes: its kernels may end the process on arrays that are not aligned


class Model(NamedTuple):
    params: dict  # checkpoint name -> tensor, w as [n_in, n_out]
    hparams: object
    device: str


def targets():
    devices = ["cpu", "cuda"] if tf.config.list_physical_devices("GPU") else ["cpu"]
    return [(device, dtype) for device in devices for dtype in ("float32", "float64")]


def load(params, hparams, *, device, dtype):
    tf.config.experimental.enable_tensor_float_32_execution(False)  # float32 means float32
    place = "GPU:0" if device == "cuda" else "CPU:0"
    with tf.device(place):
        placed = {name: put(w, place) for name, w in params.items()}
    return Model(Widened(placed) if dtype == "float64" else placed, hparams, place)


def put(w, place):
    """An array as a tensor, without a copy (of a mapped file, say) if TensorFlow can use its memory."""
    if place == "CPU:0" and w.flags.carray and w.ctypes.data % ALIGNED == 0:
        return tf.experimental.dlpack.from_dlpack(w.__dlpack__())
    return tf.constant(w)  # a copy


class Widened(dict):
    """Float32 weights that are widened on access: all at once would take twice the memory."""

    def __getitem__(self, name):
        return tf.cast(super().__getitem__(name), tf.float64)


def numpy(x):
    return x.numpy()


def gelu(x):
    """GELU by its tanh approximation, as in OpenAI's code (not the exact erf form).

    Written out because tf.nn.gelu(approximate=True) rounds 0.044715 to float32 even for float64 x.
    """
    return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(x):
    return tf.nn.softmax(x, axis=-1)


def layer_norm(x, g, b, eps=1e-5):
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return g * (x - mean) * tf.math.rsqrt(variance + tf.constant(eps, x.dtype)) + b


def linear(x, w, b):
    return tf.tensordot(x, w, axes=1) + b  # [..., n_in] -> [..., n_out]


def split_heads(x, n_head):
    batch, n, width = x.shape
    return tf.transpose(tf.reshape(x, [batch, n, n_head, width // n_head]), [0, 2, 1, 3])


def attention(qkv, past, n_head):
    """Causal attention of the new positions over the cached and the new ones."""
    batch, n, width = qkv.shape
    q, k, v = (split_heads(part, n_head) for part in tf.split(qkv, 3, axis=-1))
    if past is not None:  # [batch, n_head, n_past, head] + new -> [batch, n_head, n_past + n, head]
        k, v = tf.concat([past[0], k], axis=2), tf.concat([past[1], v], axis=2)
    scores = tf.matmul(q, k, transpose_b=True) / tf.sqrt(tf.cast(q.shape[-1], q.dtype))
    n_keys = k.shape[2]
    visible = tf.range(n_keys) <= tf.range(n_keys - n, n_keys)[:, None]  # key j <= query position
    probs = softmax(tf.where(visible, scores, tf.constant(float("-inf"), scores.dtype)))
    heads = tf.transpose(tf.matmul(probs, v), [0, 2, 1, 3])  # [batch, n, n_head, head]
    return tf.reshape(heads, [batch, n, width // 3]), (k, v)


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
    p, hparams, device = model
    tap = tap or (lambda name, array: None)
    with tf.device(device):
        tokens = tf.convert_to_tensor(tokens)
        n_past = 0 if past is None else past[0][0].shape[2]
        refuse_bad_tokens(tokens, n_past, hparams)
        n = tokens.shape[1]
        x = tf.gather(p["wte"], tokens) + p["wpe"][n_past : n_past + n]  # [batch, n, n_embd]
        tap("embed", x)
        present = []
        for i in range(hparams.n_layer):
            layer_past = None if past is None else past[i]
            x, layer_present = block(x, p, f"h{i}", layer_past, hparams.n_head, tap)
            present.append(layer_present)
        x = layer_norm(x, p["ln_f/g"], p["ln_f/b"])
        tap("ln_f", x)
        logits = tf.matmul(x, p["wte"], transpose_b=True)  # the head is tied to the embedding
    return logits, present


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError here, not in a kernel: on a GPU, gather returns zeros for bad ids."""
    if len(tokens.shape) != 2 or 0 in tokens.shape:
        raise ValueError(f"tokens must be [batch, n] and not empty, got {tokens.shape}")
    if tf.reduce_min(tokens) < 0 or tf.reduce_max(tokens) >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]. Prefill once, then decode through the cache."""
    new = []
    logits, past = forward(model, tokens)
    while True:
        new.append(tf.argmax(logits[:, -1], axis=-1, output_type=tf.int32))
        if len(new) == n_new:
            return tf.stack(new, axis=1).numpy()
        logits, past = forward(model, new[-1][:, None], past)


def loss_and_grads(model, tokens):
    """Mean next-token cross entropy (nats) of tokens [batch, n], and gradients by checkpoint name."""
    params = {name: model.params[name] for name in model.params}  # widened before they are watched
    with tf.GradientTape() as tape:
        tape.watch(params)
        logits, _ = forward(model._replace(params=params), tokens)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits[:, :-1])
        loss = tf.reduce_mean(loss)
    grads = tape.gradient(loss, params)  # for embeddings as slices, one for each row looked up
    return float(loss), {name: tf.convert_to_tensor(grad) for name, grad in grads.items()}
