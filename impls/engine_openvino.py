"""OpenVINO: GPT-2 in its operations (MVN, attention, GELU), compiled for the CPU; every tap.

Needs openvino and NumPy. Two compiled models share the weights: one returns only the logits, as users
run it; the other also returns the taps. On processors that have bfloat16 (AVX512-BF16, AMX), OpenVINO
computes in it unless INFERENCE_PRECISION_HINT says otherwise: this is the default, see
engine_openvino_float32 for the other.
"""

from typing import NamedTuple

import numpy as np
import openvino
from openvino import opset15 as ops

TAPS = "all"  # every tap of the contract is promised
SETTINGS = {}


class Model(NamedTuple):
    plain: openvino.CompiledModel
    tapped: openvino.CompiledModel
    taps: list  # names, in the order of the tapped model's last outputs
    hparams: object


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype, settings=SETTINGS):
    inputs, outputs, taps = graph(params, hparams)
    core = openvino.Core()

    def compiled(results):
        return core.compile_model(openvino.Model(results, inputs, "gpt2"), "CPU", settings)

    return Model(compiled(outputs), compiled([*outputs, *taps.values()]), list(taps), hparams)


def graph(params, hparams):
    """The inputs (tokens, positions, mask, cache), the outputs (logits, cache), and the taps by name."""
    taps = {}
    n_head, width = hparams.n_head, hparams.n_embd // hparams.n_head
    tokens, positions = ops.parameter([-1, -1], np.int32), ops.parameter([-1], np.int32)
    visible = ops.parameter([-1, -1], np.bool_)  # [n, n_past + n], true where a query may see a key
    past = [ops.parameter([-1, n_head, -1, width], np.float32) for _ in range(2 * hparams.n_layer)]

    def weight(name):
        return ops.constant(params[name], shared_memory=True)

    def seen(name, node):
        taps[name] = node
        return node

    def norm(name, x):
        x = ops.mvn(x, ops.constant([-1]), True, 1e-5, "inside_sqrt")
        return seen(name, ops.add(ops.multiply(x, weight(f"{name}/g")), weight(f"{name}/b")))

    def linear(name, x):
        product = ops.matmul(x, weight(f"{name}/w"), False, False)
        return seen(name, ops.add(product, weight(f"{name}/b")))

    def rows(name, ids):
        return ops.gather(weight(name), ids, ops.constant(0))

    x = seen("embed", ops.add(rows("wte", tokens), rows("wpe", positions)))
    present = []
    for i in range(hparams.n_layer):
        h = f"h{i}"
        qkv = linear(f"{h}/attn/c_attn", norm(f"{h}/ln_1", x))
        # [batch, n, 3 * n_embd] -> [3, batch, n_head, n, head]
        qkv = ops.reshape(qkv, ops.constant([0, 0, 3, n_head, width]), True)
        qkv = ops.transpose(qkv, ops.constant([2, 0, 3, 1, 4]))
        q, k, v = (ops.gather(qkv, ops.constant(third), ops.constant(0)) for third in range(3))
        k, v = (ops.concat([past[2 * i + j], new], 2) for j, new in enumerate((k, v)))
        present += [k, v]
        heads = ops.transpose(
            ops.scaled_dot_product_attention(q, k, v, visible), ops.constant([0, 2, 1, 3])
        )
        heads = seen(f"{h}/attn/heads", ops.reshape(heads, ops.constant([0, 0, hparams.n_embd]), True))
        x = seen(f"{h}/resid_mid", ops.add(x, linear(f"{h}/attn/c_proj", heads)))
        hidden = ops.gelu(linear(f"{h}/mlp/c_fc", norm(f"{h}/ln_2", x)), "tanh")
        x = seen(h, ops.add(x, linear(f"{h}/mlp/c_proj", seen(f"{h}/mlp/gelu", hidden))))
    logits = ops.matmul(norm("ln_f", x), weight("wte"), False, True)  # tied to the embedding
    return [tokens, positions, visible, *past], [logits, *present], taps


def numpy(x):
    return x


def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them.

    The cache is k and v of every layer, each [batch, n_head, n_past + n, head].
    """
    hparams = model.hparams
    tokens = np.asarray(tokens)
    n_past = 0 if past is None else past[0].shape[2]
    refuse_bad_tokens(tokens, n_past, hparams)
    batch, n = tokens.shape
    if past is None:
        empty = np.zeros((batch, hparams.n_head, 0, hparams.n_embd // hparams.n_head), np.float32)
        past = [empty] * (2 * hparams.n_layer)
    positions = np.arange(n_past, n_past + n, dtype=np.int32)
    visible = np.arange(n_past + n) <= positions[:, None]
    request = (model.tapped if tap else model.plain).create_infer_request()
    results = request.infer([tokens, positions, visible, *past], share_inputs=True)
    logits, *rest = (np.array(value) for value in results.values())
    present, tapped = rest[: len(past)], rest[len(past) :]
    for name, value in zip(model.taps if tap else [], tapped, strict=True):
        tap(name, value)
    return logits, present


def refuse_bad_tokens(tokens, n_past, hparams):
    """Gather counts negative ids from the end, so this guard is ours."""
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")
