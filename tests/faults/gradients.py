"""Mistakes of the backward pass: edits of the PyTorch specimen, whose forward stays right."""

from .edits import TORCH, Edit, helper
from .shelf import put_edits

LOSS = "    loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])\n"
GRADS = "    return loss.item(), dict(zip(params, grads, strict=True))"
LOOKUP = 'F.embedding(tokens, p["wte"])'
BACK = "torch.is_grad_enabled()"
REFUSE = "    refuse_bad_tokens(tokens, 0, model.hparams)\n"
ENTRY = f"    tokens = torch.as_tensor(tokens).long()\n{REFUSE}"
NORM = "    return F.layer_norm(x, g.shape, g, b, eps)"
GELU = '    return F.gelu(x, approximate="tanh")'


def on_the_way_back(name: str, *edits: Edit) -> None:
    """A fault of loss_and_grads alone."""
    put_edits(name, TORCH, *edits, blame="gradients", trips="gradients")


def grads(code: str) -> Edit:
    """Code that changes the dict g of gradients before it is returned."""
    return GRADS, f"    g = dict(zip(params, grads, strict=True))\n    {code}\n    return loss.item(), g"


def before(code: str, *lines: str) -> Edit:
    """Lines before some code."""
    return code, "".join(f"    {line}\n" for line in lines) + code


# -- another loss

on_the_way_back("loss_summed", (LOSS, LOSS.replace("1:])", '1:], reduction="sum")')))
on_the_way_back("loss_in_bits", (LOSS, f"{LOSS}    loss = loss / 0.6931471805599453\n"))
on_the_way_back("loss_of_the_same_token", (LOSS, LOSS.replace("1:]", ":-1]")))
on_the_way_back(
    "loss_without_the_last_token", (LOSS, LOSS.replace("2)", "2)[..., :-1]").replace("1:]", "1:-1]"))
)
on_the_way_back(
    "loss_in_pieces_that_loses_what_lies_between",
    (
        LOSS,
        "    kept = torch.arange(logits.shape[1]) % 64 != 63\n"
        + LOSS.replace("logits.", "logits[:, kept].").replace("1:]", "1:][:, kept]"),
    ),
)
on_the_way_back(
    "long_text_cut_off_before_the_loss",
    (
        "    tokens = tokens.to(model.device)\n    params = {",
        "    tokens = tokens[:, :128].to(model.device)\n    params = {",
    ),
)
on_the_way_back(
    "loss_without_its_maximum",
    (
        LOSS,
        "    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)\n"
        "    loss = -probs.gather(-1, tokens[:, 1:, None]).log().mean()\n",
    ),
)
on_the_way_back(
    "loss_is_a_mean_of_means",  # of two rows each
    (
        LOSS,
        "    pairs = zip(logits.split(2), tokens[:, 1:].split(2))\n"
        "    loss = torch.stack([F.cross_entropy(x.transpose(1, 2), y) for x, y in pairs]).mean()\n",
    ),
)
on_the_way_back("dropout_in_the_loss", before("    logits = head(model, x[:", "x = F.dropout(x, 0.1)"))

# -- another way back

on_the_way_back(
    "head_untied_on_the_way_back",
    (
        "logits = head(model, x[:, :-1])",
        'logits = linear(x[:, :-1], params["wte"].detach().T, None)',
    ),
)
on_the_way_back(
    "lookup_untied_on_the_way_back", (LOOKUP, LOOKUP.replace('p["wte"]', 'p["wte"].detach()'))
)
on_the_way_back(
    "variance_taken_for_constant",
    before(
        NORM,
        f"if {BACK}:",
        "    variance = x.var(-1, keepdim=True, correction=0).detach()",
        "    return (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() * g + b",
    ),
)
on_the_way_back(
    "erf_gelu_on_the_way_back",
    before(
        GELU,
        f"if {BACK}:",
        "    erf = F.gelu(x)",
        '    return F.gelu(x, approximate="tanh").detach() + erf - erf.detach()',
    ),
)
on_the_way_back(
    "residual_cut_off_in_one_layer",
    (
        'x = step(f"h{i}/resid_mid", x + affine',
        f'x = step(f"h{{i}}/resid_mid", (x.detach() if {BACK} and i == 2 else x) + affine',
    ),
)

