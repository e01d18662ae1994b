"""GPT-2 as a graph: its sizes, its operations in order, and the names of taps and checkpoint variables.

Taps, operations and checkpoint variables all follow from one description, ``graph``.
"""

import re
from typing import NamedTuple


class HParams(NamedTuple):
    """The sizes of a GPT-2, named as in OpenAI's hparams.json."""

    n_vocab: int  # tokens of the vocabulary
    n_ctx: int  # positions
    n_embd: int  # width of the residual stream; a head has n_embd / n_head
    n_head: int
    n_layer: int


class Op(NamedTuple):
    """One operation between taps."""

    name: str  # the tap that it produces
    kind: str  # embedding, layer_norm, linear, attention, add, gelu or head
    inputs: tuple[str, ...]  # the taps that it consumes


def graph(n_layer: int) -> list[Op]:
    """Every operation of GPT-2 in order of execution. The last, "logits", is the tied head."""
    ops = [Op("embed", "embedding", ())]
    for i in range(n_layer):
        x, h = ops[-1].name, f"h{i}"
        ops += [
            Op(f"{h}/ln_1", "layer_norm", (x,)),
            Op(f"{h}/attn/c_attn", "linear", (f"{h}/ln_1",)),
            Op(f"{h}/attn/heads", "attention", (f"{h}/attn/c_attn",)),
            Op(f"{h}/attn/c_proj", "linear", (f"{h}/attn/heads",)),
            Op(f"{h}/resid_mid", "add", (x, f"{h}/attn/c_proj")),
            Op(f"{h}/ln_2", "layer_norm", (f"{h}/resid_mid",)),
            Op(f"{h}/mlp/c_fc", "linear", (f"{h}/ln_2",)),
            Op(f"{h}/mlp/gelu", "gelu", (f"{h}/mlp/c_fc",)),
            Op(f"{h}/mlp/c_proj", "linear", (f"{h}/mlp/gelu",)),
            Op(h, "add", (f"{h}/resid_mid", f"{h}/mlp/c_proj")),
        ]
    return [
        *ops,
        Op("ln_f", "layer_norm", (ops[-1].name,)),
        Op("logits", "head", ("ln_f",)),
    ]


def kind_of(name: str) -> str:
    """The kind of the operation that produces a tap (or "logits"), in any layer, or in h*: all.

    Raises StopIteration for any other name.
    """
    first = re.sub(r"^h(\d+|\*)", "h0", name)
    return next(op.kind for op in graph(1) if op.name == first)


def tap_names(n_layer: int) -> tuple[str, ...]:
    """The taps of the contract: every operation's result except the logits, which forward returns."""
    return tuple(op.name for op in graph(n_layer)[:-1])


def tap_width(name: str, hparams: HParams) -> int:
    """The size of the last axis of a tap (or of "logits")."""
    widths = {"attn/c_attn": 3 * hparams.n_embd, "mlp/c_fc": 4 * hparams.n_embd}
    widths |= {"mlp/gelu": 4 * hparams.n_embd, "logits": hparams.n_vocab}
    return widths.get(name.partition("/")[2] or name, hparams.n_embd)


def parameter_shapes(hparams: HParams) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by checkpoint name, as load() receives it: each w is [n_in, n_out]."""
    return {name: shape[-2:] for name, shape in variable_shapes(hparams).items()}


def variable_shapes(hparams: HParams) -> dict[str, tuple[int, ...]]:
    """Shape of every checkpoint variable by name without "model/", as stored: w is [1, n_in, n_out]."""
    n_embd = hparams.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (hparams.n_vocab, n_embd),
        "wpe": (hparams.n_ctx, n_embd),
    }
    for op in graph(hparams.n_layer):
        if op.kind == "layer_norm":
            shapes |= {f"{op.name}/g": (n_embd,), f"{op.name}/b": (n_embd,)}
        if op.kind == "linear":
            n_in, n_out = tap_width(op.inputs[0], hparams), tap_width(op.name, hparams)
            shapes |= {f"{op.name}/w": (1, n_in, n_out), f"{op.name}/b": (n_out,)}
    return shapes
