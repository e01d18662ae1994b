"""Mistakes of cache ownership: buffers that are shared, overwritten, or given to the wrong caller."""

import numpy as np

from .plain import Plain, length
from .shelf import fault


def shapes(cache):
    return tuple(array.shape for pair in cache for array in pair)


def write_into(buffer, cache):
    """Overwrite one cache with another."""
    for places, pair in zip(buffer, cache, strict=True):
        for place, array in zip(places, pair, strict=True):
            place[...] = array


def shared(buffers, key, cache):
    """The cache, moved to the one buffer that all caches of that key, and of its size, share."""
    copies = [tuple(array.copy() for array in pair) for pair in cache]
    buffer = buffers.setdefault((key, shapes(cache)), copies)
    write_into(buffer, cache)
    return buffer


def owner(name):
    return fault(name, replaces="forward", blame="cache", trips="kv_cache")


@owner("cache_of_the_latest_call")
def cache_of_the_latest_call(self, model, tokens, past=None, tap=None):
    """Continues from the latest cache, whatever past it is given."""
    latest = self.memory.get("latest")
    if past and length(latest) == length(past) and shapes(latest) == shapes(past):
        past = latest
    logits, self.memory["latest"] = Plain.forward(self, model, tokens, past, tap)
    return logits, self.memory["latest"]


@owner("cache_shared_by_all_prefills")
def shared_by_all_prefills(self, model, tokens, past=None, tap=None):
    logits, present = Plain.forward(self, model, tokens, past, tap)
    return logits, present if past else shared(self.memory, "prefill", present)


@owner("prefills_have_two_buffers_by_turns")
def two_buffers_by_turns(self, model, tokens, past=None, tap=None):
    logits, present = Plain.forward(self, model, tokens, past, tap)
    if past:
        return logits, present
    turns = self.memory[shapes(present)] = not self.memory.get(shapes(present))
    return logits, shared(self.memory, turns, present)


class Owned(list):
    """A cache that knows how often it was continued, and what has been written behind it."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.times, self.room = 0, {}


@owner("cache_continued_over_another_continuation")
def over_another_continuation(self, model, tokens, past=None, tap=None):
    """Each continuation is written behind the cache, over any other continuation of it."""
    logits, present = Plain.forward(self, model, tokens, past, tap)
    return logits, Owned(shared(past.room, "room", present) if past else present)


@owner("one_token_is_always_written_in_place")
def one_token_in_place(self, model, tokens, past=None, tap=None):
    """Whoever else goes on from the same cache."""
    if past and np.shape(tokens)[1] == 1:
        return over_another_continuation(self, model, tokens, past, tap)
    logits, present = Plain.forward(self, model, tokens, past, tap)
    return logits, Owned(present)


@owner("copied_caches_share_one_buffer")
def copies_share_one_buffer(self, model, tokens, past=None, tap=None):
    """A cache that is continued once more is copied, and all copies lie in the same place."""
    logits, present = Plain.forward(self, model, tokens, past, tap)
    if past:
        past.times += 1
        present = shared(self.memory, "copies", present) if past.times > 1 else present
    return logits, Owned(present)


@owner("cache_empty_when_continued_again")
def empty_when_continued_again(self, model, tokens, past=None, tap=None):
    kept = past
    if past:
        past.times += 1
        kept = past if past.times == 1 else [tuple(0 * array for array in pair) for pair in past]
    logits, present = Plain.forward(self, model, tokens, kept, tap)
    return logits, Owned(present)


@fault("a_refusal_clears_the_cache", replaces="forward", blame="tokens", trips="bad_tokens")
def a_refusal_clears_the_cache(self, model, tokens, past=None, tap=None):
    try:
        return Plain.forward(self, model, tokens, past, tap)
    except ValueError:
        for array in (array for pair in past or () for array in pair):
            array[...] = 0
        raise
