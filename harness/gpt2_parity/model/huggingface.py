"""Read a GPT-2 from a folder of Hugging Face: config.json and model.safetensors.

It needs no framework, nor the safetensors package. Whatever in the configuration or among the tensors
would make another model than GPT-2, or is not known here, is refused by name.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import strict_json
from gpt2_parity.files.safetensors_mmap import MappedArrays

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # as OpenAI's encoder.json and vocab.bpe
SHARDS, PICKLE = "model.safetensors.index.json", "pytorch_model.bin"
REPOSITORIES = {  # on the Hugging Face Hub, by our name of the same checkpoint
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}
FLOATS = ("F32", "F16", "BF16")
MASKS = (*FLOATS, "U8", "BOOL")
SIZES = ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer")  # in the order of HParams

# What each field of the configuration may say: only what makes the model GPT-2.
MEANING: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "architectures": (None, ["GPT2LMHeadModel"], ["GPT2Model"]),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of the tanh form
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_word_embeddings": (True,),
    "quantization_config": (None,),
    "pruned_heads": (None, {}),
    "auto_map": (None,),  # else the model has code of its own
}
# What does not change the logits: dropout (training only), initial values, heads of other tasks, how
# text is chosen. reorder_and_upcast_attn computes the same scores in float32 and in another order: it
# rounds otherwise, and the truth is not rounded.
IRRELEVANT = re.compile(
    "_name_or_path|n_ctx|(attn|embd|resid)_pdrop|initializer_range|summary_.*|reorder_and_upcast_attn|"
    "use_cache|_attn_implementation(_autoset)?|transformers_version|torch_dtype|dtype|"
    "(bos|eos|pad)_token_id|task_specific_params|gradient_checkpointing|"
    "output_(past|attentions|hidden_states)|return_dict|is_decoder|"
    "_?num_labels|id2label|label2id|problem_type|classifier_dropout|finetuning_task|"
    "(max|min)_length|do_sample|early_stopping|num_beams|num_return_sequences|temperature|top_[kp]|"
    "repetition_penalty|length_penalty|no_repeat_ngram_size"
)
BUFFER = re.compile(r"h\.(0|[1-9]\d{0,3})\.attn\.(bias|masked_bias)")
HEAD = "lm_head.weight"


def is_one(directory: Path) -> bool:
    """Whether a folder has files of Hugging Face's layout, and not OpenAI's hparams.json."""
    names = (CONFIG, WEIGHTS, SHARDS, PICKLE)
    return not os.path.lexists(directory / "hparams.json") and any(
        os.path.lexists(directory / name) for name in names
    )


def files(directory: Path) -> tuple[str, ...]:
    """The files that are read: two, and the tokenizer's two if at least one of these is there."""
    tokenizer = (VOCABULARY, MERGES)
    has_one = any(os.path.lexists(directory / name) for name in tokenizer)
    return (CONFIG, WEIGHTS, *tokenizer) if has_one else (CONFIG, WEIGHTS)


def refuse_other_files(directory: Path) -> None:
    """Raise CannotJudge if the weights are in a pickle or in shards instead of in model.safetensors."""
    if os.path.lexists(directory / WEIGHTS):
        return
    if os.path.lexists(directory / SHARDS):
        raise CannotJudge(
            f"{directory / SHARDS}: the weights are split over several files (shards). Only {WEIGHTS} "
            'is read; save it with model.save_pretrained(FOLDER, max_shard_size="100GB")'
        )
    if os.path.lexists(directory / PICKLE):
        raise CannotJudge(
            f"{directory / PICKLE}: a pickle, which can run any code when it is read, so it is not. "
            f"Save the weights as {WEIGHTS}, with model.save_pretrained(FOLDER)"
        )


def sizes(path: Path) -> dict[str, Any]:
    """The sizes that config.json gives, unchecked, by Hugging Face's names in the order of HParams.

    Raises CannotJudge, naming the entry, if the file is not JSON, if a size is missing, or if anything
    in it makes another model than GPT-2 or is unknown.
    """
    try:
        config = strict_json.read(path)
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not a configuration as JSON ({error})") from error
    width = config.get("n_embd")
    inner = (None, 4 * width) if type(width) is int else (None,)
    allowed = MEANING | {"n_inner": inner}
    for name in ("model_type", *config):
        if name in allowed:
            _refuse_value(path, name, config.get(name), allowed[name])
        elif name not in SIZES and not IRRELEVANT.fullmatch(name):
            raise CannotJudge(
                f"{path}: {name[:100]!r} is unknown, so it cannot be said whether the model is GPT-2. "
                "If it does not change the logits, remove it"
            )
    if missing := [name for name in SIZES if name not in config]:
        raise CannotJudge(f"{path}: needs {', '.join(SIZES)}, but {missing[0]} is missing")
    return {name: config[name] for name in SIZES}


