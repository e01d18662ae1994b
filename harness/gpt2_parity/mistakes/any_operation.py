"""Mistakes that any operation can have: the general ones, which are tried last."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import graph
from gpt2_parity.mistakes.registry import Scene, mistake, narrow

Order = Literal["C", "F"]
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
    """The exact result rounded to dtype; within one step of it, the captured one (ties go either way).

    All [batch, n, width].
    """
    cast = narrow(dtype)
    if not np.array_equal(cast(scene.got), scene.got):
        return  # the captured result has more digits than dtype
    rounded = cast(scene.exact)
    step = 2 * dtypes.UNIT_ROUNDOFF[dtype] * np.abs(scene.exact)
    yield np.where(np.abs(scene.got - scene.exact) <= step, scene.got, rounded)


@mistake("memory_order", "elements are read in the order of another memory layout", "gelu", "add")
def _(scene: Scene) -> Iterator[np.ndarray]:
    """Call by call: as if column by column, or the other way round.

    An element keeps the rounding bound of where it came from: within it, the captured value counts.
    """

    def reordered(x: np.ndarray, read: Order, write: Order) -> np.ndarray:
        parts = np.split(x, scene.cuts, axis=1)
        moved = [part.ravel(read).reshape(part.shape, order=write) for part in parts]
        return np.concatenate(moved, axis=1)

    orders: tuple[tuple[Order, Order], ...] = (("F", "C"), ("C", "F"))
    for order in orders:
        altered, size = reordered(scene.exact, *order), reordered(scene.size, *order)
        yield np.where(np.abs(scene.got - altered) <= 16 * size, scene.got, altered)


@mistake("batch_rows", "rows of the batch are exchanged", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if len(scene.exact) > 1:
        yield scene.exact[::-1]
        yield np.roll(scene.exact, 1, axis=0)
        yield np.roll(scene.exact, -1, axis=0)
        yield np.broadcast_to(scene.exact[:1], scene.exact.shape)


@mistake("positions_shifted", "the result is one position off", *ANY)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if scene.exact.shape[1] > 1:
        yield np.roll(scene.exact, 1, axis=1)
        yield np.roll(scene.exact, -1, axis=1)


@mistake("other_weights", "the weights are those of another operation or layer", "layer_norm", "linear")
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
    "the input is the result of another operation",
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
