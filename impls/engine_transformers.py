"""Hugging Face transformers: GPT2LMHeadModel unchanged, in PyTorch; hooks give every tap.

Needs torch and transformers. The model is built from sizes alone: no hub, no files. Attention is the
library's default (sdpa), the cache its DynamicCache, ``generate`` its own.
"""

import copy
from functools import partial
from typing import NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    net: GPT2LMHeadModel
    hparams: object


def targets():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(device, dtype) for device in devices for dtype in ("float32", "bfloat16")]


def load(params, hparams, *, device, dtype):
    torch.set_float32_matmul_precision("highest")  # declared float32 means float32
    config = GPT2Config(
        vocab_size=hparams.n_vocab,
        n_positions=hparams.n_ctx,
        n_embd=hparams.n_embd,
        n_head=hparams.n_head,
        n_layer=hparams.n_layer,
        bos_token_id=None,
        eos_token_id=None,  # otherwise generate would stop there
    )
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        net = GPT2LMHeadModel(config)
    weights = {theirs(name): torch.from_numpy(w) for name, w in params.items()}
    # assign: the arrays become the weights, without a copy if the dtype is right
    net.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]}, assign=True)
    net.tie_weights()
    return Model(net.to(device=device, dtype=getattr(torch, dtype)).eval(), hparams)


def theirs(name):
    """transformers' name of a weight: transformer.h.0.attn.c_attn.weight for h0/attn/c_attn/w."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    *scope, leaf = name.split("/")
    if scope and scope[0] != "ln_f":
        scope[0] = f"h.{scope[0].removeprefix('h')}"
    return ".".join(["transformer", *scope, leaves[leaf]])


def numpy(x):
    return x.detach().float().cpu().numpy()  # NumPy has no bfloat16; float32 holds it exactly


@torch.inference_mode()
def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    tokens = torch.as_tensor(tokens).long()
    # On the CPU its embeddings refuse ids and positions that do not exist. We refuse empty input, and
    # bad ids before they kill the process on CUDA.
    n_past = 0 if past is None else past.get_seq_length()
    refuse_bad_tokens(tokens, n_past, model.hparams)
    past = copied(past)
    hooks = listen(model.net.transformer, tap) if tap else []
    try:
        out = model.net(tokens.to(model.net.device), past_key_values=past, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    return out.logits, out.past_key_values


def copied(past):
    """A copy of a cache, which keeps the old one unchanged: update() changes a cache."""
    if past is None:
        return None
    new = copy.copy(past)
    new.layers = [copy.copy(layer) for layer in past.layers]
    return new


def listen(net, tap):
    """Hooks that call tap(name, [batch, n, width]) with results of modules, and with inputs of some."""

    def result(name, module, args, out):
        tap(name, out)

    def argument(name, module, args):
        tap(name, args[0])

    hooks = [net.drop.register_forward_hook(partial(result, "embed"))]  # dropout does nothing in eval
    for i, block in enumerate(net.h):
        results = {
            "ln_1": block.ln_1,
            "attn/c_attn": block.attn.c_attn,
            "attn/c_proj": block.attn.c_proj,
            "ln_2": block.ln_2,
            "mlp/c_fc": block.mlp.c_fc,
            "mlp/gelu": block.mlp.act,
            "mlp/c_proj": block.mlp.c_proj,
        }
        inputs = {"attn/heads": block.attn.c_proj, "resid_mid": block.ln_2}
        hooks += [
            m.register_forward_hook(partial(result, f"h{i}/{leaf}")) for leaf, m in results.items()
        ]
        hooks += [
            m.register_forward_pre_hook(partial(argument, f"h{i}/{leaf}")) for leaf, m in inputs.items()
        ]
        hooks.append(block.register_forward_hook(partial(result, f"h{i}")))
    return [*hooks, net.ln_f.register_forward_hook(partial(result, "ln_f"))]


def refuse_bad_tokens(tokens, n_past, hparams):
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


@torch.inference_mode()
def generate(model, tokens, n_new):
    """Greedy continuation int32 [batch, n_new] of tokens [batch, n] by the library's own generate."""
    tokens = torch.as_tensor(tokens).long()
    refuse_bad_tokens(tokens, n_new - 1, model.hparams)
    tokens = tokens.to(model.net.device)
    options = dict(max_new_tokens=n_new, do_sample=False, attention_mask=torch.ones_like(tokens))
    return model.net.generate(tokens, **options)[:, tokens.shape[1] :].int().cpu().numpy()
