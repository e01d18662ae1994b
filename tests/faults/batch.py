"""Mistakes of a batch: rows that are exchanged, mixed, lost, or hidden as padding."""

import numpy as np

from .attention import HEADS
from .plain import Plain
from .shelf import fault, put


@fault(
    "batch_rows_exchanged",
    alters="head",
    blame="logits",
    diagnosis="batch_rows",
    trips="logits greedy batch",
)
def rows_exchanged(logits):
    return logits[::-1]


@fault("batch_all_like_the_first", alters="head", blame="logits", diagnosis="batch_rows")
def all_like_the_first(logits):
    return np.broadcast_to(logits[:1], logits.shape)


@fault("batch_leaks_into_attention", alters="attention", blame=HEADS, trips="batch")
def leaks_into_attention(heads):
    return heads + 1e-3 * heads.mean(axis=0)


@fault(
    "batch_leaks_beyond_the_first_block_of_queries", replaces="attention", blame="batch", trips="batch"
)
def leaks_beyond_the_first_block(self, q, keys, values, at):
    """From its 65th query on, each row attends to what the first row has."""
    own = Plain.attention(self, q, keys, values, at)
    of_first = [np.broadcast_to(array[:1], array.shape) for array in (keys, values)]
    return np.concatenate([own[:, :64], Plain.attention(self, q, *of_first, at)[:, 64:]], axis=1)


@fault("rows_after_the_last_four_are_lost", alters="attention", blame="batch", trips="batch")
def rows_lost(heads):
    """As in code that takes rows four at a time and drops the rest."""
    if len(heads) > 4:
        heads[len(heads) // 4 * 4 :] = 0
    return heads


@fault("eight_rows_by_turns", replaces="forward", blame="batch", trips="batch")
def eight_rows_by_turns(self, model, tokens, past=None, tap=None):
    """The ninth row is the first again."""
    return Plain.forward(self, model, tokens[np.arange(len(tokens)) % 8], past, tap)


# -- tokens taken for padding, which nobody sees


def attention_without_padding(self, q, keys, values, at):
    """Hides the keys that memory marks as padding, [batch, some of the keys]."""
    scores = self.mask(self.scores(q, keys, at), at)
    padding = self.memory.get("padding")
    if padding is not None:
        hidden = np.zeros((len(q), 1, 1, scores.shape[-1]), bool)
        hidden[..., : padding.shape[1]] = padding[:, None, None, : scores.shape[-1]]
        scores = np.where(hidden & (scores > -np.inf), -1e30, scores)
    return self.merge_heads(self.weigh(self.softmax(scores, at), values, at), at)


def zeros_as_padding(self, model, tokens, past=None, tap=None):
    cache, padding = past or (None, np.zeros((len(tokens), 0), bool))
    padding = self.memory["padding"] = np.concatenate([padding, np.equal(tokens, 0)], axis=1)
    logits, present = Plain.forward(self, model, tokens, cache, tap)
    return logits, (present, padding)


put(
    "token_taken_for_padding",
    forward=zeros_as_padding,
    attention=attention_without_padding,
    blame=HEADS,
    diagnosis="token_as_padding",
    trips="local logits",
)


def trailing_ids_as_padding(self, model, tokens, past=None, tap=None):
    ends = np.isin(tokens, (0, model.hparams.n_vocab - 1))
    trailing = np.logical_and.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    trailing[:, :1] = False
    self.memory["padding"] = None if past else trailing
    return Plain.forward(self, model, tokens, past, tap)


put(
    "0_and_the_last_id_taken_for_padding_at_the_end",
    forward=trailing_ids_as_padding,
    attention=attention_without_padding,
    blame=HEADS,
    trips="local",
)


def generate_with_padding(self, model, tokens, n_new):
    self.memory["padding"] = np.equal(tokens, 0)
    try:
        return Plain.generate(self, model, tokens, n_new)
    finally:
        self.memory.clear()


put(
    "generate_takes_0_for_padding",
    generate=generate_with_padding,
    attention=attention_without_padding,
    blame="generate",
    trips="greedy",
)
