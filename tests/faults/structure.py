"""Mistakes of structure: residual additions, the order of operations, and the layers that run."""

from .plain import Plain
from .shelf import fault, put

# -- residual additions


def wrong_sum(*, at_resid_mid=None, at_block=None):
    """An addition that is wrong in the middle of a block or at its end."""

    def add(x, branch, at):
        wrong = at_resid_mid if at.name.endswith("resid_mid") else at_block
        return wrong(x, branch) if wrong else Plain.add(x, branch, at)

    return add


for _name, _sum in {
    "residual_missing": lambda x, branch: branch,
    "branch_missing": lambda x, branch: x,
    "branch_subtracted": lambda x, branch: x - branch,
}.items():
    put(_name, add=wrong_sum(at_block=_sum), blame="h?", diagnosis=_name)
put(
    "residual_twice",
    add=wrong_sum(at_resid_mid=lambda x, branch: 2 * x + branch),
    blame="h*/resid_mid",
    diagnosis="residual_twice",
)


@fault("residual_after_norm", replaces="residual", blame="h*/resid_mid", diagnosis="residual_source")
def residual_after_norm(self, x, branch, at):
    """Adds to the normed residual, not to the residual."""
    if at.name.endswith("resid_mid"):
        ln_1 = at._replace(name=at.name.replace("resid_mid", "ln_1"))
        x = self.layer_norm(x, *ln_1.weights("g", "b"), ln_1)
    return Plain.residual(self, x, branch, at)


@fault("mlp_parallel_to_attention", replaces="norm", blame="h*/ln_2", diagnosis="other_input")
def mlp_parallel_to_attention(self, x, at):
    """ln_2 reads what ln_1 read."""
    if at.name.endswith("ln_1"):
        self.memory["input"] = x
    return Plain.norm(self, self.memory["input"] if at.name.endswith("ln_2") else x, at)


@fault("head_without_ln_f", replaces="norm", blame="logits", diagnosis="head_without_ln_f")
def head_without_ln_f(self, x, at):
    """ln_f is computed, and tapped, but not used."""
    y = Plain.norm(self, x, at)
    return x if at.name == "ln_f" else y


# -- layers


def remembering_block(self, x, past, at):
    self.memory["input"] = x
    return Plain.block(self, x, past, at)


def nothing_added_in_h2(self, x, branch, at):
    if at.name == "h2":
        return self.show(self.memory["input"], at)
    return Plain.residual(self, x, branch, at)


put(
    "layer_skipped",
    block=remembering_block,
    residual=nothing_added_in_h2,
    blame="h2",
    diagnosis="passed_on",
)


@fault("last_layer_not_run", replaces="forward", blame="h3*", trips="logits activations")
def last_layer_not_run(self, model, tokens, past=None, tap=None):
    hparams = model.hparams._replace(n_layer=model.hparams.n_layer - 1)
    return Plain.forward(self, model._replace(hparams=hparams), tokens, past, tap)


def mixed_up(hparams):
    return hparams._replace(n_head=hparams.n_layer, n_layer=hparams.n_head)


@fault("heads_and_layers_mixed_up", replaces="load", blame="sizes", trips="sizes")
def heads_and_layers_mixed_up(self, params, hparams, **target):
    """micro has four of each."""
    return Plain.load(self, params, mixed_up(hparams), **target)


@fault("generate_with_heads_and_layers_mixed_up", replaces="generate", blame="generate", trips="greedy")
def generate_with_heads_and_layers_mixed_up(self, model, tokens, n_new):
    return Plain.generate(self, model._replace(hparams=mixed_up(model.hparams)), tokens, n_new)


def under_other_scopes(params, other):
    """The weights of scope "h1" under the name other["h1"], and so on."""
    parts = {name: name.partition("/") for name in params}
    return {"".join((other.get(parts[n][0], parts[n][0]), *parts[n][1:])): w for n, w in params.items()}


LEAVES = ("ln_1", "ln_2", "attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")


@fault(
    "layers_exchanged",
    alters="converted",
    blame=" ".join(f"h{{1,2}}/{leaf}" for leaf in LEAVES),
    diagnosis="other_weights",
)
def layers_exchanged(p):
    return under_other_scopes(p, {"h1": "h2", "h2": "h1"})


@fault("layers_in_the_order_of_their_names", alters="converted", blame="sizes", trips="sizes")
def layers_in_the_order_of_their_names(p):
    """h0 h1 h10 h11 h2."""
    scopes = sorted({name.partition("/")[0] for name in p if name.startswith("h")})
    return under_other_scopes(p, {scope: f"h{i}" for i, scope in enumerate(scopes)})


@fault("norms_exchanged", alters="converted", blame="h*/ln_1 h*/ln_2", diagnosis="other_weights")
def norms_exchanged(p):
    other = {"ln_1": "ln_2", "ln_2": "ln_1"}
    return {"/".join(other.get(part, part) for part in name.split("/")): w for name, w in p.items()}
