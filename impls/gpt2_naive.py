"""GPT-2 the naive way, in NumPy: no cache, everything is recomputed for each token. A baseline.

The algorithm is that of the well-known "GPT in 60 lines of NumPy" (picoGPT). As published, it runs
unintentionally in float64 on NumPy 2: its ``np.sqrt(2 / np.pi)`` is an np.float64 scalar, which under
NEP 50 promotes every float32 array, while the weights stay float32 and are converted again in every
product. Target float64 does the same, from the embedding on rather than from the first attention; target
float32 uses Python floats, which promote nothing. Shapes: batch, n, head = n_embd / n_head.
"""

import math

import numpy as np

TAPS = ()  # recomputed past positions are rounded differently from what was tapped before


def targets():
    return [("cpu", "float32"), ("cpu", "float64")]


def load(params, hparams, *, device, dtype):
    if (device, dtype) not in targets():
        raise ValueError(f"gpt2_naive runs on {targets()}, not on {(device, dtype)}")
    return params, hparams, dtype  # whatever the dtype, the weights stay float32


def numpy(x):
    return np.asarray(x)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    exp_x = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exp_x / np.sum(exp_x, axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    mean, variance = np.mean(x, axis=-1, keepdims=True), np.var(x, axis=-1, keepdims=True)
    return g * (x - mean) / np.sqrt(variance + eps) + b


def linear(x, w, b):
    return x @ w + b


def attention(qkv, n_head):
    """Causal attention [batch, n, n_embd] from [batch, n, 3 * n_embd], one head after the other."""
    split = [np.split(part, n_head, axis=-1) for part in np.split(qkv, 3, axis=-1)]
    n = qkv.shape[1]
    mask = (1 - np.tri(n, dtype=qkv.dtype)) * -1e10  # [n, n], added to the scores
    heads = []
    for q, k, v in zip(*split, strict=True):  # each [batch, n, head]
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + mask
        heads.append(softmax(scores) @ v)
    return np.concatenate(heads, axis=-1)


def block(x, p, scope, n_head):
    def of(leaf):  # its gain or weights, and its bias
        first = "g" if leaf.startswith("ln") else "w"
        return p[f"{scope}/{leaf}/{first}"], p[f"{scope}/{leaf}/b"]

    qkv = linear(layer_norm(x, *of("ln_1")), *of("attn/c_attn"))
    x = x + linear(attention(qkv, n_head), *of("attn/c_proj"))
    hidden = gelu(linear(layer_norm(x, *of("ln_2")), *of("mlp/c_fc")))
    return x + linear(hidden, *of("mlp/c_proj"))


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of tokens [batch, n]; past is all tokens before them. No taps."""
    p, hparams, dtype = model
    tokens = np.asarray(tokens)
    refuse_bad_tokens(tokens, 0 if past is None else past.shape[1], hparams)
    history = tokens if past is None else np.concatenate([past, tokens], axis=1)  # [batch, n_past + n]
    x = p["wte"][history].astype(dtype) + p["wpe"][: history.shape[1]]
    for i in range(hparams.n_layer):
        x = block(x, p, f"h{i}", hparams.n_head)
    logits = layer_norm(x, p["ln_f/g"], p["ln_f/b"]) @ p["wte"].T
    return logits[:, -tokens.shape[1] :], history


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError for ids that NumPy would wrap (negative ones) or reject with an unclear error."""
    if tokens.ndim != 2 or tokens.size == 0 or tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"tokens must be ids in [0, {hparams.n_vocab}) as [batch, n], and not empty")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]; for every token, all earlier ones are recomputed."""
    for _ in range(n_new):
        best = forward(model, tokens)[0][:, -1].argmax(axis=-1).astype(np.int32)
        tokens = np.concatenate([tokens, best[:, None]], axis=1)
    return tokens[:, -n_new:]