def _refuse_value(path: Path, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise CannotJudge(
            f"{path}: {name} is {str(value)[:60]!r}, so the model is not GPT-2 as it is verified here "
            f"({' or '.join(map(str, allowed))})"
        )


def tensor_name(name: str) -> str:
    """Hugging Face's name of a weight, without a prefix: h.0.ln_1.weight for h0/ln_1/g."""
    scope, _, leaf = name.rpartition("/")
    scope = re.sub(r"^h(\d+)", r"h.\1", scope or name).replace("/", ".")
    return f"{scope}.{'bias' if leaf == 'b' else 'weight'}"


class Weights(Mapping[str, np.ndarray]):
    """Float32 arrays by OpenAI's names, each read, and widened exactly, when it is looked up."""

    def __init__(self, path: Path, hparams: HParams):
        """Reads the header only. Raises CannotJudge, naming the tensor, unless names, shapes and dtypes
        are those of a GPT-2 of these sizes.
        """
        self.file, self.hparams = MappedArrays(path), hparams
        prefix = "transformer." if any(n.startswith("transformer.") for n in self.file) else ""
        shapes = parameter_shapes(hparams)
        self.sources = {name: prefix + tensor_name(name) for name in shapes}
        if missing := [source for source in self.sources.values() if source not in self.file]:
            raise CannotJudge(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all)")
        for name, source in self.sources.items():
            self._refuse(source, shapes[name], FLOATS)
        self.masks: list[str] = []
        for tensor in sorted(self.file.keys() - set(self.sources.values())):
            self._take_other(tensor, tensor.removeprefix(prefix))

    def _take_other(self, tensor: str, plain: str) -> None:
        """Raise CannotJudge unless a tensor is the head or a mask. plain: its name without a prefix."""
        buffer = BUFFER.fullmatch(plain)
        if tensor == HEAD:
            self._refuse(tensor, (self.hparams.n_vocab, self.hparams.n_embd), FLOATS)
        elif buffer is None or int(buffer[1]) >= self.hparams.n_layer:
            raise CannotJudge(f"{self.file.path}: tensor {tensor[:100]} is not one of GPT-2's")
        elif buffer[2] == "bias":
            self._refuse(tensor, (1, 1, self.hparams.n_ctx, self.hparams.n_ctx), MASKS)
            self.masks.append(tensor)
        else:  # the number that was put in place of masked scores
            self._refuse(tensor, (), FLOATS)

    def _refuse(self, tensor: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
        """Raise CannotJudge unless a tensor has this shape and one of these dtypes."""
        entry = self.file.header[tensor]
        if tuple(entry["shape"]) != shape:
            raise CannotJudge(
                f"{self.file.path}: tensor {tensor} has shape {tuple(entry['shape'])}, config.json says "
                f"{shape}"
            )
        if entry["dtype"] not in dtypes:
            raise CannotJudge(
                f"{self.file.path}: tensor {tensor} is {entry['dtype']}, read are {', '.join(dtypes)}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._float32(self.sources[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def _float32(self, tensor: str) -> np.ndarray:
        """A tensor as float32. Every float16 and every bfloat16 is a float32, so nothing is rounded."""
        stored = self.file[tensor]
        if self.file.header[tensor]["dtype"] == "BF16":  # its bits are the upper half of a float32's
            return (stored.astype("<u4") << np.uint32(16)).view("<f4")
        return stored.astype("<f4", copy=False)

    def check_values(self) -> None:
        """Read every tensor. Raises CannotJudge, naming it, for values that are NaN or infinite, a head
        that is not tied to the embedding, and a mask that is not causal.
        """
        for name, source in self.sources.items():
            if not np.isfinite(self[name]).all():
                raise CannotJudge(
                    f"{self.file.path}: tensor {source} has values that are NaN or infinite"
                )
        if HEAD in self.file and not self._same_bits(HEAD, self.sources["wte"]):
            raise CannotJudge(
                f"{self.file.path}: {HEAD} differs from {self.sources['wte']}, but GPT-2's head is its "
                "token embedding"
            )
        for mask in self.masks:
            stored = self.file[mask][0, 0]
            if not np.array_equal(stored != 0, np.tri(len(stored), dtype=bool)):
                raise CannotJudge(f"{self.file.path}: {mask} is not the causal mask")

    def _same_bits(self, one: str, other: str) -> bool:
        return bool(np.array_equal(self._float32(one).view("<u4"), self._float32(other).view("<u4")))
