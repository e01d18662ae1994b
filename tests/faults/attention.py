"""Mistakes of attention: scale, mask, softmax, heads, and the order of queries, keys and values."""

import functools
import math

import numpy as np

from .plain import Plain, causal
from .rounding import BFLOAT16, cut, through_float16
from .shelf import BLACK_BOX, fault, put

HEADS = "h*/attn/heads"

# -- scale


@fault(
    "no_scale", replaces="scores", blame=HEADS, diagnosis="no_scale", trips="logits activations greedy"
)
def no_scale(q, keys, at):
    return q @ keys.swapaxes(-1, -2)


@fault("scale_without_root", replaces="scores", blame=HEADS, diagnosis="scale_without_root")
def scale_without_root(q, keys, at):
    return no_scale(q, keys, at) / q.shape[-1]


@fault("scale_by_n_embd", replaces="scores", blame=HEADS, diagnosis="scale_by_n_embd")
def scale_by_n_embd(q, keys, at):
    return no_scale(q, keys, at) / math.sqrt(at.model.hparams.n_embd)


@fault("scale_by_layer", replaces="scores", blame="h{1,2,3}/attn/heads", diagnosis="scale_by_layer")
def scale_by_layer(q, keys, at):
    return Plain.scores(q, keys, at) / (1 + int(at.name[1]))


@fault("softmax_temperature_1.0005", alters="scores", blame=HEADS, diagnosis="softmax_temperature")
def temperature(scores):
    return scores * 1.0005


# -- mask


@fault(
    "mask_one_too_far",
    replaces="mask",
    blame=HEADS,
    diagnosis="mask_one_too_far",
    trips="causality kv_cache",
)
def one_too_far(scores, at):
    n, n_keys = scores.shape[-2:]
    return np.where(np.tri(n, n_keys, n_keys - n + 1, dtype=bool), scores, -np.inf)


@fault("mask_hides_itself", replaces="mask", blame=HEADS, diagnosis="mask_hides_itself")
def hides_itself(scores, at):
    n, n_keys = scores.shape[-2:]
    return np.where(np.tri(n, n_keys, n_keys - n - 1, dtype=bool), scores, -1e30)


def weak_mask(scores, at, hidden):
    """Masks the future with a number that is not negative enough."""
    return np.where(causal(scores), scores, hidden)


put(
    "mask_too_weak",
    mask=functools.partial(weak_mask, hidden=-10.0),
    blame=HEADS,
    diagnosis="mask_too_weak",
    trips="causality",
)
put(
    "mask_too_weak_in_a_black_box",  # decode hides nothing and so is right, but is not what prefill was
    mask=functools.partial(weak_mask, hidden=-5.0),
    **BLACK_BOX,
    blame="causality",
    trips="causality kv_cache logits",
)
put(
    "mask_of_minus_100",
    mask=functools.partial(weak_mask, hidden=-100.0),
    blame="overflow",
    trips="overflow",
)

# -- softmax


def hides_nothing(scores, at):
    return scores


def zeroed_afterwards(scores, at):
    return np.where(causal(scores), Plain.softmax(scores, at), 0.0)


put(
    "mask_after_softmax",
    mask=hides_nothing,
    softmax=zeroed_afterwards,
    blame=HEADS,
    diagnosis="mask_after_softmax",
)


def over_heads(scores, at):
    return Plain.softmax(scores.swapaxes(1, 3), at).swapaxes(1, 3)


put(
    "softmax_over_heads",
    mask=functools.partial(weak_mask, hidden=-1e30),
    softmax=over_heads,
    blame=HEADS,
    diagnosis="softmax_over_heads",
)


@fault("padding_visible", replaces="softmax", blame=HEADS, diagnosis="padding_visible")
def padding_visible(scores, at):
    padding = np.zeros_like(scores, shape=(*scores.shape[:-1], 4))
    return Plain.softmax(np.concatenate([scores, padding], axis=-1), at)[..., :-4]


