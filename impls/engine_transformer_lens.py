"""TransformerLens: a bridge around transformers' GPT2LMHeadModel, with its usual processing of weights.

Needs torch, transformers and transformer-lens. enable_compatibility_mode() folds layer norms and value
biases into what follows, and centres writing weights and the head: another model with the same
probabilities, whose logits differ by a constant at each position. So it disagrees; the same without
processing is engine_transformer_lens_unprocessed. Its own hooks give every tap.
"""

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import engine_transformers
from engine_transformers import Model, copied, numpy, refuse_bad_tokens

__all__ = ["TAPS", "forward", "load", "numpy", "targets"]
TAPS = "all"  # every tap of the contract is promised
HOOKS = {  # TransformerLens' names by ours
    "ln_1": "ln1.hook_out",
    "attn/heads": "attn.hook_z",
    "attn/c_proj": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "ln_2": "ln2.hook_out",
    "mlp/c_fc": "mlp.hook_pre",
    "mlp/gelu": "mlp.hook_post",
    "mlp/c_proj": "hook_mlp_out",
}


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype, processed=True):
    net = engine_transformers.load(params, hparams, device=device, dtype=dtype).net
    bridge = build_bridge_from_module(net, "GPT2LMHeadModel", hf_config=net.config)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=not processed)
    return Model(bridge, hparams)


@torch.inference_mode()
def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    tokens = torch.as_tensor(tokens).long()
    refuse_bad_tokens(tokens, 0 if past is None else past.get_seq_length(), model.hparams)
    with model.net.hooks(fwd_hooks=list(hooks(model.hparams.n_layer, tap)) if tap else []):
        return model.net(
            tokens, return_type="logits_and_cache", past_key_values=copied(past), use_cache=True
        )


def hooks(n_layer, tap):
    """Pairs of TransformerLens' names and functions that call tap(name, [batch, n, width])."""

    def shown(name):
        return lambda x, hook: tap(name, x.flatten(2))  # heads [batch, n, n_head, head] too

    yield "blocks.0.hook_resid_pre", shown("embed")
    for i in range(n_layer):
        thirds = []

        def third(x, hook, name=f"h{i}/attn/c_attn", thirds=thirds):
            thirds.append(x.flatten(2))
            if len(thirds) == 3:
                tap(name, torch.cat(thirds, dim=-1))

        yield from ((f"blocks.{i}.attn.hook_{leaf}", third) for leaf in "qkv")
        yield from ((f"blocks.{i}.{theirs}", shown(f"h{i}/{ours}")) for ours, theirs in HOOKS.items())
        yield f"blocks.{i}.hook_resid_post", shown(f"h{i}")
    yield "ln_final.hook_out", shown("ln_f")
