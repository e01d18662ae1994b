"""Mistakes in refusing bad tokens, empty input and too many tokens, and in the state afterwards."""

import numpy as np

from .plain import Plain, length
from .shelf import fault, put


def accepting(name, replaces):
    return fault(name, replaces=replaces, blame="tokens", trips="bad_tokens")


# -- ids


@accepting("negative_tokens_wrap", "refuse")
def negative_tokens_wrap(tokens, n_past, hparams):
    Plain.refuse(np.maximum(tokens, 0), n_past, hparams)


def clamped(tokens, model):
    return np.clip(tokens, 0, model.hparams.n_vocab - 1)


@accepting("tokens_clamped", "forward")
def tokens_clamped(self, model, tokens, past=None, tap=None):
    return Plain.forward(self, model, clamped(tokens, model), past, tap)


@accepting("bad_tokens_accepted_in_a_second_row", "forward")
def first_row_looked_at(self, model, tokens, past=None, tap=None):
    self.refuse(tokens[:1], length(past), model.hparams)
    return Plain.forward(self, model, clamped(tokens, model), past, tap)


@accepting("decode_looks_at_its_first_row_for_bad_tokens", "forward")
def first_row_looked_at_in_decode(self, model, tokens, past=None, tap=None):
    return (first_row_looked_at if past else Plain.forward)(self, model, tokens, past, tap)


@accepting("bad_tokens_accepted_by_generate", "generate")
def generate_clamps(self, model, tokens, n_new):
    return Plain.generate(self, model, clamped(tokens, model), n_new)


@accepting("generate_looks_at_its_first_row_for_bad_tokens", "generate")
def generate_looks_at_its_first_row(self, model, tokens, n_new):
    self.refuse(tokens[:1], 0, model.hparams)
    return Plain.generate(self, model, clamped(tokens, model), n_new)


@fault(
    "token_exchanged_in_the_very_array_that_was_given",
    replaces="forward",
    blame="embed",
    trips="weights",
)
def token_exchanged(self, model, tokens, past=None, tap=None):
    tokens[tokens == 300] = 7
    return Plain.forward(self, model, tokens, past, tap)


# -- how many


def of_any_length(tokens, n_past, hparams):
    Plain.refuse(tokens, 0, hparams._replace(n_ctx=tokens.size))


def positions_begin_again(tokens, wte, wpe, at):
    positions = np.arange(at.n_past, at.n_past + tokens.shape[1]) % len(wpe)
    return wte[tokens] + wpe[positions]


put(
    "too_long_accepted",
    refuse=of_any_length,
    embed=positions_begin_again,
    blame="tokens",
    trips="bad_tokens",
)


@accepting("tokens_pushed_back_from_the_end_of_the_cache", "forward")
def tokens_pushed_back(self, model, tokens, past=None, tap=None):
    """As dynamic_update_slice clamps: where there is no room, the latest keys are written over."""
    room = model.hparams.n_ctx - tokens.shape[1]
    if 0 <= room < length(past) < model.hparams.n_ctx:
        past = [tuple(array[:, :, :room] for array in pair) for pair in past]
    return Plain.forward(self, model, tokens, past, tap)


@accepting("no_tokens_accepted_in_decode", "forward")
def no_tokens_in_decode(self, model, tokens, past=None, tap=None):
    if past and np.size(tokens) == 0:
        return np.empty((len(tokens), 0, model.hparams.n_vocab), model.dtype), past
    return Plain.forward(self, model, tokens, past, tap)


@accepting("generate_after_nothing", "generate")
def generate_after_nothing(self, model, tokens, n_new):
    """Begins with the end of text."""
    if np.shape(tokens)[1] == 0:
        tokens = np.full((len(tokens), 1), model.hparams.n_vocab - 1)
    return Plain.generate(self, model, tokens, n_new)


@accepting("generate_cuts_a_prompt_that_is_too_long", "generate")
def generate_cuts_its_prompt(self, model, tokens, n_new):
    return Plain.generate(self, model, tokens[:, -model.hparams.n_ctx :], n_new)


@accepting("generate_goes_on_beyond_the_context", "generate")
def generate_beyond_the_context(self, model, tokens, n_new):
    """Over the last n_ctx tokens."""
    n_ctx, new = model.hparams.n_ctx, tokens[:, :0]
    logits, past = self.forward(model, tokens)
    while True:
        new = np.concatenate([new, self.choose(logits)], axis=1)
        if new.shape[1] == n_new:
            return new
        if length(past) < n_ctx:
            logits, past = self.forward(model, new[:, -1:], past)
        else:
            logits, _ = self.forward(model, np.concatenate([tokens, new], axis=1)[:, -n_ctx:])


# -- what a refusal leaves behind


def remembering_refusals(self, model, tokens, past, tap):
    """Remembers that ids were refused; not that there were too many."""
    try:
        return Plain.forward(self, model, tokens, past, tap)
    except ValueError as error:
        if "token ids" in str(error):
            self.memory["refused"] = True
        raise


@accepting("dead_once_it_has_refused", "forward")
def dead_once_it_has_refused(self, model, tokens, past=None, tap=None):
    result = remembering_refusals(self, model, tokens, past, tap)
    assert "refused" not in self.memory
    return result


@accepting("wrong_once_it_has_refused", "forward")
def wrong_once_it_has_refused(self, model, tokens, past=None, tap=None):
    logits, present = remembering_refusals(self, model, tokens, past, tap)
    return logits * (1.01 if "refused" in self.memory else 1.0), present
