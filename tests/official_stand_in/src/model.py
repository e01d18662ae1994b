"""GPT-2 for TensorFlow 1, ours: it stands for OpenAI's src/model.py where no clone of that is at hand.

It has the same surface (tf.contrib.training.HParams, variable_scope, get_variable, default_hparams,
model) and nothing else in common with it. Planted errors are edits of this text.
"""

import math

import tensorflow as tf
from tensorflow.contrib.training import HParams


def default_hparams():
    return HParams(n_vocab=0, n_ctx=0, n_embd=0, n_head=0, n_layer=0)


def gelu(x):
    return x * 0.5 * (tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)) + 1)


def width_of(x):
    return x.shape.as_list()[-1]


def layer_norm(x, scope):
    with tf.variable_scope(scope):
        g, b = (tf.get_variable(leaf, [width_of(x)], tf.float32) for leaf in "gb")
    mean, variance = tf.nn.moments(x, axes=[-1], keep_dims=True)
    return g * (x - mean) / tf.sqrt(variance + 1e-5) + b


def linear(x, scope, n_out):
    with tf.variable_scope(scope):
        w = tf.get_variable("w", [1, width_of(x), n_out], tf.float32)
        b = tf.get_variable("b", [n_out], tf.float32)
    return tf.tensordot(x, w[0], axes=1) + b


def attention(x, n_head):
    """x [batch, n, n_embd] to (heads merged and projected [batch, n, n_embd], keys and values)."""
    n_embd = width_of(x)
    batch, n = tf.shape(x)[0], tf.shape(x)[1]
    parts = tf.reshape(linear(x, "c_attn", 3 * n_embd), [batch, n, 3, n_head, n_embd // n_head])
    q, k, v = tf.unstack(tf.transpose(parts, [2, 0, 3, 1, 4]))  # each [batch, n_head, n, head]
    scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(n_embd // n_head)
    past = tf.matrix_band_part(
        tf.ones([n, n], tf.bool), -1, 0
    )  # a query sees itself and what was before
    scores = tf.where(tf.broadcast_to(past, tf.shape(scores)), scores, -1e10 * tf.ones_like(scores))
    heads = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3])
    merged = tf.reshape(heads, [batch, n, n_embd])
    return linear(merged, "c_proj", n_embd), tf.stack([k, v], axis=1)


def mlp(x):
    return linear(gelu(linear(x, "c_fc", 4 * width_of(x))), "c_proj", width_of(x))


def model(hparams, X, past=None, scope="model", reuse=False):
    """Logits of every position, and keys and values; a past is not taken."""
    with tf.variable_scope(scope, reuse=reuse):
        wte = tf.get_variable("wte", [hparams.n_vocab, hparams.n_embd], tf.float32)
        wpe = tf.get_variable("wpe", [hparams.n_ctx, hparams.n_embd], tf.float32)
        x = tf.gather(wte, X) + wpe[: tf.shape(X)[1]]
        x.set_shape([None, None, hparams.n_embd])
        presents = []
        for i in range(hparams.n_layer):
            with tf.variable_scope(f"h{i}"):
                normed = layer_norm(x, "ln_1")
                with tf.variable_scope("attn"):
                    attended, present = attention(normed, hparams.n_head)
                x = x + attended
                normed = layer_norm(x, "ln_2")
                with tf.variable_scope("mlp"):
                    x = x + mlp(normed)
                presents.append(present)
        logits = tf.tensordot(layer_norm(x, "ln_f"), wte, axes=[[2], [1]])
    return {"logits": logits, "present": tf.stack(presents, axis=1)}
