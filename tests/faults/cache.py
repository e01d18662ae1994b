"""Mistakes of decoding through the KV cache: what is stored, and which keys are visible."""

import functools

import numpy as np

from .plain import Plain, causal
from .rounding import through_float16
from .shelf import fault, put

LATE = "h*/attn/heads*(decode)"

# -- what is seen


def seeing(scores, visible):
    """Scores of the visible keys alone."""
    return np.where(visible, scores, -np.inf)


def seen(name, diagnosis):
    """Decorate a mask that is wrong in decode."""
    return fault(name, replaces="mask", blame=LATE, diagnosis=diagnosis, trips="local kv_cache")


@seen("cache_mask_like_prefill", "cache_mask")
def mask_like_prefill(scores, at):
    return seeing(scores, np.tri(*scores.shape[-2:], dtype=bool))


@seen("cache_chunk_sees_its_future", "no_mask")
def chunk_sees_its_future(scores, at):
    of_the_chunk = np.arange(scores.shape[-1]) >= at.n_past
    return seeing(scores, causal(scores) | ((at.n_past > 0) & of_the_chunk))


@seen("cache_last_key_missing", "cache_mask")
def last_key_missing(scores, at):
    return seeing(scores, causal(scores) & (np.arange(scores.shape[-1]) != at.n_past - 1))


@seen("cache_first_key_missing", "cache_mask")
def first_key_missing(scores, at):
    first = np.arange(scores.shape[-1]) == 0
    return seeing(scores, causal(scores) & ~((at.n_past > 0) & first))


def window(self, q, keys, values, at, place):
    """Attention over some of the keys."""
    return Plain.attention(self, q, keys[:, :, place], values[:, :, place], at)


@fault("cache_last_block_of_keys_incomplete", replaces="attention", blame="cache", trips="kv_cache")
def last_block_of_keys_incomplete(self, q, keys, values, at):
    """One query, and more keys than a block of 64 has: the rest after whole blocks is lost."""
    n, n_keys = q.shape[2], keys.shape[2]
    whole = n_keys // 64 * 64 if n == 1 and n_keys > 64 else n_keys
    return window(self, q, keys, values, at, slice(whole))


@fault(
    "a_few_queries_after_a_long_cache_see_the_future", replaces="mask", blame="cache", trips="kv_cache"
)
def few_queries_see_the_future(scores, at):
    n = scores.shape[-2]
    return scores if n <= 8 and at.n_past >= 64 else Plain.mask(scores, at)


def only_the_new(self, q, keys, values, at):
    return window(self, q, keys, values, at, slice(at.n_past, None))


def from_position_0(tokens, wte, wpe, at):
    return Plain.embed(tokens, wte, wpe, at._replace(n_past=0))


put(
    "cache_forgets_the_past",
    embed=from_position_0,
    attention=only_the_new,
    blame=f"embed*(decode) {LATE}",
    trips="kv_cache",
)


# -- what is stored


def stored(name, diagnosis):
    """Decorate a function that spoils the cached keys and values, [batch, n_head, n_past, head]."""

    def keep(function):
        def extend(past, k, v, at):
            return Plain.extend(function(*past) if past else None, k, v, at)

        put(name, extend=extend, blame=LATE, diagnosis=diagnosis, trips="local kv_cache")
        return function

    return keep


@stored("cache_stale_keys", "cache_stale")
def stale_keys(keys, values):
    return np.roll(keys, 1, axis=2), values


@stored("cache_rows_exchanged", "cache_stale")
def rows_exchanged(keys, values):
    return keys, values[::-1]


@stored("cache_in_float16", "")
def in_float16(keys, values):
    return through_float16(keys), values


def lost_with_every_page(past, k, v, at, size):
    """Where one token begins a page of that size, all before it becomes 0."""
    if past and k.shape[2] == 1 and at.n_past % size == 0:
        past = [np.zeros_like(array) for array in past]
    return Plain.extend(past, k, v, at)


put(
    "cache_forgets_where_a_page_begins",
    extend=functools.partial(lost_with_every_page, size=64),
    blame="cache",
    trips="kv_cache",
)
put(
    "cache_lost_with_every_page",  # which only a long text generated through it shows
    extend=functools.partial(lost_with_every_page, size=32),
    blame="cache",
    trips="greedy kv_cache",
)
