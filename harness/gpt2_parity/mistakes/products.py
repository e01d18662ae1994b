"""Mistakes in matrix products: the linear layers and the tied head."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpt2_parity.mistakes.embedding import positions
from gpt2_parity.mistakes.registry import FEW, Scene, mistake, narrow, simple


def linear(scene: Scene, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [batch, n, n_in] @ w [n_in, n_out], plus the operation's bias b [n_out]."""
    return x @ w + scene.weight("b")


simple("no_bias", "the bias b is not added", "linear", lambda s: s.inputs[0] @ s.weight("w"))
simple("bias_twice", "the bias b is added twice", "linear", lambda s: s.exact + s.weight("b"))


@mistake("transposed", "w is used transposed", "linear")
def _(scene: Scene) -> Iterator[np.ndarray]:
    w = scene.weight("w")
    if w.shape[0] == w.shape[1]:
        yield linear(scene, scene.inputs[0], w.T)
    yield linear(scene, scene.inputs[0], w.reshape(w.shape[::-1]).T)


def truncate_tf32(x: np.ndarray) -> np.ndarray:
    """x [...] cut, not rounded, to TF32's digits; kept as float64."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(np.float64)


def product(scene: Scene, cast: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """x @ w with both factors cast, plus the bias, which is not cast: [batch, n, n_out]."""
    x = cast(scene.inputs[0])
    if scene.op.kind == "head":
        return x @ cast(scene.params["wte"]).T
    return linear(scene, x, cast(scene.params[f"{scene.op.name}/w"]))


simple_kinds = ("linear", "head")


# XLA fuses a layer norm or GELU into the product, whose factor then has more digits than the tap
@mistake(
    "tf32_inputs",
    "the factors are rounded to TF32 before they are multiplied",
    *simple_kinds,
    flips=True,
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for cast in (narrow("tf32"), truncate_tf32):
        rounded = product(scene, cast)
        yield rounded
        yield but_for_some_chunks(scene, rounded)


def but_for_some_chunks(scene: Scene, altered: np.ndarray) -> np.ndarray:
    """altered, but exact in chunks where that is nearer: cuBLAS uses no tensor cores for single rows.

    All [batch, n, n_out].
    """
    parts = (np.split(array, scene.cuts, axis=1) for array in (scene.got, scene.exact, altered))
    chosen = [
        min(right, wrong, key=lambda made, got=got: float(np.max(np.abs(got - made))))  # type: ignore[misc]
        for got, right, wrong in zip(*parts, strict=True)
    ]
    return np.concatenate(chosen, axis=1)


mistake(
    "bfloat16_inputs",
    "the factors are rounded to bfloat16 before they are multiplied",
    *simple_kinds,
    flips=True,
)(lambda s: iter([product(s, narrow("bfloat16"))]))


@mistake(
    "float16_inputs", "the factors are rounded to float16 before they are multiplied", *simple_kinds
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    with np.errstate(over="ignore"):
        yield product(scene, lambda x: np.asarray(x, np.float16).astype(np.float64))


def reweighted(scene: Scene, cast: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The product [batch, n, n_out] with only the weights cast; of the embedding, that is wte."""
    if scene.op.kind == "embedding":
        return cast(scene.params["wte"])[scene.tokens] + positions(scene)
    if scene.op.kind == "head":
        return scene.inputs[0] @ cast(scene.params["wte"]).T
    return linear(scene, scene.inputs[0], cast(scene.params[f"{scene.op.name}/w"]))


mistake("bfloat16_weights", "the weights were rounded to bfloat16", *simple_kinds)(
    lambda s: iter([reweighted(s, narrow("bfloat16"))])
)
mistake("float16_weights", "the weights were rounded to float16", *simple_kinds)(
    lambda s: iter([reweighted(s, lambda w: np.asarray(w, np.float16).astype(np.float64))])
)


def quantised(
    x: np.ndarray, most: float, axis: int | None = None, group: int = 0, half: bool = False
) -> np.ndarray:
    """x [n, m] rounded to whole multiples of a scale, which is the greatest magnitude / most.

    One scale for all of x, for each slice along axis, or for each group of so many elements of it.
    half: the scale is kept in float16. In float32, as it is done: half way, digits decide.
    """
    parts = x = np.asarray(x, np.float32)
    if group and axis is not None:
        parts = np.moveaxis(x, axis, -1)
        parts = parts.reshape(*parts.shape[:-1], -1, group)
    along = -1 if group else axis
    scale = np.asarray(np.abs(parts).max(axis=along, keepdims=True) / most, np.float32)
    scale = np.asarray(scale, np.float16 if half else np.float32).astype(np.float32)
    whole = np.round(parts / np.maximum(scale, np.float32(1e-30)))
    rounded = np.clip(whole, -math.ceil(most), math.floor(most)) * scale
    if group and axis is not None:
        rounded = np.moveaxis(rounded.reshape(np.moveaxis(x, axis, -1).shape), -1, axis)
    return np.asarray(rounded, np.float64)


