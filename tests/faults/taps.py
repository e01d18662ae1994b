"""Mistakes of the taps: missing, from another path than the logits, or changing what is computed."""

from .plain import Plain
from .shelf import fault


def shifted(model, name):
    """The model with one bias that is a little off."""
    return model._replace(params={**model.params, name: model.params[name] + 0.01})


@fault(
    "taps_from_another_path",
    replaces="forward",
    trips="logits local",
    blame="logits h*/attn/heads*(decode)?",
)
def taps_from_another_path(self, model, tokens, past=None, tap=None):
    """Decode continues from the other path's cache."""
    Plain.forward(self, model, tokens, past, tap)
    return Plain.forward(self, shifted(model, "h1/mlp/c_fc/b"), tokens, past)


@fault("right_only_when_watched", replaces="forward", blame="taps", trips="logits taps")
def right_only_when_watched(self, model, tokens, past=None, tap=None):
    model = model if tap else shifted(model, "ln_f/b")
    return Plain.forward(self, model, tokens, past, tap)


@fault("wrong_only_when_watched", replaces="forward", blame="ln_f", trips="activations taps")
def wrong_only_when_watched(self, model, tokens, past=None, tap=None):
    model = shifted(model, "ln_f/b") if tap else model
    return Plain.forward(self, model, tokens, past, tap)


@fault("taps_missing", replaces="show", blame="h*/mlp/gelu", trips="activations local")
def gelu_not_tapped(x, at):
    return x if at.name.endswith("gelu") else Plain.show(x, at)