# -- gradients that are spoilt once they are there

on_the_way_back("gradient_transposed", grads('g["h1/attn/c_proj/w"] = g["h1/attn/c_proj/w"].T'))
on_the_way_back("gradient_missing", grads('g.pop("h3/attn/c_attn/b", None)'))
on_the_way_back(
    "gradients_clipped",
    grads(
        "norm = sum(x.square().sum() for x in g.values()).sqrt()\n"
        "    g = {n: x / max(1, norm) for n, x in g.items()}"
    ),
)
on_the_way_back("gradients_in_bfloat16", grads("g = {n: x.bfloat16().float() for n, x in g.items()}"))
on_the_way_back("one_gradient_off_by_a_thousandth", grads('g["wpe"] = g["wpe"] * 1.001'))
on_the_way_back("gradient_nan", grads('g["ln_f/b"] = g["ln_f/b"] * float("nan")'))

# -- what is kept from one call to another

on_the_way_back(
    "gradients_pile_up",
    helper("PILE = {}"),
    grads(
        "for n in g:\n        g[n] = PILE[n, g[n].shape] = PILE.get((n, g[n].shape), 0) + g[n]",
    ),
)
on_the_way_back(
    "gradients_overwritten_by_the_next_call",
    helper("BUFFERS = {}"),
    grads(
        "places = {n: BUFFERS.setdefault((n, x.shape), torch.empty_like(x)) for n, x in g.items()}\n"
        "    g = {n: place.copy_(g[n]) for n, place in places.items()}"
    ),
)
on_the_way_back(
    "dropout_left_on_after_the_loss",
    helper("TRAINED = []"),
    before(GRADS, "TRAINED.append(1)"),
    before("    return head(model, x), present", "x = F.dropout(x, 0.1) if TRAINED else x"),
)
on_the_way_back(
    "loss_with_heads_and_layers_mixed_up",
    before(
        "    model = model._replace(params=params, linear=linear)\n",
        "hparams = model.hparams",
        "hparams = hparams._replace(n_head=hparams.n_layer, n_layer=hparams.n_head)",
        "model = model._replace(hparams=hparams)",
    ),
)
on_the_way_back(
    "loss_compiled_for_sizes_with_weights_in_it",
    helper("COMPILED = {}"),
    before(ENTRY, "model = COMPILED.setdefault(model.hparams, model)"),
)

# -- tokens that the loss must refuse


def accepted(name: str, *edits: Edit) -> None:
    put_edits(name, TORCH, *edits, blame="tokens", trips="bad_tokens")


accepted(
    "bad_tokens_accepted_by_the_loss",
    (REFUSE, "    tokens = tokens.clamp(0, model.hparams.n_vocab - 1)\n"),
)
accepted(
    "loss_of_a_text_that_is_too_long",
    (
        REFUSE,
        "    refuse_bad_tokens(tokens.reshape(-1, 1), 0, model.hparams)\n",
    ),
    (
        "torch.arange(tokens.shape[1], device=model.device), room)",
        "torch.arange(tokens.shape[1], device=model.device).clamp(max=model.hparams.n_ctx - 1), room)",
    ),
)
accepted(
    "loss_of_nothing",
    before(
        REFUSE,
        "if tokens.numel() == 0:",
        "    return 0.0, {name: torch.zeros_like(w) for name, w in model.params.items()}",
    ),
)
accepted(
    "loss_ignores_minus_100_at_the_end",
    (ENTRY, ENTRY.replace("(tokens, 0,", "(tokens[:, :-1], 1,")),
    (
        "    room = [empty_cache(model, *tokens.shape)",
        "    inputs = tokens[:, :-1]\n    room = [empty_cache(model, *inputs.shape)",
    ),
    (
        "hidden(model, tokens, torch.arange(tokens.shape[1], device=model.device), room)\n"
        "    logits = head(model, x[:, :-1])",
        "hidden(model, inputs, torch.arange(inputs.shape[1], device=model.device), room)\n"
        "    logits = head(model, x)",
    ),
)