def inputs_axis(scene: Scene) -> int:
    """The axis of a weight that belongs to the inputs: the head's is wte, which is transposed."""
    return 0 if scene.op.kind == "linear" else 1


def of_few_bits(scene: Scene, levels: tuple[float, ...]) -> Iterator[np.ndarray]:
    """The result [batch, n, n_out] with weights of so many levels, by the usual choices of scales.

    One for the whole weight, for an output or an input; then for groups of the inputs of an output.
    """
    inputs = inputs_axis(scene)
    n_in = scene.exact.shape[-1] if scene.op.kind == "embedding" else scene.inputs[0].shape[-1]
    choices: list[dict[str, Any]] = [{}, {"axis": inputs}, {"axis": 1 - inputs}]
    choices += [{"axis": inputs, "group": size} for size in (32, 64, 128) if n_in % size == 0]
    for most in levels:
        for choice in choices:
            for half in (False, True):
                yield reweighted(
                    scene,
                    lambda w, m=most, h=half, c=choice: quantised(w, m, half=h, **c),  # type: ignore[misc]
                )


# Whoever multiplies by the reciprocal of a scale rounds some values to the other neighbour.
few_bits = functools.partial(mistake, flips=True)


@few_bits("int8_weights", "the weights were quantised to int8", *simple_kinds, "embedding")
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield from of_few_bits(scene, (127, 127.5, 128))


@few_bits("int4_weights", "the weights were quantised to 4 bits", *simple_kinds, "embedding")
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield from of_few_bits(scene, (7, 7.5, 8))


MIXING = ("causality", "batch")  # checks that fail by themselves, because tokens change each other
BY_TENSOR = "with one scale for all tokens of a call: rows and later tokens change each other"


