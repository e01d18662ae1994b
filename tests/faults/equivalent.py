"""Other models with the same probabilities: folded and centred weights, shifted logits."""

import numpy as np

from .products import PRODUCTS
from .shelf import BLACK_BOX, altered, fault, put


def centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def folded(p):
    """As TransformerLens' enable_compatibility_mode() has it. The head has weights of its own."""

    def fold(norm, w, b):
        g, shift = p[f"{norm}/g"], p[f"{norm}/b"]
        p[f"{norm}/g"], p[f"{norm}/b"] = np.ones_like(g), np.zeros_like(shift)
        return g[:, None] * w, b + shift @ w

    for h in [name.partition("/")[0] for name in p if name.endswith("/ln_1/g")]:
        for norm, product in (("ln_1", "attn/c_attn"), ("ln_2", "mlp/c_fc")):
            w, b = f"{h}/{product}/w", f"{h}/{product}/b"
            p[w], p[b] = fold(f"{h}/{norm}", p[w], p[b])
        values = p[f"{h}/attn/c_attn/b"][len(p["wte"][0]) * 2 :]
        p[f"{h}/attn/c_proj/b"] = p[f"{h}/attn/c_proj/b"] + values @ p[f"{h}/attn/c_proj/w"]
        values[:] = 0
        for product in ("attn/c_proj", "mlp/c_proj"):
            for leaf in "wb":
                p[f"{h}/{product}/{leaf}"] = centred(p[f"{h}/{product}/{leaf}"])
    w, b = fold("ln_f", p["wte"].T, np.float32(0))
    p["head/w"], p["head/b"] = centred(w), centred(b)
    return p | {name: centred(p[name]) for name in ("wte", "wpe")}


def folded_head(x, wte, at):
    return x @ at.model.params["head/w"] + at.model.params["head/b"]


put(
    "folded_weights",
    converted=altered("converted", folded),
    head=folded_head,
    blame=f"embed h*/ln_1 h*/ln_2 ln_f logits {PRODUCTS}",
    trips="logits activations local weights",
)


@fault("logits_centred", alters="head", blame="logits", diagnosis="logits_centred", trips="local")
def logits_centred(logits):
    return centred(logits)


@fault("log_probabilities", alters="head", blame="logits", diagnosis="log_probabilities", trips="local")
def log_probabilities(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


put(
    "log_probabilities_of_a_black_box",
    head=altered("head", log_probabilities),
    blame="logits",
    diagnosis="log_probabilities",
    trips="logits",
    **BLACK_BOX,
)
