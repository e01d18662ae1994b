"""Honest kernels that take another path for other shapes: functions that replace some of Plain's."""

import math

import numpy as np

from faults.plain import At, Plain, causal, length
from faults.shelf import BLACK_BOX

# ---- products


def in_tiles(x, w, b, at):
    """Tiles of 32 rows and 64 columns; the sum of each in blocks of 48."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), w.shape[1]), x.dtype)
    for i in range(0, len(rows), 32):
        for j in range(0, w.shape[1], 64):
            blocks = (slice(k, k + 48) for k in range(0, len(w), 48))
            y[i : i + 32, j : j + 64] = sum(rows[i : i + 32, k] @ w[k, j : j + 64] for k in blocks)
    return y.reshape(*x.shape[:-1], -1) + b


def sums_split(x, w, b, at):
    """The fewer the rows, the more parts a sum has, as if more cores shared it."""
    n_rows = math.prod(x.shape[:-1])
    parts = 1 if n_rows > 256 else 4 if n_rows > 16 else 8
    step = -(-len(w) // parts)
    return sum(x[..., i : i + step] @ w[i : i + step] for i in range(0, len(w), step)) + b


def by_size(x, w, b, at):
    """One row, a few, a small product or a large one: another algorithm each."""
    n_rows = math.prod(x.shape[:-1])
    if n_rows == 1:
        return (x[..., :, None] * w).sum(axis=-2) + b
    if n_rows < 8:
        return np.einsum("...i,io->...o", x, w) + b
    if len(w) < 64:
        return x[..., ::-1] @ w[::-1] + b
    return (x.astype(float) @ w + b).astype(x.dtype)


# ---- attention


def flash(self, q, keys, values, at, block=32):
    """Blocks of keys with a running maximum and sum; few keys at once."""
    n, n_keys = q.shape[2], keys.shape[2]
    if n_keys <= block:
        return Plain.attention(self, q, keys, values, at)
    seen = causal(np.empty((n, n_keys)))
    most = np.full((*q.shape[:-1], 1), -np.inf, q.dtype)
    total, y = np.zeros_like(most), np.zeros_like(q)
    for i in range(0, n_keys, block):
        part = slice(i, i + block)
        scores = np.where(seen[:, part], self.scores(q, keys[:, :, part], at), -np.inf)
        now = np.maximum(most, scores.max(axis=-1, keepdims=True))
        p, old = np.exp(scores - now), np.exp(most - now)
        total, y = total * old + p.sum(axis=-1, keepdims=True), y * old + p @ values[:, :, part]
        most = now
    return self.merge_heads(y / total, at)


def one_query_alone(self, q, keys, values, at):
    """Vectors for one query, a row of queries at a time for a few, matrices for more."""
    n, n_past = q.shape[2], keys.shape[2] - q.shape[2]
    if n == 1:
        scores = np.einsum("bhqd,bhkd->bhqk", q, keys) / math.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = np.einsum("bhqk,bhkd->bhqd", p, values) / p.sum(axis=-1, keepdims=True)
    elif n <= 8:
        seen = [slice(n_past + i + 1) for i in range(n)]
        rows = [
            self.softmax(self.scores(q[:, :, i : i + 1], keys[:, :, at_most], at), at)
            @ values[:, :, at_most]
            for i, at_most in enumerate(seen)
        ]
        y = np.concatenate(rows, axis=2)
    else:
        return Plain.attention(self, q, keys, values, at)
    return self.merge_heads(y, at)


# ---- whole passes


def batch_padded(self, model, tokens, past=None, tap=None):
    """The batch is filled up to a power of two with copies of its last row."""
    tokens = np.asarray(tokens)
    self.refuse(tokens, length(past), model.hparams)
    batch = len(tokens)
    rows = np.minimum(np.arange(1 << (batch - 1).bit_length()), batch - 1)
    more = [(keys[rows], values[rows]) for keys, values in past] if past else None
    only = (lambda name, x: tap(name, x[:batch])) if tap else None
    logits, present = Plain.forward(self, model, tokens[rows], more, only)
    return logits[:batch], [(keys[:batch], values[:batch]) for keys, values in present]


def padded_left(self, model, tokens, past=None, tap=None):
    """A prompt is filled up to a multiple of 8 on its left; the padding sees only itself."""
    tokens = np.asarray(tokens)
    self.refuse(tokens, length(past), model.hparams)
    pad = -tokens.shape[1] % 8
    if past or not pad:
        return Plain.forward(self, model, tokens, past, tap)
    only = (lambda name, x: tap(name, x[:, pad:])) if tap else None
    at = At("embed", -pad, model, only)
    wte, wpe = model.params["wte"], model.params["wpe"]
    tokens = np.pad(tokens, ((0, 0), (pad, 0)))
    positions = np.maximum(np.arange(tokens.shape[1]) - pad, 0)
    x, present = self.show(wte[tokens] + wpe[positions], at), []
    for i in range(model.hparams.n_layer):
        x, (keys, values) = self.block(x, None, at._replace(name=f"h{i}"))
        present.append((keys[:, :, pad:], values[:, :, pad:]))
    x = self.norm(x, at._replace(name="ln_f"))
    return self.head(x, wte, at._replace(name="logits"))[:, pad:], present


def mask_padding(scores, at):
    pad = max(0, -at.n_past)
    n, n_keys = scores.shape[-2:]
    seen = causal(scores) & (np.arange(n_keys) >= pad) | (np.arange(n_keys) == np.arange(n)[:, None])
    return np.where(seen, scores, -np.inf) if pad else Plain.mask(scores, at)


def long_prompts_in_chunks(self, model, tokens, past=None, tap=None):
    """A prompt of more than 32 tokens goes through the cache in chunks."""
    tokens = np.asarray(tokens)
    self.refuse(tokens, length(past), model.hparams)
    parts = []
    for i in range(0, tokens.shape[1], 32):
        logits, past = Plain.forward(self, model, tokens[:, i : i + 32], past)
        parts.append(logits)
    return np.concatenate(parts, axis=1), past


class Pages:
    """Keys or values [batch, n_head, n, head] in pages of 16 tokens."""

    def __init__(self, pages, x):
        room = 16 - pages[-1].shape[2] if pages else 0
        if room:
            pages = [*pages[:-1], np.concatenate([pages[-1], x[:, :, :room]], axis=2)]
        self.pages = [*pages, *(x[:, :, i : i + 16] for i in range(room, x.shape[2], 16))]
        self.shape = (*x.shape[:2], sum(page.shape[2] for page in self.pages), x.shape[3])

    def all(self):
        return np.concatenate(self.pages, axis=2)


def attend_pages(self, qkv, past, at):
    q, k, v = self.split_heads(qkv, at)
    before = past or (None, None)
    keys, values = (Pages(old.pages if old else [], x) for old, x in zip(before, (k, v), strict=True))
    return self.show(self.attention(q, keys.all(), values.all(), at), at), (keys, values)


def norms_folded(params, hparams, dtype):
    """Gain and bias of layer norms go into the products after them, if these have 32 rows or more."""
    p = Plain.converted(params, hparams, dtype)
    for i in range(hparams.n_layer if hparams.n_embd >= 32 else 0):
        for ln, to in (("ln_1", "attn/c_attn"), ("ln_2", "mlp/c_fc")):
            g, b, w = p[f"h{i}/{ln}/g"], p[f"h{i}/{ln}/b"], p[f"h{i}/{to}/w"]
            p[f"h{i}/{to}/b"] = p[f"h{i}/{to}/b"] + b @ w
            p[f"h{i}/{to}/w"] = g[:, None] * w
            p[f"h{i}/{ln}/g"], p[f"h{i}/{ln}/b"] = np.ones_like(g), np.zeros_like(b)
    return p


BY_SHAPE = {
    "in_tiles": {"linear": in_tiles},
    "sums_split_by_size": {"linear": sums_split},
    "algorithms_by_size": {"linear": by_size},
    "flash": {"attention": flash},
    "one_query_alone": {"attention": one_query_alone},
    "batch_padded": {"forward": batch_padded},
    "padded_left": {"forward": padded_left, "mask": mask_padding},
    "long_prompts_in_chunks": {"forward": long_prompts_in_chunks, **BLACK_BOX},
    "paged_cache": {"attend": attend_pages},
    "norms_folded_by_size": {"converted": norms_folded, **BLACK_BOX},
}
