"""A second, small model, beside the one under test: for what that one cannot show.

No two of its sizes are equal, and n_vocab is odd, where the first may have as many heads as layers, as
micro and 124M do. Heads are 64 wide, as in every official model. All logits are negative, so that zeros,
with which a vocabulary may be padded, would be the likeliest. Where they are asked for, large attention
scores or large inputs of GELU are made by a few biases: official models have them, and micro's stay
below 33 and 6.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from harness import golden, mapped, shapes
from harness.contract import HParams
from harness.golden import Record
from harness.subject import Subject

SIZES = HParams(n_vocab=301, n_ctx=96, n_embd=192, n_head=3, n_layer=2)
SHAPE = (2, 33)  # of its tokens
CASE = "second_model"
# what may be large: the bias that makes it so, in every layer, and its elements
LARGE = {
    "attention_scores": ("attn/c_attn/b", {5: 30.0, SIZES.n_embd + 5: 30.0}),  # 900 / sqrt(64) = 112
    "gelu_inputs": ("mlp/c_fc/b", {7: 15.0, 99: -15.0}),
}


@contextmanager
def beside(subject: Subject, large: str = "") -> Iterator[tuple[Subject, Record]]:
    """The same implementation with the second model, and the truth; what is large is named in LARGE."""
    params, record = truth(subject.target.dtype, large)
    with tempfile.TemporaryDirectory(prefix="parity-second-") as folder:
        weights = Path(folder, shapes.WEIGHTS)
        mapped.write(weights, params)
        yield Subject.load(subject.impl, subject.target, weights, SIZES, [record]), record


@functools.cache
def truth(dtype: str, large: str) -> tuple[Mapping[str, np.ndarray], Record]:
    """Its generated weights, and what is true of them, with the noise floor at one dtype."""
    params = shapes.generate(SIZES)
    if large:
        leaf, elements = LARGE[large]
        for i in range(SIZES.n_layer):
            for element, value in elements.items():
                params[f"h{i}/{leaf}"][element] = value
    else:
        params["wte"][:, 0] += 1  # what all tokens have in common,
        params["ln_f/b"][0] = -20  # and what takes all logits below 0
    tokens = np.random.default_rng(0).integers(0, SIZES.n_vocab, SHAPE).astype(np.int32)
    return params, golden.record(golden.Case(CASE, tokens, 0), params, SIZES, [dtype])
