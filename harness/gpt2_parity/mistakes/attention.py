"""Mistakes in attention, from c_attn's result to the merged heads, with and without a cache."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from gpt2_parity.mistakes.registry import Scene, mistake, narrow, simple
from gpt2_parity.reference import oracle


def reach(scene: Scene) -> np.ndarray:
    """Which keys exist when a query is computed, bool [n, n]: in decode, later chunks do not."""
    n = scene.tokens.shape[1]
    ends = np.full(n, n)
    for start, stop in pairwise([0, *scene.cuts, n]):
        ends[start:stop] = stop
    return np.arange(n) < ends[:, None]


def attend(
    scene: Scene,
    order: tuple[int, int, int] = (0, 1, 2),
    scale: Callable[[int], float] = lambda head: 1 / math.sqrt(head),
    mask: Callable[[np.ndarray], np.ndarray] = oracle.causal,
    probs: Callable[[np.ndarray], np.ndarray] = oracle.softmax,
    merge: Callable[[np.ndarray], np.ndarray] = oracle.merge_heads,
    settle: Callable[[np.ndarray], np.ndarray] = oracle.exact,
) -> np.ndarray:
    """Attention with one step done differently, [batch, n, n_embd]; in decode, chunk by chunk.

    order: which thirds of c_attn's result are q, k and v. scale: a factor of the scores, from the width
    of a head. mask and probs: of scores [batch, n_head, n, n]. merge: of heads [batch, n_head, n, head].
    settle: rounding of scores and probabilities.
    """
    parts = oracle.split_heads(scene.inputs[0], scene.hparams.n_head)
    q, k, v = (parts[i] for i in order)
    scores = mask(settle(q @ k.swapaxes(-1, -2) * scale(q.shape[-1])))
    there = reach(scene)
    with np.errstate(all="ignore"):
        weights = probs(np.where(there, scores, -np.inf))
        heads = settle(np.where(there, weights, 0.0)) @ v
    return np.concatenate([merge(part) for part in np.split(heads, scene.cuts, axis=2)], axis=1)


def layer_of(scene: Scene) -> int:
    """The number of the operation's layer, from 0."""
    return int(scene.op.name.partition("/")[0].removeprefix("h"))


def shifted_mask(diagonal: int) -> Callable[[np.ndarray], np.ndarray]:
    """A mask of scores [..., n, n] that shows keys up to query + diagonal."""

    def mask(scores: np.ndarray) -> np.ndarray:
        visible = np.tril(np.ones(scores.shape[-2:], bool), k=diagonal)
        return np.where(visible, scores, -1e30)

    return mask