@fault("softmax_overflows_in_float16", replaces="softmax", blame=HEADS)
def overflows_in_float16(scores, at):
    with np.errstate(all="ignore"):
        y = np.exp(20 * scores.astype(np.float16)).astype(scores.dtype) ** 0.05
        return y / y.sum(axis=-1, keepdims=True)


@fault("float16_softmax", replaces="softmax", blame=HEADS, diagnosis="float16_softmax")
def float16_softmax(scores, at):
    return through_float16(Plain.softmax(through_float16(scores), at))


@fault("bfloat16_probabilities", alters="softmax", blame=HEADS, diagnosis="bfloat16_probabilities")
def bfloat16_probabilities(probs):
    return cut(probs, BFLOAT16)


def exp_less(scores, most):
    """Softmax that does not subtract the maximum but another number."""
    with np.errstate(all="ignore"):
        y = np.exp(scores - most)
        return y / y.sum(axis=-1, keepdims=True)


@fault("softmax_without_its_maximum", replaces="softmax", blame="overflow", trips="overflow")
def without_its_maximum(scores, at):
    return exp_less(scores, 0.0)


@fault("softmax_maximum_is_0_at_least", replaces="softmax", blame="overflow", trips="overflow")
def maximum_is_0_at_least(scores, at):
    """As in an online softmax whose running maximum starts at 0."""
    return exp_less(scores, np.maximum(scores.max(axis=-1, keepdims=True), 0))


# -- heads


@fault("heads_not_transposed", replaces="merge_heads", blame=HEADS, diagnosis="heads_not_transposed")
def not_transposed(y, at):
    batch, n_head, n, head = y.shape
    return y.reshape(batch, n, n_head * head)


@fault("heads_dropped", replaces="merge_heads", blame=HEADS, diagnosis="heads_dropped")
def dropped(y, at):
    return Plain.merge_heads(y * (np.arange(y.shape[1]) != 1)[:, None, None], at)


@fault("heads_swapped", replaces="merge_heads", blame=HEADS, diagnosis="heads_swapped")
def swapped(y, at):
    return Plain.merge_heads(y[:, [0, 2, 1, *range(3, y.shape[1])]], at)


@fault("heads_interleaved", replaces="merge_heads", blame=HEADS, diagnosis="heads_interleaved")
def interleaved(y, at):
    batch, n_head, n, head = y.shape
    return y.transpose(0, 2, 3, 1).reshape(batch, n, head * n_head)


@fault("heads_split_interleaved", replaces="split_heads", blame=HEADS, diagnosis="heads_interleaved")
def split_interleaved(qkv, at):
    batch, n, _ = qkv.shape
    return qkv.reshape(batch, n, at.model.hparams.n_head, 3, -1).transpose(3, 0, 2, 1, 4)


# -- the order of queries, keys and values

for _order in ("kqv", "vkq", "qvk", "kvq"):
    _places = ["qkv".index(letter) for letter in _order]
    put(
        f"order_{_order}",
        split_heads=lambda qkv, at, places=_places: Plain.split_heads(qkv, at)[places],
        blame=HEADS,
        diagnosis=f"order_{_order}",
    )


@fault("exp_by_bits", replaces="softmax", blame=HEADS, diagnosis="exp_by_bits", trips="local")
def exp_by_bits(scores, at):
    """Schraudolph's: the argument is written into the exponent of a float32."""
    x = np.maximum(scores - scores.max(axis=-1, keepdims=True), np.float32(-80))
    bits = x * np.float32(2**23 / math.log(2)) + np.float32(127 * 2**23 - 486411)
    y = np.where(x <= -80, np.float32(0), bits.astype(np.int32).view(np.float32))
    return y / y.sum(axis=-1, keepdims=True)


put(
    "scale_by_layer_in_a_black_box",
    scores=scale_by_layer,
    blame="logits",
    diagnosis="scale_by_layer",
    **BLACK_BOX,
)