@few_bits(
    "int8_inputs", "the inputs are quantised to int8, with one scale for each token", *simple_kinds
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for narrowed in with_int8_inputs(scene, axis=-1):
        yield reweighted(narrowed, as_they_are)


@few_bits(
    "int8_products",
    "weights and inputs are quantised to int8, the inputs with one scale for each token",
    *simple_kinds,
    "embedding",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for narrowed in with_int8_inputs(scene, axis=-1):
        yield from with_int8_weights(narrowed)


@few_bits(
    "int8_inputs_by_tensor",
    f"the inputs are quantised to int8, {BY_TENSOR}",
    *simple_kinds,
    breaks=MIXING,
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for narrowed in with_int8_inputs(scene, axis=None):
        yield reweighted(narrowed, as_they_are)


@few_bits(
    "int8_products_by_tensor",
    f"weights and inputs are quantised to int8, the inputs {BY_TENSOR}",
    *simple_kinds,
    "embedding",
    breaks=MIXING,
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    for narrowed in with_int8_inputs(scene, axis=None):
        yield from with_int8_weights(narrowed)


def as_they_are(w: np.ndarray) -> np.ndarray:
    """A weight [n, m] in float64."""
    return np.asarray(w, np.float64)


def with_int8_inputs(scene: Scene, axis: int | None) -> Iterator[Scene]:
    """The scene with its inputs in int8, and with them in uint8 around a zero point.

    axis: as in quantised(); one call after the other. An embedding has no inputs.
    """
    for quantise in (quantised, quantised_with_zero):
        if scene.inputs:
            parts = np.split(scene.inputs[0], scene.cuts, axis=1)
            x = np.concatenate([quantise(part, 127, axis) for part in parts], axis=1)
            yield scene._replace(inputs=[x])
        else:
            yield scene


def with_int8_weights(scene: Scene) -> Iterator[np.ndarray]:
    """The result [batch, n, n_out] with int8 weights: one scale for an output, for all, for an input."""
    inputs = inputs_axis(scene)
    for axis in (inputs, None, 1 - inputs):
        yield reweighted(scene, lambda w, axis=axis: quantised(w, 127, axis))  # type: ignore[misc]


def quantised_with_zero(x: np.ndarray, most: float, axis: int | None = None) -> np.ndarray:
    """x [...] rounded to 2 most + 2 whole steps from its least value to its greatest, or 0.

    One step for all of x, or for each slice along axis. In float32, as ONNX's DynamicQuantizeLinear.
    """
    x = np.asarray(x, np.float32)
    low = np.minimum(x.min(axis=axis, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=axis, keepdims=True), np.float32(0))
    top = np.float32(2 * most + 1)
    scale = np.maximum((high - low) / top, np.float32(1e-30))
    zero = np.round(-low / scale)
    return np.asarray((np.clip(np.round(x / scale) + zero, 0, top) - zero) * scale, np.float64)


def worst_column(scene: Scene) -> tuple[int, np.ndarray]:
    """The output channel with the greatest error, and its error [batch * n] at every position."""
    error = (scene.got - scene.exact).reshape(-1, scene.got.shape[-1])
    column = int(np.argmax(np.max(np.abs(error) / scene.size.reshape(error.shape), axis=0)))
    return column, error[:, column]


@mistake("one_bias", "a single bias is off", "linear")
def _(scene: Scene) -> Iterator[np.ndarray]:
    """The column with the greatest error, fitted by a constant."""
    column, error = worst_column(scene)
    if len(error) >= FEW:
        mended = scene.exact.copy()
        mended[..., column] += error.mean()
        yield mended


@mistake("one_weight", "a single weight is off", *simple_kinds)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """The column with the greatest error, fitted by a multiple of the input channel that fits best."""
    column, error = worst_column(scene)
    if len(error) < FEW:
        return
    x = scene.inputs[0].reshape(len(error), -1)
    fit = (x.T @ error) / np.maximum((x * x).sum(axis=0), 1e-300)
    left = ((error[:, None] - x * fit) ** 2).sum(axis=0)
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


@mistake("inputs_swapped", "two input channels are exchanged (two rows of the weights)", *simple_kinds)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Exchanging rows i and j of w adds (x_j - x_i)(w_i - w_j): an error of rank one."""
    if scene.op.kind != "linear":
        return
    w, x = scene.weight("w"), scene.inputs[0].reshape(-1, scene.inputs[0].shape[-1])
    error = (scene.got - scene.exact).reshape(len(x), -1)
    direction = np.linalg.svd(error, full_matrices=False)[2][0]
    best, pair = math.inf, (0, 0)
    for i in range(len(w)):  # of the exchanged pair, the difference of the rows is parallel to the error
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


@mistake("logits_shifted", "the logits of a position are all off by the same amount", "head")
def _(scene: Scene) -> Iterator[np.ndarray]:
    yield scene.exact + np.median(scene.got - scene.exact, axis=-1, keepdims=True)


@mistake(
    "fast_product",
    "the product is by a fast algorithm such as Strassen's, which is lawful but less accurate: its "
    "error grows with the norm of the whole matrices, not with |x| |w|",
    *simple_kinds,
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """What is left is the error in units of the greatest bound of the call, not of each element's own.

    Only if the error has the size of rounding, is about as large where the bound is small as where it is
    large, and is noise: a wrong weight or input channel makes an error of rank one.
    """
    error = (scene.got - scene.exact).reshape(-1, scene.got.shape[-1])
    if len(error) < FEW or not np.isfinite(error).all():
        return
    size = scene.size.reshape(error.shape)
    if np.abs(error).max() > NORMWISE * size.max() or growth(error, size) > FLAT:
        return
    rows, columns = (
        max(1, n // MANY) for n in error.shape
    )  # the head of a large model is far too large
    squares = np.linalg.svd(error[::rows, ::columns], compute_uv=False) ** 2
    if squares[0] <= RANK_ONE * squares.sum():
        yield scene.got - (scene.got - scene.exact) * (scene.size / size.max())


# Strassen's products of one to three levels, where they failed on models with and without outliers, were
# at up to 1.9, 0.5 and 0.24. Others of float32 grow with exponents of 0.4 to 1.5, and do not fail.
NORMWISE, FLAT, RANK_ONE = 3.0, 0.6, 0.4
MANY = 256  # rows and columns of an error; of more, at most twice as many are examined


def growth(error: np.ndarray, size: np.ndarray) -> float:
    """The exponent with which errors grow with their bounds, both [n, width]; 1: proportional.

    From the tenth of the elements with the smallest bounds to the tenth with the largest.
    """
    low, high = np.quantile(size, [0.1, 0.9])
    rms = [
        [float(np.sqrt(np.mean(x[part] ** 2))) for part in (size <= low, size >= high)]
        for x in (error, size)
    ]
    (small, large), (least, most) = rms
    return math.log(large / small) / math.log(most / least) if small and most > least else math.inf
