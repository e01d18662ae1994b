"""Mistakes of the token and position embeddings, and of the head that is tied to them."""

import math

import numpy as np

from .plain import Plain
from .shelf import BLACK_BOX, fault, put


@fault("no_positions", replaces="embed", blame="embed", diagnosis="no_positions")
def no_positions(tokens, wte, wpe, at):
    return wte[tokens]


@fault("positions_from_1", replaces="embed", blame="embed", diagnosis="positions_from_1")
def positions_from_1(tokens, wte, wpe, at):
    return Plain.embed(tokens, wte, np.roll(wpe, -1, axis=0), at)


@fault("embedding_scaled", replaces="embed", blame="embed", diagnosis="embedding_scaled")
def embedding_scaled(tokens, wte, wpe, at):
    return Plain.embed(tokens, math.sqrt(wte.shape[1]) * wte, wpe, at)


@fault("embedding_row_lost_beside_a_right_head", replaces="embed", blame="embed", trips="weights")
def row_lost(tokens, wte, wpe, at):
    """Of a token in no prompt."""
    kept = np.arange(len(wte)) != 333
    return Plain.embed(tokens, wte * kept[:, None], wpe, at)


put("embedding_row_lost_in_a_black_box", embed=row_lost, **BLACK_BOX, blame="embed", trips="weights")


@fault("tokens_in_int16", replaces="embed", blame="sizes", trips="sizes")
def tokens_in_int16(tokens, wte, wpe, at):
    """Ids of 32,768 and more become negative and index from the end."""
    return Plain.embed(tokens.astype(np.int16), wte, wpe, at)


@fault(
    "head_of_neighbours",
    replaces="head",
    blame="logits",
    diagnosis="head_shifted",
    trips="logits greedy",
)
def head_of_neighbours(x, wte, at):
    return x @ np.roll(wte, 1, axis=0).T


@fault("last_tokens_of_an_odd_vocabulary_lost", alters="head", blame="sizes", trips="sizes")
def last_tokens_lost(logits):
    logits[..., logits.shape[-1] // 8 * 8 :] = 0
    return logits


# -- positions, with a cache

LATE = "embed*(decode)"


def from_position(tokens, wte, wpe, at, first):
    return Plain.embed(tokens, wte, wpe, at._replace(n_past=first))


@fault(
    "cache_position_not_advanced",
    replaces="embed",
    blame=LATE,
    diagnosis="cache_position",
    trips="kv_cache greedy lengths",
)
def position_not_advanced(tokens, wte, wpe, at):
    return from_position(tokens, wte, wpe, at, 0)


@fault("cache_position_one_short", replaces="embed", blame=LATE, diagnosis="cache_position")
def position_one_short(tokens, wte, wpe, at):
    return from_position(tokens, wte, wpe, at, max(at.n_past - 1, 0))


@fault("cache_wrong_in_the_middle_of_the_context", replaces="embed", blame="cache", trips="kv_cache")
def wrong_in_the_middle_of_the_context(tokens, wte, wpe, at):
    middle = tokens.shape[1] == 1 and 64 <= at.n_past < at.model.hparams.n_ctx - 1
    return Plain.embed(tokens, wte, wpe, at) * (1.5 if middle else 1.0)
