"""Other models with the same probabilities: weights that an engine has folded, centred or shifted.

No arithmetic is wrong, but results are not those of the contract.
"""

from collections.abc import Iterator

import numpy as np

from gpt2_parity.mistakes.embedding import positions, rows
from gpt2_parity.mistakes.registry import Scene, mistake, simple


def centred(y: np.ndarray) -> np.ndarray:
    """y [..., width] less its mean over the last axis."""
    return np.asarray(y - y.mean(axis=-1, keepdims=True), np.float64)


simple(
    "logits_centred",
    "the mean of a position's logits is subtracted: the probabilities are the same",
    "head",
    lambda s: centred(s.exact),
)


@mistake("log_probabilities", "log probabilities are returned, not logits", "head")
def _(scene: Scene) -> Iterator[np.ndarray]:
    most = scene.exact.max(axis=-1, keepdims=True)
    total = np.exp(scene.exact - most).sum(axis=-1, keepdims=True)
    yield scene.exact - most - np.log(total)


@mistake(
    "folded_weights",
    "the weights were folded and centred (g and b into the product after the layer norm, the bias of "
    "the values into c_proj, the mean out of what is added to the residual stream): the probabilities "
    "are the same",
    "embedding",
    "linear",
    "head",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    """As TransformerLens' enable_compatibility_mode() has it, or some of these steps."""
    layer, _, leaf = scene.op.name.partition("/")
    if scene.op.kind == "head":
        y = after_norm(scene, "ln_f", np.asarray(scene.params["wte"], np.float64).T)
        yield from (centred(y), y)
    elif leaf == "attn/c_attn":
        y = after_norm(scene, f"{layer}/ln_1", scene.weight("w")) + scene.weight("b")
        yield from (y - without_query_and_key(value_bias(scene, layer)), y)
    elif leaf == "attn/c_proj":
        y = scene.exact + value_bias(scene, layer) @ scene.weight("w")
        yield from (centred(y), y, centred(scene.exact))
    elif leaf == "mlp/c_fc":
        yield after_norm(scene, f"{layer}/ln_2", scene.weight("w")) + scene.weight("b")
    elif leaf == "mlp/c_proj":
        yield centred(scene.exact)
    else:
        yield centred_embedding(scene)


def centred_embedding(scene: Scene) -> np.ndarray:
    """The sum [batch, n, n_embd] of centred wte and wpe.

    Both were rounded, their means too: within that rounding, the captured value counts.
    """
    token, position = rows(scene, scene.tokens), positions(scene)
    roundoff = np.median(scene.size / np.maximum(np.abs(scene.exact), 1e-300))
    near = roundoff * (np.abs(token) + np.abs(position)).max(axis=-1, keepdims=True)
    altered = centred(token) + centred(position)
    return np.where(np.abs(scene.got - altered) <= near, scene.got, altered)


def after_norm(scene: Scene, norm: str, w: np.ndarray) -> np.ndarray:
    """The product [batch, n, n_out] of a bare layer norm and w [n_in, n_out], with g and b folded in."""
    return scene.inputs[0] @ (scene.weight("g", norm)[:, None] * w) + scene.weight("b", norm) @ w


def value_bias(scene: Scene, layer: str) -> np.ndarray:
    """The bias [n_embd] of a layer's values, with the b of its layer norm folded in."""
    c_attn, norm = f"{layer}/attn/c_attn", f"{layer}/ln_1"
    whole = scene.weight("b", c_attn) + scene.weight("b", norm) @ scene.weight("w", c_attn)
    return np.asarray(np.split(whole, 3)[2], np.float64)


def without_query_and_key(value: np.ndarray) -> np.ndarray:
    """A bias [3 n_embd] of c_attn that is zero but for its values [n_embd]."""
    return np.concatenate([np.zeros(2 * len(value)), value])
