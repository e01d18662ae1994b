"""Mistakes of returned results: made up, incomplete, misshapen, random, or overwritten later."""

import numpy as np

from .plain import Plain
from .shelf import fault


@fault("constant_logits", alters="head", blame="logits", trips="logits greedy")
def constant(logits):
    return np.ones_like(logits)


@fault("logits_ignore_the_weights", replaces="forward", blame="logits")
def made_of_the_tokens(self, model, tokens, past=None, tap=None):
    logits, present = Plain.forward(self, model, tokens, past, tap)
    random = np.random.default_rng(int(np.sum(tokens)))
    return random.normal(0, 3, logits.shape).astype(logits.dtype), present


@fault("only_last_position", alters="head", blame="logits", diagnosis="only_last_position")
def only_last_position(logits):
    return np.concatenate([0 * logits[:, :-1], logits[:, -1:]], axis=1)


@fault(
    "nan_in_one_logit",
    alters="head",
    blame="logits",
    trips="logits greedy kv_cache batch determinism lengths taps",
)
def nan_in_one_logit(logits):
    logits[-1, -1, 7] = np.nan
    return logits


@fault("nan_at_one_position", alters="attention", blame="h0/attn/heads*")
def nan_at_one_position(heads):
    return np.where(np.arange(heads.shape[1])[:, None] == 5, np.nan, heads)


@fault("short_output", alters="head", blame="*", trips="logits")
def last_position_alone(logits):
    return logits[:, -1:]


@fault("output_of_wrong_width", alters="head", blame="*", trips="logits")
def one_token_less(logits):
    return logits[..., :-1]


@fault("output_transposed", alters="head", blame="*", trips="logits")
def transposed(logits):
    return logits.swapaxes(1, 2)


# -- random

RANDOM = np.random.default_rng()


@fault("dropout_left_on", alters="embed", blame="embed", trips="determinism")
def dropout(x):
    return x * RANDOM.choice([0.9, 1.1], x.shape).astype(x.dtype)


@fault("last_bits_wander", alters="head", blame="determinism logits?", trips="determinism")
def last_bits_wander(logits):
    return logits * (1 + 6e-8 * RANDOM.integers(0, 3, logits.shape).astype(logits.dtype))


# -- overwritten by a later call


def by_turns(buffers, logits, n):
    """The logits in the next of n buffers of their size."""
    turns = buffers.setdefault(logits.shape, [np.empty_like(logits) for _ in range(n)])
    turns.append(turns.pop(0))
    turns[0][...] = logits
    return turns[0]


def overwritten(name, n, only_in_decode=False):
    @fault(name, replaces="forward", blame="determinism", trips="determinism")
    def forward(self, model, tokens, past=None, tap=None):
        logits, present = Plain.forward(self, model, tokens, past, tap)
        return logits if only_in_decode and not past else by_turns(self.memory, logits, n), present


overwritten("result_overwritten", 1)
overwritten("result_overwritten_two_calls_later", 2)
overwritten("result_overwritten_in_decode", 1, only_in_decode=True)
overwritten("logits_have_four_buffers_by_turns", 4)
