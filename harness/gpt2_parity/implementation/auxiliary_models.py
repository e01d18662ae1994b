"""Auxiliary models: small ones with generated weights, which show what the model under test cannot.

In second_model no two sizes are equal, and n_vocab is odd; micro and 124M have as many heads as layers.
Heads are 64 wide, as in every official model. All its logits are negative, so the zeros of a padded
vocabulary would be the likeliest tokens.

The models named large_* have the same sizes and other weights: a few biases make attention scores, GELU
inputs, residuals or logits as large as in official models; micro's are small. What is large without
making the rest small is large in one model: each model is one more load, and some engines compile in it.
For that reason, too, a model that several checks use is loaded once. deep_model and long_model
are narrow. deep_model has 124M's n_layer and n_vocab, long_model its n_ctx.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.plan import SLOW, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.files import digest
from gpt2_parity.files.safetensors_mmap import MappedArrays
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.model import synthetic
from gpt2_parity.reference import kept, truth
from gpt2_parity.reference.records import Case, Record

SIZES = HParams(n_vocab=301, n_ctx=96, n_embd=192, n_head=3, n_layer=2)


class Other(NamedTuple):
    """A model with generated weights, and the tokens that it is run on."""

    hparams: HParams = SIZES
    shape: tuple[int, int] = (3, 33)  # [batch, n] of its tokens
    biases: Mapping[str, Mapping[int, float]] = {}  # elements to set, by name; a block's in every layer


SECOND, DEEP, LONG = "second_model", "deep_model", "long_model"
LOGITS = "large_logits"
K = SIZES.n_embd  # the first channel of the keys in c_attn's result
N = 64  # where the second head begins
SCORES = "large_scores_and_gelu_inputs"
LARGE = {
    SCORES: Other(  # scores of 900 / 8 = 112 in the first head, of -112 in the second
        biases={
            "attn/c_attn/b": {5: 30.0, K + 5: 30.0, N + 5: 30.0, K + N + 5: -30.0},
            "mlp/c_fc/b": {7: 15.0, 99: -15.0},
        }
    ),
    "large_residuals": Other(biases={"mlp/c_proj/b": {7: 500.0}}),  # squares overflow float16
    LOGITS: Other(biases={"ln_f/b": {0: -110.0}}),  # exp underflows float32
}
OTHERS = {
    SECOND: Other(biases={"ln_f/b": {0: -20.0}}),
    **LARGE,
    DEEP: Other(HParams(n_vocab=50257, n_ctx=16, n_embd=64, n_head=1, n_layer=12), (2, 16)),
    LONG: Other(HParams(n_vocab=97, n_ctx=1024, n_embd=64, n_head=1, n_layer=1), (1, 1023)),
}
SHARED = (SECOND, LOGITS)  # by several checks
AT_LEAST = (SECOND, SCORES)  # what a verdict needs where loading is slow


def looked_at(plan: Plan, names: Iterable[str]) -> list[str]:
    """Those of some auxiliary models that are loaded: fewer where loading is slow."""
    return [name for name in names if plan.reloads != SLOW or name in AT_LEAST]


def beside(loaded: Loaded, name: str = SECOND) -> tuple[Loaded, Record]:
    """The same implementation with an auxiliary model loaded as well, and the record of that model.

    The case of the record has the name of the model.
    """
    if name not in SHARED:
        return load(loaded, name)
    if name not in loaded.others:
        loaded.others[name] = load(loaded, name)
    return loaded.others[name]


def load(loaded: Loaded, name: str) -> tuple[Loaded, Record]:
    """What beside returns, loaded anew."""
    hparams, shape, _ = OTHERS[name]
    params = MappedArrays(weights(name))
    tokens = np.random.default_rng(0).integers(0, hparams.n_vocab, shape).astype(np.int32)
    case = Case(name, tokens, 0)
    record = truth.record(case, params, hparams, loaded.target.dtype)
    other = Loaded.load(
        loaded.impl, loaded.target, params.path, hparams, [record], load_seconds=loaded.load_seconds
    )
    return other, other.records[0]


def weights(name: str) -> Path:
    """The safetensors file of an auxiliary model's weights, which are generated once."""
    made_from = {"what": "weights", **OTHERS[name]._asdict(), "code": digest.sha256(Path(__file__))}
    return kept.entry(made_from, functools.partial(generate, name))


def generate(name: str) -> dict[str, np.ndarray]:
    """The weights of an auxiliary model by checkpoint name."""
    hparams, _, biases = OTHERS[name]
    params = synthetic.generate(hparams)
    if "ln_f/b" in biases:
        params["wte"][:, 0] += 1  # a component that all tokens share: one bias moves all logits
    for leaf, elements in biases.items():
        scopes = [""] if leaf in params else [f"h{i}/" for i in range(hparams.n_layer)]
        for scope in scopes:
            for element, value in elements.items():
                params[scope + leaf][element] = value
    return params


def both_ways(other: Loaded, cuts: list[int]) -> Iterator[Measurement]:
    """The distance from the truth of prefill and, if there are cuts, of decode, in noise units."""
    [record] = other.records
    got = {"prefill": other.logits(record)}
    if cuts:
        got["decode"] = other.in_chunks(record.tokens, cuts)
    for scope, logits in got.items():
        units = other.units(logits, record.logits, record)
        yield Measurement(record.name, scope, "noise_units", units)
