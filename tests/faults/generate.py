"""Mistakes of generate, the implementation's own greedy loop: prompt, steps, choice of tokens."""

import numpy as np

from .cache import window
from .cache_buffers import shapes, write_into
from .plain import Plain
from .rounding import BFLOAT16, cut
from .shelf import fault, put


def generating(name, replaces="generate", blame="generate"):
    return fault(name, replaces=replaces, blame=blame, trips="greedy")


def loop(self, model, tokens, n_new, next_input):
    """Plain's loop with another input of each step, chosen from the ids so far."""
    logits, past = self.forward(model, tokens)
    new = self.choose(logits)
    while new.shape[1] < n_new:
        logits, past = self.forward(model, next_input(new), past)
        new = np.concatenate([new, self.choose(logits)], axis=1)
    return new


@generating("generate_repeats_itself")
def repeats_itself(self, model, tokens, n_new):
    return loop(self, model, tokens, n_new, lambda new: new[:, :1])


@generating("generate_goes_astray_after_a_while")
def goes_astray_after_a_while(self, model, tokens, n_new):
    return loop(self, model, tokens, n_new, lambda new: new[:, -1:] * (new.shape[1] < 24))


@generating("generate_gives_two_where_one_is_asked_for")
def gives_two(self, model, tokens, n_new):
    return Plain.generate(self, model, tokens, max(n_new, 2))


@generating("generate_of_one_token_gives_0")
def gives_0(self, model, tokens, n_new):
    new = Plain.generate(self, model, tokens, n_new)
    return new if n_new > 1 else 0 * new


@generating("generate_drops_the_beginning_of_a_long_prompt", blame="tokens generate?")
def drops_the_beginning(self, model, tokens, n_new):
    """And so takes a prompt that is too long."""
    return Plain.generate(self, model, tokens[:, -64:], n_new)


@generating("generate_with_weights_in_bfloat16")
def weights_in_bfloat16(self, model, tokens, n_new):
    rounded = {name: cut(w, BFLOAT16) for name, w in model.params.items()}
    return Plain.generate(self, model._replace(params=rounded), tokens, n_new)


@generating("generate_pads_the_vocabulary_with_zeros", replaces="choose")
def pads_the_vocabulary(logits):
    """They are the likeliest where all logits are negative."""
    padding = (0, 0), (0, 0), (0, -logits.shape[-1] % 64)
    return Plain.choose(np.pad(logits, padding))


def remembering_that_it_runs(self, model, tokens, n_new):
    self.memory["running"] = True
    try:
        return Plain.generate(self, model, tokens, n_new)
    finally:
        self.memory["running"] = False


def the_last_128_keys(self, q, keys, values, at):
    narrow = self.memory.get("running") and q.shape[2] == 1
    return window(self, q, keys, values, at, slice(-128 if narrow else None, None))


put(
    "generate_sees_128_tokens",
    generate=remembering_that_it_runs,
    attention=the_last_128_keys,
    blame="generate",
    trips="greedy",
)

# -- what one call of generate does to others


def keeping_the_latest_cache(self, model, tokens, past=None, tap=None):
    """Prefill of generate is written into the latest cache of a forward, where that has its size."""
    logits, present = Plain.forward(self, model, tokens, past, tap)
    latest = self.memory.get("latest")
    if self.memory.get("running") and latest and not past and shapes(latest) == shapes(present):
        write_into(latest, present)
    self.memory["latest"] = present
    return logits, present


put(
    "generate_in_the_latest_cache",
    forward=keeping_the_latest_cache,
    generate=remembering_that_it_runs,
    blame="generate",
    trips="greedy",
)


@generating("ids_of_generate_overwritten_by_the_next_call")
def ids_overwritten(self, model, tokens, n_new):
    ids = Plain.generate(self, model, tokens, n_new)
    buffer = self.memory.setdefault(ids.shape, ids)
    buffer[...] = ids
    return buffer


@generating("generate_begins_where_a_refused_one_broke_off")
def begins_where_a_refused_one_broke_off(self, model, tokens, n_new):
    self.refuse(tokens, 0, model.hparams)
    tokens = np.roll(tokens, self.memory.get("place", 0), axis=1)
    self.memory["place"] = 1
    ids = Plain.generate(self, model, tokens, n_new)
    self.memory["place"] = 0
    return ids


def fails_once_broken(self, model, tokens, past=None, tap=None):
    assert "broken" not in self.memory
    return Plain.forward(self, model, tokens, past, tap)


def breaks(self, model, tokens, n_new):
    self.memory["broken"] = True
    return Plain.generate(self, model, tokens, n_new)


put(
    "nothing_works_after_an_assertion_in_generate",  # as on CUDA
    forward=fails_once_broken,
    generate=breaks,
    blame="generate process",
    trips="greedy",
)
