"""Write a model as Hugging Face's config.json and model.safetensors, without our own code for them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gpt2_parity.contract.architecture import HParams

CONFIG = {  # all that openai-community/gpt2 says besides its sizes
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
BLOCK = {
    "ln_1/g": "ln_1.weight", "ln_1/b": "ln_1.bias",
    "attn/c_attn/w": "attn.c_attn.weight", "attn/c_attn/b": "attn.c_attn.bias",
    "attn/c_proj/w": "attn.c_proj.weight", "attn/c_proj/b": "attn.c_proj.bias",
    "ln_2/g": "ln_2.weight", "ln_2/b": "ln_2.bias",
    "mlp/c_fc/w": "mlp.c_fc.weight", "mlp/c_fc/b": "mlp.c_fc.bias",
    "mlp/c_proj/w": "mlp.c_proj.weight", "mlp/c_proj/b": "mlp.c_proj.bias",
}  # fmt: skip


def names(n_layer: int) -> dict[str, str]:
    """Hugging Face's name of each weight, without a prefix, by OpenAI's."""
    blocks = {f"h{i}/{ours}": f"h.{i}.{name}" for i in range(n_layer) for ours, name in BLOCK.items()}
    ends = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f/g": "ln_f.weight", "ln_f/b": "ln_f.bias"}
    return blocks | ends


def config(hparams: HParams) -> dict[str, Any]:
    n_vocab, n_ctx, n_embd, n_head, n_layer = hparams
    sizes = {"vocab_size": n_vocab, "n_positions": n_ctx, "n_embd": n_embd, "n_head": n_head}
    return CONFIG | sizes | {"n_layer": n_layer}


def write(
    folder: Path,
    hparams: HParams,
    params: Mapping[str, np.ndarray],
    prefix: str = "",
    tokenizer: Path | None = None,
) -> Path:
    """A folder with the model; tokenizer: a folder with OpenAI's vocab.bpe and encoder.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(hparams)))
    tensors = {prefix + name: np.array(params[ours]) for ours, name in names(hparams.n_layer).items()}
    save_file(tensors, folder / "model.safetensors")
    if tokenizer is not None:
        shutil.copy(tokenizer / "vocab.bpe", folder / "merges.txt")
        shutil.copy(tokenizer / "encoder.json", folder / "vocab.json")
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; a field that is ... is removed."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | changes
    path.unlink()  # it may be a link that others share
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not ...}))


def alter(folder: Path, **changes: Any) -> None:
    """Change tensors; each change is an array, a function of the tensor, or ... to remove it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        if change is ...:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]) if callable(change) else change
    path.unlink()
    save_file(tensors, path)
