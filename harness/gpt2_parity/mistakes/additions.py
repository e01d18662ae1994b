"""Mistakes in the residual additions."""

from collections.abc import Iterator

import numpy as np

from gpt2_parity.mistakes.registry import Scene, mistake, simple

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


@mistake("passed_on", "the result is that of another operation: this one was skipped", "add")
def _(scene: Scene) -> Iterator[np.ndarray]:
    for name, value in scene.taps.items():
        if name != scene.op.name and value.shape == scene.got.shape:
            yield value


@mistake("residual_source", "the residual is the result of another operation", "add")
def _(scene: Scene) -> Iterator[np.ndarray]:
    for name, value in scene.taps.items():
        if name != scene.op.name and name != scene.op.inputs[0] and value.shape == scene.got.shape:
            yield value + scene.inputs[1]