def softly_masked(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A mask of scores [..., n, n] that sets those of later keys to value."""

    def mask(scores: np.ndarray) -> np.ndarray:
        future = np.triu(np.ones(scores.shape[-2:], bool), k=1)
        return np.where(future, value, scores)

    return mask


def softmax_over(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """Softmax of scores [batch, n_head, n, n] over another axis than the last."""

    def probs(scores: np.ndarray) -> np.ndarray:
        return oracle.softmax(scores.swapaxes(axis, -1)).swapaxes(axis, -1)

    return probs


for _name, _text, _scale in (
    ("no_scale", "scores are not divided by sqrt(head)", lambda head: 1.0),
    ("scale_without_root", "scores are divided by head, not by its square root", lambda head: 1 / head),
):
    simple(_name, _text, "attention", lambda s, f=_scale: attend(s, scale=f))  # type: ignore[misc]
simple(
    "scale_by_n_embd",
    "scores are divided by sqrt(n_embd), not by sqrt(head)",
    "attention",
    lambda s: attend(s, scale=lambda head: 1 / math.sqrt(s.hparams.n_embd)),
)


simple(
    "scale_by_layer",
    "scores are divided by the number of the layer, counted from 1, as well",
    "attention",
    lambda s: attend(s, scale=lambda head: 1 / math.sqrt(head) / (1 + layer_of(s))),
)


@mistake("softmax_temperature", "scores are scaled by a constant that is slightly off", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    """The constant is fitted by two Gauss-Newton steps, which start from 1 / sqrt(head)."""
    factor, step = 1.0, 1e-6
    with np.errstate(all="ignore"):
        for _ in range(2):
            here, there = (
                attend(scene, scale=lambda head, f=f: f / math.sqrt(head))  # type: ignore[misc]
                for f in (factor, factor + step)
            )
            slope = (there - here) / step
            factor += float(((scene.got - here) * slope).sum() / max((slope * slope).sum(), 1e-300))
    if math.isfinite(factor) and 0.5 < factor < 2:
        yield attend(scene, scale=lambda head: factor / math.sqrt(head))


def padded(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Softmax of scores [..., n_keys] with n more keys of score 0, whose values are 0."""

    def probs(scores: np.ndarray) -> np.ndarray:
        zeros = np.zeros((*scores.shape[:-1], n))
        return oracle.softmax(np.concatenate([scores, zeros], axis=-1))[..., :-n]

    return probs


mistake(
    "padding_visible", "empty padding keys are visible and take a share of the softmax", "attention"
)(lambda s: (attend(s, probs=padded(n)) for n in (1, 2, 3, 4, 8, 16)))


@mistake("token_as_padding", "a token is taken for padding, and its positions are hidden", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Id 0, or the last id, which is GPT-2's end of text. GPT-2 has no padding token."""
    for token in (0, scene.hparams.n_vocab - 1):
        hidden = (scene.tokens == token)[:, None, None]
        if hidden.any():  # if it comes first, all keys that a query may see are hidden
            yield attend(scene, mask=lambda x, h=hidden: oracle.causal(np.where(h, -1e30, x)))  # type: ignore[misc]
            yield attend(scene, mask=lambda x, h=hidden: np.where(h, -1e30, oracle.causal(x)))  # type: ignore[misc]


simple("no_mask", "there is no causal mask", "attention", lambda s: attend(s, mask=lambda x: x))
simple(
    "mask_one_too_far",
    "each position also sees the next one",
    "attention",
    lambda s: attend(s, mask=shifted_mask(1)),
)
simple(
    "mask_hides_itself",
    "each position sees only earlier ones, not itself",
    "attention",
    lambda s: attend(s, mask=shifted_mask(-1)),
)
mistake("mask_too_weak", "masked scores are set to a value that exp does not take to zero", "attention")(
    lambda s: (attend(s, mask=softly_masked(value)) for value in (0.0, -1.0, -5.0, -10.0, -20.0))
)
simple(
    "mask_after_softmax",
    "the mask is applied after the softmax, without renormalising",
    "attention",
    lambda s: attend(s, mask=lambda x: x, probs=lambda x: np.tril(oracle.softmax(x))),
)
for _name, _text, _axis in (
    ("softmax_over_queries", "the softmax runs over queries, not over keys", -2),
    ("softmax_over_heads", "the softmax runs over heads, not over keys", 1),
):
    mistake(_name, _text, "attention")(
        lambda s, a=_axis: (
            np.nan_to_num(attend(s, mask=softly_masked(value), probs=softmax_over(a)))
            for value in (-1e30, -np.inf)
        )
    )
for _letters, _order in (
    ("kqv", (1, 0, 2)), ("qvk", (0, 2, 1)), ("vkq", (2, 1, 0)), ("kvq", (1, 2, 0)), ("vqk", (2, 0, 1)),
):  # fmt: skip
    simple(
        f"order_{_letters}",
        f"c_attn is split as {', '.join(_letters)}, not as q, k, v",
        "attention",
        lambda s, o=_order: attend(s, order=o),  # type: ignore[misc]
    )


@mistake("heads_interleaved", "heads are interleaved: n_head is taken as the inner axis", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    qkv, n_head = scene.inputs[0], scene.hparams.n_head
    batch, n, width = qkv.shape
    head = width // 3 // n_head

    def turn(x: np.ndarray) -> np.ndarray:  # [..., head, n_head] order to [..., n_head, head]
        parts = x.reshape(batch, n, -1, head, n_head)
        return parts.swapaxes(-1, -2).reshape(x.shape)

    def back(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, n, n_head, head).swapaxes(-1, -2).reshape(x.shape)

    mixed = oracle.attention(turn(qkv), n_head)
    yield mixed
    yield back(mixed)
    yield back(scene.exact)
    # q, k and v are stored together for each head, as in some other models
    together = qkv.reshape(batch, n, n_head, 3, head).swapaxes(2, 3).reshape(qkv.shape)
    yield oracle.attention(together, n_head)


simple(
    "heads_not_transposed",
    "heads are merged without moving the head axis back",
    "attention",
    lambda s: attend(s, merge=lambda x: x.reshape(len(x), x.shape[2], -1)),
)


@mistake("heads_dropped", "a head's result is zero", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    batch, n, _ = scene.got.shape
    shape = (batch, n, scene.hparams.n_head, -1)
    silent = np.abs(scene.got.reshape(shape)).max(axis=(0, 1, 3)) == 0
    if silent.any():
        yield (scene.exact.reshape(shape) * ~silent[:, None]).reshape(scene.got.shape)


@mistake("heads_swapped", "heads are exchanged", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    batch, n, _ = scene.got.shape
    shape = (batch, n, scene.hparams.n_head, -1)
    got, exact = scene.got.reshape(shape), scene.exact.reshape(shape)
    distance = [
        [np.abs(got[:, :, i] - exact[:, :, j]).max() for j in range(shape[2])] for i in range(shape[2])
    ]
    yield exact[:, :, np.argmin(distance, axis=1)].reshape(scene.got.shape)


for _dtype in ("float16", "bfloat16"):
    simple(
        f"{_dtype}_softmax",
        f"the softmax is computed in {_dtype}",
        "attention",
        lambda s, d=_dtype: attend(s, settle=narrow(d)),  # type: ignore[misc]
        flips=True,
    )
    simple(
        f"{_dtype}_probabilities",
        f"the probabilities are rounded to {_dtype}",
        "attention",
        lambda s, d=_dtype: attend(  # type: ignore[misc]
            s, probs=lambda x: narrow(d)(oracle.softmax(x))
        ),
        flips=True,
    )


def in_float16_cache(qkv: np.ndarray) -> np.ndarray:
    """c_attn's result [batch, n, 3 n_embd] with keys and values, but not queries, rounded to float16."""
    q, k, v = np.split(qkv, 3, axis=-1)
    with np.errstate(over="ignore"):
        return np.concatenate([q, *(np.asarray(x, np.float16) for x in (k, v))], axis=-1)


simple(
    "float16_cache",
    "keys and values are stored as float16",
    "attention",
    lambda s: oracle.attention(in_float16_cache(s.inputs[0]), s.hparams.n_head),
)


@mistake(
    "cache_mask",
    "in decode, new positions do not see all of the cache, or its mask is wrong",
    "attention",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    n = scene.tokens.shape[1]
    edges = [0, *scene.cuts, n] if scene.cuts else []
    for kind in ("own", "past", "aligned", "oldest", "newest"):
        visible = np.tril(np.ones((n, n), bool))
        for start, stop in pairwise(edges):
            if start == 0:
                continue
            if kind == "own":  # the cache is forgotten
                visible[start:stop, :start] = False
            elif kind == "past":  # every position of a chunk sees the whole chunk
                visible[start:stop, start:stop] = True
            elif kind == "aligned":  # the mask starts at column 0, as in prefill
                visible[start:stop] = np.arange(n) <= np.arange(stop - start)[:, None]
            elif kind == "oldest":
                visible[start:stop, 0] = False
            else:  # the last cached key is missing
                visible[start:stop, start - 1] = False
        if edges:
            yield attend(scene, mask=lambda x, v=visible: np.where(v, x, -1e30))  # type: ignore[misc]


TURNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: np.roll(x, 1, axis=0),
    lambda x: x[::-1],
    lambda x: np.roll(x, 1, axis=2),
)


@mistake(
    "cache_stale",
    "in decode, keys or values of the cache belong to another row or position",
    "attention",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Cached keys or values are exchanged among batch rows or positions, each time the cache is used."""
    if not scene.cuts:
        return
    q, k, v = oracle.split_heads(scene.inputs[0], scene.hparams.n_head)
    n = scene.tokens.shape[1]
    for turn in TURNS:
        for turn_keys, turn_values in ((turn, same), (same, turn), (turn, turn)):
            parts, keys, values = [], k[:, :, :0], v[:, :, :0]
            for start, stop in pairwise([0, *scene.cuts, n]):
                keys = np.concatenate([turn_keys(keys), k[:, :, start:stop]], axis=2)
                values = np.concatenate([turn_values(values), v[:, :, start:stop]], axis=2)
                scores = q[:, :, start:stop] @ keys.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
                seen = np.arange(stop) <= np.arange(start, stop)[:, None]
                probs = oracle.softmax(np.where(seen, scores, -np.inf))
                parts.append(oracle.merge_heads(probs @ values))
            yield np.concatenate(parts, axis=1)


def same(x: np.ndarray) -> np.ndarray:
    """x [...] unchanged."""
    return x


def exp_by_bits(x: np.ndarray, correction: int) -> np.ndarray:
    """About exp of x [...], at most 0: x / log 2 is written into the exponent of a float32.

    Source: Schraudolph 1999, with the correction in units of the last place.
    """
    whole = np.maximum(x, -80.0) * (2**23 / math.log(2)) + (127 * 2**23 - correction)
    approximate = whole.astype(np.int32).view(np.float32).astype(np.float64)
    return np.where(x < -80, 0.0, approximate)


@mistake("exp_by_bits", "exp in the softmax is Schraudolph's approximation by bits", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    for correction in (366393, 486411, 298765, 0):

        def probs(scores: np.ndarray, correction: int = correction) -> np.ndarray:
            weights = exp_by_bits(scores - scores.max(axis=-1, keepdims=True), correction)
            return weights / weights.sum(axis=-1, keepdims=True)

        yield attend(scene, probs=probs)
