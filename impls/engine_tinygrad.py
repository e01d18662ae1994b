"""tinygrad: GPT-2 in its functional operations, compiled by its compiler and replayed by TinyJit.

Needs tinygrad and NumPy, and on the CPU clang on the path: tinygrad compiles every kernel with it.
The wheel contains no GPT-2, so the forward pass is written here; tinygrad fuses and computes it.
Compiling takes seconds for every new shape, so there is only one: one sequence at a time, STEP positions
at a time (padded at the end), over a cache of n_ctx positions, most of them masked.
"""

import os
import shutil
from typing import NamedTuple

import numpy as np
from tinygrad import Tensor, TinyJit

if not shutil.which(os.environ.get("CC", "clang")):
    raise ImportError("tinygrad compiles for the CPU with clang, which is not on the path")

TAPS = "all"  # every tap of the contract is promised
STEP = 8


class Model(NamedTuple):
    hparams: object
    # separate, and first for all positions: tap() may stop the pass after it
    embed: TinyJit
    plain: TinyJit  # step() without taps: tinygrad may fuse its operations
    tapped: TinyJit  # step() with every tap as a result


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    p = {name: Tensor(np.array(w), device=device.upper()).realize() for name, w in params.items()}

    def embed(ids, positions):
        return (p["wte"][ids] + p["wpe"][positions]).realize()

    def compiled(want_taps):
        return TinyJit(lambda *inputs: step(p, hparams, want_taps, *inputs))

    return Model(hparams, TinyJit(embed), compiled(False), compiled(True))


def numpy(x):
    return x  # forward has copied it to the host: TinyJit reuses its results in the next call


def step(p, hparams, want_taps, x, visible, cache):
    """STEP positions: logits [1, STEP, n_vocab], new keys and values, and the taps if they are wanted.

    x [1, STEP, n_embd], embedded; visible [STEP, n_ctx + STEP], the positions of the cache first;
    cache [n_layer, 2, 1, n_head, n_ctx, head]. Keys and values [n_layer, 2, 1, n_head, STEP, head].
    """
    taps, present = [], []

    def seen(value):
        taps.append(value)
        return value

    def linear(name, x):
        return seen(x.linear(p[f"{name}/w"], p[f"{name}/b"]))

    def layer_norm(name, x):
        return seen(x.layernorm(eps=1e-5) * p[f"{name}/g"] + p[f"{name}/b"])

    for i in range(hparams.n_layer):
        h = f"h{i}"
        qkv = linear(f"{h}/attn/c_attn", layer_norm(f"{h}/ln_1", x))
        # [1, STEP, 3 * n_embd] -> q, k, v, each [1, n_head, STEP, head]
        q, k, v = qkv.reshape(1, STEP, 3, hparams.n_head, -1).permute(2, 0, 3, 1, 4).split(1)
        present.append(k.cat(v))
        keys, values = cache[i, 0].cat(k[0], dim=2), cache[i, 1].cat(v[0], dim=2)
        heads = q[0].scaled_dot_product_attention(keys, values, attn_mask=visible)
        heads = seen(heads.transpose(1, 2).reshape(1, STEP, -1))
        x = seen(x + linear(f"{h}/attn/c_proj", heads))
        hidden = seen(linear(f"{h}/mlp/c_fc", layer_norm(f"{h}/ln_2", x)).gelu())  # its tanh form
        x = seen(x + linear(f"{h}/mlp/c_proj", hidden))
    logits = layer_norm("ln_f", x) @ p["wte"].T  # the head is tied to the embedding
    results = [logits, Tensor.stack(*present), *(taps if want_taps else [])]
    Tensor.realize(*results)
    return results


def tap_names(n_layer):
    """The names of the taps in the order of step(), except the first, "embed"."""
    leaves = "ln_1 attn/c_attn attn/heads attn/c_proj resid_mid ln_2 mlp/c_fc mlp/gelu mlp/c_proj"
    places = [*(f"/{leaf}" for leaf in leaves.split()), ""]
    return [*(f"h{i}{place}" for i in range(n_layer) for place in places), "ln_f"]


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them.

    The cache has an array [n_layer, 2, 1, n_head, n_past + n, head] for every row, on the host.
    """
    hparams, tokens = model.hparams, np.asarray(tokens)
    if past is None:
        head = hparams.n_embd // hparams.n_head
        past = [np.zeros((hparams.n_layer, 2, 1, hparams.n_head, 0, head), np.float32)] * len(tokens)
    n_past = past[0].shape[4] if past else 0
    refuse_bad_tokens(tokens, n_past, hparams)
    n = tokens.shape[1]
    x = np.concatenate([embedded(model, ids, n_past)[:, :n] for ids in tokens])
    if tap:
        tap("embed", x)
    rows, present = [], []
    for row, cache in zip(x, past, strict=True):
        parts = []
        for start in range(0, len(row), STEP):
            part, cache = advance(model, row[start : start + STEP], cache, tap is not None)
            parts.append(part)
        rows.append([np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True)])
        present.append(cache)
    logits, *taps = (np.concatenate(pieces) for pieces in zip(*rows, strict=True))
    for name, value in zip(tap_names(hparams.n_layer) if tap else [], taps, strict=True):
        tap(name, value)
    return logits, present


def embedded(model, ids, n_past):
    """The embedding [1, n + padding, n_embd] of one row of ids [n], at the positions from n_past on."""
    steps = range(0, len(ids), STEP)
    ids = np.pad(ids, (0, -len(ids) % STEP)).astype(np.int32)
    places = np.minimum(n_past + np.arange(len(ids)), model.hparams.n_ctx - 1).astype(np.int32)
    found = [
        run(model.embed, ids[i : i + STEP][None], places[i : i + STEP]).numpy().copy() for i in steps
    ]
    return np.concatenate(found, axis=1)


def advance(model, x, cache, want_taps):
    """Up to STEP positions x [n, n_embd] of one row: [logits and taps], and the cache after them."""
    hparams, n, n_past = model.hparams, len(x), cache.shape[4]
    old = np.arange(hparams.n_ctx) < n_past
    visible = [np.concatenate([old, np.arange(STEP) <= row]) for row in range(STEP)]  # key <= query
    room = [(0, 0)] * 4 + [(0, hparams.n_ctx - n_past), (0, 0)]
    inputs = (np.pad(x, ((0, STEP - n), (0, 0)))[None], np.array(visible), np.pad(cache, room))
    logits, new, *taps = run(model.tapped if want_taps else model.plain, *inputs)
    found = [value.numpy()[:, :n].copy() for value in (logits, *taps)]
    return found, np.concatenate([cache, new.numpy()[..., :n, :]], axis=4)


def run(compiled, *arrays):
    return compiled(*(Tensor(array, device="CPU").realize() for array in arrays))


def refuse_bad_tokens(tokens, n_past, hparams):
    """tinygrad looks up zeros for an id that does not exist, so this guard is ours."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")
