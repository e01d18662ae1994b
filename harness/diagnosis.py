"""Why is it wrong? Known mistakes, tried one by one in float64 on a blamed operation.

Each mistake is the operation done wrongly in one named way, from the implementation's own captured
input. If the implementation's result is that wrong result, up to rounding, the mistake explains it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from harness import noise, oracle
from harness.contract import HParams, Op, graph

Params = Mapping[str, np.ndarray]


class Scene(NamedTuple):
    """A blamed operation and what was captured around it, all float64."""

    op: Op
    inputs: list[np.ndarray]
    got: np.ndarray
    exact: np.ndarray
    size: np.ndarray  # the rounding bound
    taps: Mapping[str, np.ndarray]
    params: Params
    hparams: HParams
    tokens: np.ndarray
    cuts: tuple[int, ...] = ()  # where the tokens were cut into chunks, for decode

    def weight(self, leaf: str, scope: str = "") -> np.ndarray:
        return np.asarray(self.params[f"{scope or self.op.name}/{leaf}"], np.float64)

    def again(self, inputs: list[np.ndarray], name: str = "") -> np.ndarray:
        """The operation on other inputs, or with another scope's weights."""
        op = self.op._replace(name=name or self.op.name)
        return oracle.apply(op, inputs, self.params, self.hparams, self.tokens)


class Mistake(NamedTuple):
    """A named mistake: alter yields the result that it would give, in each of its variants.

    flips: the mistake rounds something that was not captured, and a value near the middle between two
    neighbours may have gone the other way; then the middle error counts, not the greatest.
    """

    name: str
    text: str
    kinds: tuple[str, ...]
    alter: Callable[[Scene], Iterator[np.ndarray]]
    flips: bool


MISTAKES: list[Mistake] = []


def mistake(
    name: str, text: str, *kinds: str, flips: bool = False
) -> Callable[..., Callable[[Scene], Iterator[np.ndarray]]]:
    """Put a generator of altered results on the shelf."""

    def add(alter: Callable[[Scene], Iterator[np.ndarray]]) -> Callable[[Scene], Iterator[np.ndarray]]:
        MISTAKES.append(Mistake(name, text, kinds, alter, flips))
        return alter

    return add


def simple(
    name: str, text: str, kind: str, alter: Callable[[Scene], np.ndarray], flips: bool = False
) -> None:
    """A mistake with a single variant."""
    mistake(name, text, kind, flips=flips)(lambda scene: iter([alter(scene)]))


def explain(scene: Scene) -> dict[str, float]:
    """Greatest error in rounding units that is left under each mistake that applies, by its name."""
    left = {}
    for found in MISTAKES:
        if scene.op.kind in found.kinds:
            rest = [residual(scene, altered, found.flips) for altered in found.alter(scene)]
            if rest:
                left[found.name] = min(rest)
    return left


def residual(scene: Scene, altered: np.ndarray, flips: bool = False) -> float:
    """What is left of the error, in rounding units of the larger of right and wrong result."""
    if altered.shape != scene.got.shape:
        return math.inf
    with np.errstate(all="ignore"):
        growth = np.maximum(1, np.abs(altered) / np.maximum(np.abs(scene.exact), 1e-300))
        units = np.abs(scene.got - altered) / (scene.size * growth)
        # NaN where the mistake gives NaN as well is explained
        units = np.where(~np.isfinite(scene.got) & ~np.isfinite(altered), 0.0, units)
    rest = float(np.median(units) if flips else np.max(units))
    return rest if math.isfinite(rest) else math.inf


def text_of(name: str) -> str:
    """What a mistake's name means, in words."""
    return next(found.text for found in MISTAKES if found.name == name)


# -- embedding


def positions(scene: Scene) -> np.ndarray:
    return np.asarray(scene.params["wpe"][: scene.tokens.shape[1]], np.float64)


def rows(scene: Scene, ids: np.ndarray) -> np.ndarray:
    return np.asarray(scene.params["wte"][ids], np.float64)


