"""torch.compile: the PyTorch specimen's forward pass, compiled by TorchInductor; every tap.

Needs torch and a C++ compiler. Keys and values are computed anew in each call. With taps another graph
is compiled, in which each of them is a result. Compiling takes seconds, for other sizes anew, and for
one token or one row.
"""

import torch

import gpt2_torch
from gpt2_torch import TAPS, numpy

__all__ = ["CACHE", "TAPS", "forward", "load", "numpy", "targets"]
CACHE = None  # everything is computed anew in each call


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    torch._dynamo.config.recompile_limit = 1000  # beyond it, calls are not compiled any more
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    model = gpt2_torch.load(params, hparams, device=device, dtype=dtype)
    return model._replace(linear=gpt2_torch.linear)


@torch.compile(fullgraph=True)
def compiled(model, tokens, kv, want_taps):
    """Logits [batch, n, n_vocab] of tokens [batch, n], and the taps by name if they are wanted.

    kv: memory for keys and values, [n_layer, 2, batch, n_head, n, head].
    """
    taps = {}
    tap = taps.__setitem__ if want_taps else (lambda name, x: None)
    positions = torch.arange(tokens.shape[1])
    mask = positions <= positions.unsqueeze(1)  # is_causal must not depend on a length that varies
    x = gpt2_torch.hidden(model, tokens, positions, kv, mask, tap)
    return gpt2_torch.head(model, x), taps


@torch.no_grad()
def forward(model, tokens, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n]."""
    tokens = torch.as_tensor(tokens)
    gpt2_torch.refuse_bad_tokens(tokens, 0, model.hparams)
    kv = gpt2_torch.empty_cache(model, *tokens.shape).kv
    logits, taps = compiled(model, tokens, kv, tap is not None)
    for name, value in taps.items():
        tap(name, value)
    return logits
