"""Other, small models, beside the one under test: for what that one cannot show.

The second model has no two sizes that are equal, and an odd n_vocab, where the first may have as many
heads as layers, as micro and 124M do. Heads are 64 wide, as in every official model. All its logits are
negative, so that zeros, with which a vocabulary may be padded, would be the likeliest.

Those whose names begin with large have the same sizes and other weights: a few biases make attention
scores, inputs of GELU, residuals or logits as large as official models have them, where micro's stay
small. The last two are narrow; one has as many layers and tokens as the official 124M, one its context.
"""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model import synthetic
from gpt2_parity.reference import records
from gpt2_parity.reference.records import Record

SIZES = HParams(n_vocab=301, n_ctx=96, n_embd=192, n_head=3, n_layer=2)


class Other(NamedTuple):
    """A model with generated weights, and what is asked of it."""

    hparams: HParams = SIZES
    shape: tuple[int, int] = (3, 33)  # of its tokens
    biases: Mapping[str, Mapping[int, float]] = {}  # elements that are set; of a block, in every layer


SECOND, DEEP, LONG = "second_model", "deep_model", "long_model"
LOGITS = "large_logits"
K = SIZES.n_embd  # where the keys begin in what c_attn gives
LARGE = {
    "large_attention_scores": Other(biases={"attn/c_attn/b": {5: 30.0, K + 5: 30.0}}),  # 900 / 8 = 112
    "large_negative_scores": Other(biases={"attn/c_attn/b": {5: 30.0, K + 5: -30.0}}),
    "large_gelu_inputs": Other(biases={"mlp/c_fc/b": {7: 15.0, 99: -15.0}}),
    "large_residuals": Other(biases={"mlp/c_proj/b": {7: 500.0}}),  # squares overflow float16
    LOGITS: Other(biases={"ln_f/b": {0: -110.0}}),  # exp underflows float32
}
OTHERS = {
    SECOND: Other(biases={"ln_f/b": {0: -20.0}}),
    **LARGE,
    DEEP: Other(HParams(n_vocab=50257, n_ctx=16, n_embd=64, n_head=1, n_layer=12), (2, 16)),
    LONG: Other(HParams(n_vocab=97, n_ctx=1024, n_embd=64, n_head=1, n_layer=1), (1, 1023)),
}


@contextmanager
def beside(loaded: Loaded, name: str = SECOND) -> Iterator[tuple[Loaded, Record]]:
    """The same implementation with one of the other models, and the truth; its case has that name."""
    params, record = truth(loaded.target.dtype, name)
    with tempfile.TemporaryDirectory(prefix="parity-other-") as folder:
        weights = Path(folder, synthetic.WEIGHTS)
        safetensors_mmap.write(weights, params)
        yield Loaded.load(loaded.impl, loaded.target, weights, OTHERS[name].hparams, [record]), record


@functools.cache
def truth(dtype: str, name: str) -> tuple[Mapping[str, np.ndarray], Record]:
    """Generated weights, and what is true of them, with the noise floor at one dtype."""
    hparams, shape, biases = OTHERS[name]
    params = synthetic.generate(hparams)
    if "ln_f/b" in biases:
        params["wte"][:, 0] += 1  # what all tokens have in common: one bias moves all logits
    for leaf, elements in biases.items():
        scopes = [""] if leaf in params else [f"h{i}/" for i in range(hparams.n_layer)]
        for scope in scopes:
            for element, value in elements.items():
                params[scope + leaf][element] = value
    tokens = np.random.default_rng(0).integers(0, hparams.n_vocab, shape).astype(np.int32)
    return params, records.make_record(records.Case(name, tokens, 0), params, hparams, [dtype])


def both_ways(other: Loaded, cuts: list[int]) -> Iterator[Measurement]:
    """How far prefill of its tokens is from the truth and, where they are cut, decode."""
    [record] = other.records
    got = {"prefill": other.logits(record)}
    if cuts:
        got["decode"] = other.in_chunks(record.tokens, cuts)
    for scope, logits in got.items():
        units = other.units(logits, record.logits, record)
        yield Measurement(record.name, scope, "noise_units", units)
