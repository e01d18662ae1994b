"""Mistakes of state that is kept from one model to another: constants, compiled programs, prompts."""

import math

import numpy as np

from .generate import remembering_that_it_runs
from .plain import Plain
from .shelf import fault, put

# -- the scale of the model that was loaded last


def remembering_load(self, params, hparams, **target):
    self.memory["head"] = hparams.n_embd // hparams.n_head
    return Plain.load(self, params, hparams, **target)


def scaled_as_remembered(self, q, keys, values, at):
    correction = math.sqrt(q.shape[-1] / self.memory["head"])
    return Plain.attention(self, q * correction, keys, values, at)


def scaled_as_remembered_in_decode(self, q, keys, values, at):
    attention = scaled_as_remembered if at.n_past else Plain.attention
    return attention(self, q, keys, values, at)


put(
    "scale_of_the_model_that_was_loaded_last",
    load=remembering_load,
    attention=scaled_as_remembered,
    blame="sizes",
    trips="sizes",
)
put(
    "decode_with_the_scale_of_the_model_that_was_loaded_last",
    load=remembering_load,
    attention=scaled_as_remembered_in_decode,
    blame="sizes",
    trips="sizes",
)

# -- programs with weights in them


def compiled(self, model):
    """The first model of these sizes, as if its weights were constants of a compiled program."""
    return self.memory.setdefault(model.hparams, model)


@fault(
    "decode_compiled_for_sizes_with_weights_in_it",
    replaces="forward",
    blame="generate",
    trips="greedy overflow",
)
def decode_compiled(self, model, tokens, past=None, tap=None):
    return Plain.forward(self, compiled(self, model) if past else model, tokens, past, tap)


@fault(
    "generate_compiled_for_sizes_with_weights_in_it",
    replaces="generate",
    blame="generate",
    trips="greedy",
)
def generate_compiled(self, model, tokens, n_new):
    return Plain.generate(self, compiled(self, model), tokens, n_new)


# -- prompts


def cached_prompt(self, model, tokens, past=None, tap=None):
    if past or not self.memory.get("running"):
        return Plain.forward(self, model, tokens, past, tap)
    key = np.asarray(tokens).tobytes()
    if key not in self.memory:
        self.memory[key] = Plain.forward(self, model, tokens)
    return self.memory[key]


put(
    "prompts_cached_whatever_the_model",
    forward=cached_prompt,
    generate=remembering_that_it_runs,
    blame="generate",
    trips="greedy",
)
