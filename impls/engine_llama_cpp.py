"""llama.cpp through llama-cpp-python, fed through a GGUF file in float32. A black box: no taps.

Needs llama-cpp-python, gguf and NumPy. The file is written to a temporary folder, mapped, and removed.
llama.cpp keeps one KV cache per context and changes it in place, so "past" is the tokens so far: if the
context's sequence starts with them, its cache is used; otherwise they are evaluated again. The default
type of the cache is float16; here it is float32.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import gguf
import llama_cpp
import numpy as np

TAPS = ()  # a black box
# llama.cpp's names by ours
LEAVES = {
    "ln_1": gguf.MODEL_TENSOR.ATTN_NORM,
    "attn/c_attn": gguf.MODEL_TENSOR.ATTN_QKV,
    "attn/c_proj": gguf.MODEL_TENSOR.ATTN_OUT,
    "ln_2": gguf.MODEL_TENSOR.FFN_NORM,
    "mlp/c_fc": gguf.MODEL_TENSOR.FFN_UP,
    "mlp/c_proj": gguf.MODEL_TENSOR.FFN_DOWN,
    "ln_f": gguf.MODEL_TENSOR.OUTPUT_NORM,
    "wte": gguf.MODEL_TENSOR.TOKEN_EMBD,  # also the head, if the file has no other
    "wpe": gguf.MODEL_TENSOR.POS_EMBD,
}


class Model(NamedTuple):
    engine: llama_cpp.Llama
    hparams: object


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    with tempfile.TemporaryDirectory(prefix="parity-llama-cpp-") as folder:
        path = Path(folder) / "gpt2.gguf"
        write(path, params, hparams)
        engine = llama_cpp.Llama(
            str(path),
            n_ctx=hparams.n_ctx,
            n_batch=hparams.n_ctx,
            n_ubatch=hparams.n_ctx,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
    return Model(engine, hparams)  # the mapping stays valid after the file is removed


def write(path, params, hparams):
    """Write a GGUF file with these weights and no tokenizer: the contract uses ids."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(hparams.n_ctx)
    writer.add_embedding_length(hparams.n_embd)
    writer.add_feed_forward_length(4 * hparams.n_embd)
    writer.add_block_count(hparams.n_layer)
    writer.add_head_count(hparams.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(hparams.n_vocab)
    for name, w in params.items():
        # linear weights are [n_out, n_in] in GGUF
        writer.add_tensor(theirs(name), np.ascontiguousarray(w.T if name.endswith("/w") else w))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(name):
    """llama.cpp's name of a weight: blk.0.attn_qkv.weight for h0/attn/c_attn/w."""
    scope, _, leaf = name.rpartition("/")
    if not scope:
        return f"{gguf.TENSOR_NAMES[LEAVES[leaf]]}.weight"
    ending = "bias" if leaf == "b" else "weight"
    block, _, place = scope.partition("/")
    known = LEAVES[place or block]
    return f"{gguf.TENSOR_NAMES[known].format(bid=block.removeprefix('h'))}.{ending}"


def numpy(x):
    return x


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and all tokens so far."""
    tokens = np.asarray(tokens)
    past = np.zeros((len(tokens), 0), np.int32) if past is None else past
    refuse_bad_tokens(tokens, past.shape[1], model.hparams)
    rows = zip(past, tokens, strict=True)  # one sequence at a time
    logits = np.stack([row_of_logits(model.engine, before, row) for before, row in rows])
    return logits, np.concatenate([past, tokens], axis=1)


def row_of_logits(engine, before, tokens):
    """Logits [n, n_vocab] of tokens [n] after the tokens before, which may still be in the cache."""
    held = engine.input_ids[: min(engine.n_tokens, len(before))]
    same = len(held) == len(before) and np.array_equal(held, before)
    engine.n_tokens = len(before) if same else 0  # eval() removes what is beyond from the cache
    if not same:
        engine.eval(before.tolist())
    engine.eval(tokens.tolist())
    return engine.scores[len(before) : len(before) + len(tokens)].copy()


def refuse_bad_tokens(tokens, n_past, hparams):
    """llama.cpp refuses ids that do not exist; we refuse empty input and positions beyond n_ctx."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")
