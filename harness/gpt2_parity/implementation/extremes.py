"""Weights that show operations the whole range of their inputs, as trained small models do not.

Each extreme sweeps one quantity densely: across channels, heads or tokens, so that one pass sees many
values. In float16 the sweeps end earlier, because what overflows there is lawfully wrong.
"""

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.model import synthetic

Params = dict[str, np.ndarray]


def gelu_inputs(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """GELU inputs from -50 to 50 (-25 to 25 in float16)."""
    most = 25 if narrow else 50
    for i in range(hparams.n_layer):
        bias = params[f"h{i}/mlp/c_fc/b"]
        bias[:] = rng.permutation(np.linspace(-most, most, len(bias), dtype=np.float32))


def attention_scores(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Attention scores up to about 150 (30 in float16) in size, of either sign, another in each head."""
    most = 30 if narrow else 150
    _, _, n_embd, n_head, n_layer = hparams
    head = n_embd // n_head
    for i in range(n_layer):
        bias = params[f"h{i}/attn/c_attn/b"].reshape(3, n_head, head)
        size = np.sqrt(np.geomspace(1, most, n_head) * np.sqrt(head)) * (-1) ** np.arange(n_head)
        channel = rng.integers(head)
        bias[0, :, channel] = np.abs(size)
        bias[1, :, channel] = size


def residuals(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Residuals of 1e4 (500 in float16) in a few channels."""
    most = 500 if narrow else 1e4
    for i in range(hparams.n_layer):
        bias = params[f"h{i}/attn/c_proj/b"]
        bias[rng.integers(len(bias), size=2)] += np.float32(most / hparams.n_layer)


def means(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Layer-norm inputs whose mean is up to 20,000 times their deviation (200 in float16)."""
    size = np.geomspace(0.1, 30 if narrow else 3000, hparams.n_ctx, dtype=np.float32)
    params["wpe"] += rng.permutation(size * rng.choice([-1, 1], len(size)).astype(np.float32))[:, None]


def variances(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Layer-norm variances from 1e-12 to 1e8 (1e-4 to 1e3 in float16), another for each token."""
    low, high = (1e-2, 30) if narrow else (1e-6, 1e4)  # weights must not be subnormal in float16
    size = np.geomspace(low, high, hparams.n_vocab, dtype=np.float32)
    params["wte"] *= rng.permutation(size)[:, None] / np.float32(0.14)
    params["wpe"] *= np.float32(low)
    for i in range(hparams.n_layer):  # what the block adds must not hide a small variance
        small = np.float32(rng.choice([low, 1e-2, 1.0]))
        for leaf in ("attn/c_proj/w", "attn/c_proj/b", "mlp/c_proj/w", "mlp/c_proj/b"):
            params[f"h{i}/{leaf}"] *= small


def logits(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Logits that are all about 110 in size, and of one sign."""
    params["wte"][:, 0] += 1  # a component that all tokens share: one bias moves all logits
    params["ln_f/b"][0] = rng.choice([-110, 110])


def gains(params: Params, hparams: HParams, rng: np.random.Generator, narrow: bool) -> None:
    """Layer-norm gains and biases from 1e-3 to 30, of either sign."""
    for name in [name for name in params if "ln_" in name]:
        size = np.geomspace(1e-3, 30, hparams.n_embd, dtype=np.float32)
        sign = rng.choice([-1, 1], hparams.n_embd).astype(np.float32)
        params[name][:] = rng.permutation(size * sign) * np.float32(1 if name.endswith("g") else 0.1)


# Extremes under which gradients are so ill-conditioned that rounding decides them.
ILL_CONDITIONED = frozenset({"means", "variances"})
EXTREMES = {
    each.__name__: each
    for each in (gelu_inputs, attention_scores, residuals, means, variances, logits, gains)
}


def weights(hparams: HParams, extremes: tuple[str, ...], seed: int, dtype: str) -> Params:
    """Float32 weights by checkpoint name. Raises KeyError for an extreme that does not exist."""
    params = synthetic.generate(hparams, seed)
    for name in extremes:
        EXTREMES[name](params, hparams, np.random.default_rng([seed, 1]), dtype == "float16")
    return params