simple(
    "no_positions", "the position embedding wpe is not added", "embedding", lambda s: rows(s, s.tokens)
)
simple(
    "positions_from_1",
    "positions count from 1, not from 0",
    "embedding",
    lambda s: (
        rows(s, s.tokens) + np.roll(np.asarray(s.params["wpe"], np.float64), -1, 0)[: s.tokens.shape[1]]
    ),
)
simple(
    "embedding_scaled",
    "the token embedding is multiplied by sqrt(n_embd), which GPT-2 does not do",
    "embedding",
    lambda s: rows(s, s.tokens) * math.sqrt(s.hparams.n_embd) + positions(s),
)
simple(
    "positions_all_0",
    "every token gets position 0",
    "embedding",
    lambda s: rows(s, s.tokens) + positions(s)[:1],
)
simple(
    "tokens_shifted",
    "the embedding of the previous token is used",
    "embedding",
    lambda s: rows(s, np.roll(s.tokens, 1, axis=1)) + positions(s),
)


@mistake(
    "cache_position", "positions are not counted on from the cache: each chunk starts anew", "embedding"
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if scene.cuts:
        n, table = scene.tokens.shape[1], np.asarray(scene.params["wpe"], np.float64)
        starts = np.zeros(n, int)
        for cut in scene.cuts:
            starts[cut:] = cut
        for late in (0, 1):  # from 0 in every chunk, or one short of the right place
            index = np.arange(n) - np.where(starts > 0, 1 if late else starts, 0)
            yield rows(scene, scene.tokens) + table[np.maximum(index, 0)]
        index = np.arange(n) + (starts > 0)
        yield rows(scene, scene.tokens) + table[np.minimum(index, len(table) - 1)]


# -- layer norm


def norm(
    scene: Scene,
    epsilon: float = oracle.EPSILON,
    ddof: int = 0,
    centre: bool = True,
    inside: bool = True,
    axis: int = -1,
) -> np.ndarray:
    """(x - mean) / s, before scaling and shifting, with one thing done differently."""
    x = scene.inputs[0]
    mean = x.mean(axis=axis, keepdims=True) if centre else 0.0
    variance = (
        np.var(x, axis=axis, keepdims=True, ddof=ddof)
        if centre
        else np.mean(x * x, axis=axis, keepdims=True)
    )
    s = np.sqrt(variance + epsilon) if inside else np.sqrt(variance) + epsilon
    return (x - mean) / s


def affine(scene: Scene, value: np.ndarray) -> np.ndarray:
    return value * scene.weight("g") + scene.weight("b")


for _epsilon in (1e-6, 1e-12, 1e-8, 1e-3, 1e-4, 0.0):
    simple(
        f"epsilon_{_epsilon:g}",
        f"epsilon is {_epsilon:g}, not 1e-5",
        "layer_norm",
        lambda s, e=_epsilon: affine(s, norm(s, epsilon=e)),  # type: ignore[misc]
    )
simple(
    "epsilon_outside_root",
    "epsilon is added to the standard deviation, not to the variance",
    "layer_norm",
    lambda s: affine(s, norm(s, inside=False)),
)
simple(
    "variance_ddof_1",
    "the variance is divided by n_embd - 1 (unbiased), not by n_embd",
    "layer_norm",
    lambda s: affine(s, norm(s, ddof=1)),
)
simple(
    "rms_norm",
    "the mean is not subtracted (RMS norm)",
    "layer_norm",
    lambda s: affine(s, norm(s, centre=False)),
)
simple("norm_without_bias", "b is not added", "layer_norm", lambda s: norm(s) * s.weight("g"))
simple("norm_without_gain", "g is not applied", "layer_norm", lambda s: norm(s) + s.weight("b"))
simple(
    "norm_gain_plus_1",
    "1 + g is applied, not g",
    "layer_norm",
    lambda s: norm(s) * (1 + s.weight("g")) + s.weight("b"),
)
simple(
    "norm_gain_bias_swapped",
    "g and b are exchanged",
    "layer_norm",
    lambda s: norm(s) * s.weight("b") + s.weight("g"),
)
simple(
    "norm_over_positions",
    "the mean and variance run over positions, not over channels",
    "layer_norm",
    lambda s: affine(s, norm(s, axis=1)),
)
simple(
    "norm_over_batch",
    "the mean and variance run over the batch, not over channels",
    "layer_norm",
    lambda s: affine(s, norm(s, axis=0)),
)
simple("norm_skipped", "the input is passed on unnormalised", "layer_norm", lambda s: s.inputs[0])


# -- linear and head


def linear(scene: Scene, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x @ w + scene.weight("b")


simple("no_bias", "the bias b is not added", "linear", lambda s: s.inputs[0] @ s.weight("w"))
simple("bias_twice", "the bias b is added twice", "linear", lambda s: s.exact + s.weight("b"))


@mistake("transposed", "w is used transposed", "linear")
def _(scene: Scene) -> Iterator[np.ndarray]:
    w = scene.weight("w")
    if w.shape[0] == w.shape[1]:
        yield linear(scene, scene.inputs[0], w.T)
    yield linear(scene, scene.inputs[0], w.reshape(w.shape[::-1]).T)


def narrow(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding to nearest in a narrower format, kept as float64."""
    return lambda x: np.asarray(noise.round_nearest(np.asarray(x, np.float32), dtype), np.float64)


def truncate_tf32(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(np.float64)


def product(scene: Scene, cast: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """x @ w with both factors cast, then the bias, unharmed."""
    x = cast(scene.inputs[0])
    if scene.op.kind == "head":
        return x @ cast(scene.params["wte"]).T
    return linear(scene, x, cast(scene.params[f"{scene.op.name}/w"]))


@mistake("tf32_inputs", "the factors are rounded to TF32 before they are multiplied", "linear", "head")
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield product(scene, narrow("tf32"))
    yield product(scene, truncate_tf32)


simple_kinds = ("linear", "head")
mistake(
    "bfloat16_inputs", "the factors are rounded to bfloat16 before they are multiplied", *simple_kinds
)(lambda s: iter([product(s, narrow("bfloat16"))]))


@mistake(
    "float16_inputs", "the factors are rounded to float16 before they are multiplied", *simple_kinds
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    with np.errstate(over="ignore"):
        yield product(scene, lambda x: np.asarray(x, np.float16).astype(np.float64))


def reweighted(scene: Scene, cast: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The product with the weights alone cast."""
    if scene.op.kind == "head":
        return scene.inputs[0] @ cast(scene.params["wte"]).T
    return linear(scene, scene.inputs[0], cast(scene.params[f"{scene.op.name}/w"]))


mistake("bfloat16_weights", "the weights were rounded to bfloat16", *simple_kinds)(
    lambda s: iter([reweighted(s, narrow("bfloat16"))])
)
mistake("float16_weights", "the weights were rounded to float16", *simple_kinds)(
    lambda s: iter([reweighted(s, lambda w: np.asarray(w, np.float16).astype(np.float64))])
)


@mistake("int8_weights", "the weights were quantised to int8", *simple_kinds)
def _(scene: Scene) -> Iterator[np.ndarray]:
    def quantised(w: np.ndarray, axis: int | None) -> np.ndarray:
        scale = np.asarray(np.abs(w).max(axis=axis, keepdims=True) / 127, np.float32)
        return np.asarray(np.round(w / scale) * scale, np.float64)

    for axis in (None, 0, 1):
        yield reweighted(scene, lambda w, axis=axis: quantised(w, axis))  # type: ignore[misc]


@mistake("one_weight", "a single weight is off", *simple_kinds)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """The column with the greatest error, fitted by a multiple of the input channel that fits best."""
    x = scene.inputs[0].reshape(-1, scene.inputs[0].shape[-1])
    error = (scene.got - scene.exact).reshape(len(x), -1)
    column = int(np.argmax(np.max(np.abs(error) / scene.size.reshape(error.shape), axis=0)))
    fit = (x.T @ error[:, column]) / np.maximum((x * x).sum(axis=0), 1e-300)
    left = ((error[:, column][:, None] - x * fit) ** 2).sum(axis=0)
    row = int(np.argmin(left))
    mended = scene.exact.copy()
    mended[..., column] += fit[row] * scene.inputs[0][..., row]
    yield mended


@mistake(
    "columns_swapped", "output channels are exchanged (rows or columns of the weights)", *simple_kinds
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    error = np.abs(scene.got - scene.exact) / scene.size
    bad = np.flatnonzero(error.reshape(-1, error.shape[-1]).max(axis=0) > 16)
    if 2 <= len(bad) <= 64:
        got, exact = (x.reshape(-1, x.shape[-1])[:, bad] for x in (scene.got, scene.exact))
        nearest = np.abs(got[:, :, None] - exact[:, None, :]).max(axis=0).argmin(axis=1)
        mended = scene.exact.copy()
        mended[..., bad] = scene.exact[..., bad[nearest]]
        yield mended


@mistake("inputs_swapped", "two input channels meet each other's weights", *simple_kinds)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Two rows i, j of w exchanged add (x_j - x_i)(w_i - w_j): an error of rank one."""
    if scene.op.kind != "linear":
        return
    w, x = scene.weight("w"), scene.inputs[0].reshape(-1, scene.inputs[0].shape[-1])
    error = (scene.got - scene.exact).reshape(len(x), -1)
    direction = np.linalg.svd(error, full_matrices=False)[2][0]
    best, pair = math.inf, (0, 0)
    for i in range(len(w)):  # of the swapped pair, the difference of the rows lies along the error
        gap = w[i] - w  # [n_in, n_out]
        off = (gap * gap).sum(axis=1) - (gap @ direction) ** 2
        off[i] = math.inf
        j = int(np.argmin(off))
        if off[j] < best:
            best, pair = float(off[j]), (i, j)
    i, j = pair
    swapped = w.copy()
    swapped[[i, j]] = w[[j, i]]
    yield linear(scene, scene.inputs[0], swapped)


simple(
    "head_shifted",
    "the head's rows are those of the neighbouring tokens",
    "head",
    lambda s: np.roll(s.exact, 1, axis=-1),
)
mistake("head_scaled", "the logits are scaled by 1 / sqrt(n_embd)", "head")(
    lambda s: iter([s.exact / math.sqrt(s.hparams.n_embd)])
)


@mistake("head_without_ln_f", "the head reads the last block's output, not ln_f's", "head")
def _(scene: Scene) -> Iterator[np.ndarray]:
    last = f"h{scene.hparams.n_layer - 1}"
    if last in scene.taps:
        yield scene.again([scene.taps[last]])


@mistake(
    "only_last_position",
    "only the last position's logits are computed; the others are copies or zero",
    "head",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    parts = np.split(scene.exact, scene.cuts, axis=1)
    yield np.concatenate([np.broadcast_to(part[:, -1:], part.shape) for part in parts], axis=1)
    zeros = [np.zeros_like(part) for part in parts]
    for zero, part in zip(zeros, parts, strict=True):
        zero[:, -1:] = part[:, -1:]
    yield np.concatenate(zeros, axis=1)


# -- attention


def reach(scene: Scene) -> np.ndarray:
    """[n, n]: which keys exist at all when a query is computed: in decode, later chunks do not yet."""
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
    """Attention with one thing done differently; in decode, chunk by chunk."""
    parts = oracle.split_heads(scene.inputs[0], scene.hparams.n_head)
    q, k, v = (parts[i] for i in order)
    scores = mask(settle(q @ k.swapaxes(-1, -2) * scale(q.shape[-1])))
    there = reach(scene)
    with np.errstate(all="ignore"):
        weights = probs(np.where(there, scores, -np.inf))
        heads = settle(np.where(there, weights, 0.0)) @ v
    return np.concatenate([merge(part) for part in np.split(heads, scene.cuts, axis=2)], axis=1)


def shifted_mask(diagonal: int) -> Callable[[np.ndarray], np.ndarray]:
    def mask(scores: np.ndarray) -> np.ndarray:
        visible = np.tril(np.ones(scores.shape[-2:], bool), k=diagonal)
        return np.where(visible, scores, -1e30)

    return mask


def softly_masked(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def mask(scores: np.ndarray) -> np.ndarray:
        future = np.triu(np.ones(scores.shape[-2:], bool), k=1)
        return np.where(future, value, scores)

    return mask


def softmax_over(axis: int) -> Callable[[np.ndarray], np.ndarray]:
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


@mistake("softmax_temperature", "scores are scaled by a constant that is slightly off", "attention")
def _(scene: Scene) -> Iterator[np.ndarray]:
    """The constant is fitted, by two Gauss-Newton steps from the right one."""
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


@mistake("heads_interleaved", "heads are interleaved: the head is taken as the inner axis", "attention")
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
    # q, k and v lie together for each head, as some other models have them
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


@mistake("heads_swapped", "heads stand in each other's places", "attention")
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


@mistake(
    "cache_mask",
    "in decode, new positions do not see all of the cache, or see it wrongly masked",
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
            elif kind == "past":  # the whole chunk is visible to all of it
                visible[start:stop, start:stop] = True
            elif kind == "aligned":  # the mask starts at column 0: the cache is masked like a prefill
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
    "cache_stale", "in decode, keys or values of the cache are not this sequence's own", "attention"
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Cached keys or values exchanged among batch rows or positions, each time the cache is used."""
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
    return x


# -- gelu


def tanh_form(
    x: np.ndarray, cubic: float = 0.044715, root: float = math.sqrt(2 / math.pi)
) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(root * (x + cubic * x**3)))


def logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def half_table(x: np.ndarray) -> np.ndarray:
    """GELU looked up by the input's float16 bits, result stored as float16."""
    rounded = np.asarray(x, np.float16).astype(np.float64)
    return np.asarray(oracle.gelu(rounded), np.float16).astype(np.float64)


_ERF = np.vectorize(math.erf, otypes=[float])
_GELUS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "erf_gelu": ("erf instead of tanh GELU", lambda x: 0.5 * x * (1 + _ERF(x / math.sqrt(2)))),
    "sigmoid_gelu": ("x sigmoid(1.702 x) instead of tanh GELU", lambda x: x * logistic(1.702 * x)),
    "relu": ("ReLU instead of GELU", lambda x: np.maximum(x, 0)),
    "silu": ("SiLU instead of GELU", lambda x: x * logistic(x)),
    "gelu_skipped": ("no activation at all", lambda x: x),
    "gelu_without_half": ("the factor 1/2 is missing", lambda x: 2 * oracle.gelu(x)),
    "gelu_cubic_missing": ("the cubic term is missing", lambda x: tanh_form(x, cubic=0.0)),
    "gelu_cubic_0.44715": ("0.44715 instead of 0.044715", lambda x: tanh_form(x, cubic=0.44715)),
    "gelu_cubic_0.0447": ("0.0447 instead of 0.044715", lambda x: tanh_form(x, cubic=0.0447)),
    "gelu_root_0.8": ("0.8 instead of sqrt(2/pi)", lambda x: tanh_form(x, root=0.8)),
    "gelu_root_0.7979": ("0.7979 instead of sqrt(2/pi)", lambda x: tanh_form(x, root=0.7979)),
    "gelu_float16_table": ("GELU from a table indexed by and stored in float16", half_table),
}  # fmt: skip
for _name, (_text, _gelu) in _GELUS.items():
    simple(_name, _text, "gelu", lambda s, f=_gelu: f(s.inputs[0]))  # type: ignore[misc]


# -- residual additions


simple(
    "residual_missing",
    "the residual is not added: only the branch is passed on",
    "add",
    lambda s: s.inputs[1],
)
simple(
    "branch_missing",
    "the branch is not added: only the residual is passed on",
    "add",
    lambda s: s.inputs[0],
)
simple("residual_twice", "the residual is added twice", "add", lambda s: 2 * s.inputs[0] + s.inputs[1])
simple("branch_twice", "the branch is added twice", "add", lambda s: s.inputs[0] + 2 * s.inputs[1])
simple("branch_subtracted", "the branch is subtracted", "add", lambda s: s.inputs[0] - s.inputs[1])


@mistake("passed_on", "the result is that of another place: the operation was skipped", "add")
def _(scene: Scene) -> Iterator[np.ndarray]:
    for name, value in scene.taps.items():
        if name != scene.op.name and value.shape == scene.got.shape:
            yield value


@mistake("residual_source", "the residual is taken from another place", "add")
def _(scene: Scene) -> Iterator[np.ndarray]:
    for name, value in scene.taps.items():
        if name != scene.op.name and name != scene.op.inputs[0] and value.shape == scene.got.shape:
            yield value + scene.inputs[1]


# -- any operation

ANY = ("embedding", "layer_norm", "linear", "attention", "gelu", "add", "head")


@mistake("zero", "the result is zero", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield np.zeros_like(scene.exact)


@mistake("scaled", "the result is a constant multiple of the right one", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    with np.errstate(all="ignore"):
        factor = float((scene.got * scene.exact).sum() / (scene.exact * scene.exact).sum())
    if math.isfinite(factor) and abs(factor) > 1e-12:
        yield factor * scene.exact


@mistake("bfloat16_result", "the result is rounded to bfloat16", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield from nearest_or_other(scene, "bfloat16")


@mistake("float16_result", "the result is rounded to float16", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield from nearest_or_other(scene, "float16")


def nearest_or_other(scene: Scene, dtype: str) -> Iterator[np.ndarray]:
    """The exact result rounded; where the implementation's fell on the other side of a tie, that one."""
    cast = narrow(dtype)
    if not np.array_equal(cast(scene.got), scene.got):
        return  # what was captured has more digits than that
    rounded = cast(scene.exact)
    step = 2 * noise.UNIT_ROUNDOFF[dtype] * np.abs(scene.exact)
    yield np.where(np.abs(scene.got - scene.exact) <= step, scene.got, rounded)


@mistake("batch_rows", "rows of the batch are exchanged", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if len(scene.exact) > 1:
        yield scene.exact[::-1]
        yield np.roll(scene.exact, 1, axis=0)
        yield np.roll(scene.exact, -1, axis=0)
        yield np.broadcast_to(scene.exact[:1], scene.exact.shape)


@mistake("positions_shifted", "the result stands one position off", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if scene.exact.shape[1] > 1:
        yield np.roll(scene.exact, 1, axis=1)
        yield np.roll(scene.exact, -1, axis=1)


@mistake("other_weights", "the weights are those of another layer or place", "layer_norm", "linear")
def _(scene: Scene) -> Iterator[np.ndarray]:
    own = {leaf: scene.params[f"{scene.op.name}/{leaf}"].shape for leaf in ("b",)}
    for op in graph(scene.hparams.n_layer):
        if op.kind == scene.op.kind and op.name != scene.op.name:
            if scene.params[f"{op.name}/b"].shape != own["b"]:
                continue
            w = f"{op.name}/w"
            if op.kind == "linear" and scene.params[w].shape != scene.params[f"{scene.op.name}/w"].shape:
                continue
            yield scene.again(scene.inputs, op.name)


@mistake(
    "other_input",
    "the input is taken from another place",
    "layer_norm",
    "linear",
    "gelu",
    "attention",
    "head",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for name, value in scene.taps.items():
        if (
            name not in scene.op.inputs
            and name != scene.op.name
            and value.shape == scene.inputs[0].shape
        ):
            yield scene.again([value])
