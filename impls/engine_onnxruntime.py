"""ONNX Runtime: the model as an ONNX graph of standard operators, opset 24; every tap is an output.

Needs onnx, onnxruntime and NumPy. The graph is built here (LayerNormalization, MatMul, Attention with
its cache, Gelu); ONNX Runtime decides how to fuse and compute the operators. Two sessions share the
weights: one returns only the logits, as users run it; the other also returns the taps, which prevents
some operators from being fused.
"""

from typing import NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

TAPS = "all"  # every tap of the contract is promised
OPSET = 24
IR_VERSION = 10
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Model(NamedTuple):
    plain: onnxruntime.InferenceSession
    tapped: onnxruntime.InferenceSession
    taps: list  # names, in the order of the tapped session's outputs
    hparams: object


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    weights = {name.replace("/", "."): np.asarray(w) for name, w in params.items()}
    nodes, taps, presents = graph(hparams)
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(w) for name, w in weights.items()}

    def session(outputs):
        options = onnxruntime.SessionOptions()
        options.add_external_initializers(list(held), list(held.values()))
        # weights are declared but passed separately: protobuf has a size limit
        proto = model_proto(hparams, [declared(*each) for each in weights.items()], nodes, outputs)
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    results = ["logits", *presents]
    return Model(session(results), session([*results, *taps]), taps, hparams)


def graph(hparams):
    """The nodes, the names of the taps, and the names of the cache's outputs."""
    nodes, taps = [], []

    def node(kind, inputs, output, tap=False, **attributes):
        outputs = [output] if isinstance(output, str) else output
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        if tap:
            taps.append(outputs[0])
        return outputs[0]

    def norm(x, name):
        weights = [f"{name}.g".replace("/", "."), f"{name}.b".replace("/", ".")]
        return node("LayerNormalization", [x, *weights], name, tap=True, axis=-1, epsilon=1e-5)

    def linear(x, name):
        w, b = f"{name}.w".replace("/", "."), f"{name}.b".replace("/", ".")
        return node("Add", [node("MatMul", [x, w], f"{name}/product"), b], name, tap=True)

    def add(a, b, name):
        return node("Add", [a, b], name, tap=True)

    tokens = node("Gather", ["wte", "tokens"], "token_rows")  # [batch, n, n_embd]
    x = add(tokens, node("Gather", ["wpe", "positions"], "position_rows"), "embed")
    for i in range(hparams.n_layer):
        h = f"h{i}"
        q, k, v, present_k, present_v = (
            f"{h}/{name}" for name in ("q", "k", "v", "present_k", "present_v")
        )
        qkv = linear(norm(x, f"{h}/ln_1"), f"{h}/attn/c_attn")
        node("Split", [qkv], [q, k, v], axis=-1, num_outputs=3)
        # our own mask, not is_causal: [n, n_past + n], true where a query may see a key
        node(
            "Attention",
            [q, k, v, "visible", f"{h}/past_k", f"{h}/past_v"],
            [f"{h}/attn/heads", present_k, present_v],
            tap=True,
            q_num_heads=hparams.n_head,
            kv_num_heads=hparams.n_head,
        )
        x = add(x, linear(f"{h}/attn/heads", f"{h}/attn/c_proj"), f"{h}/resid_mid")
        hidden = linear(norm(x, f"{h}/ln_2"), f"{h}/mlp/c_fc")
        hidden = node("Gelu", [hidden], f"{h}/mlp/gelu", tap=True, approximate="tanh")
        x = add(x, linear(hidden, f"{h}/mlp/c_proj"), h)
    x = norm(x, "ln_f")
    node("MatMul", [x, node("Transpose", ["wte"], "head", perm=[1, 0])], "logits")
    return nodes, taps, [f"h{i}/present_{leaf}" for i in range(hparams.n_layer) for leaf in "kv"]


def model_proto(hparams, weights, nodes, outputs):
    """The model of these nodes and outputs; weights are TensorProtos."""
    cache = (None, hparams.n_head, None, hparams.n_embd // hparams.n_head)
    inputs = [
        helper.make_tensor_value_info("tokens", INT64, ["batch", "n"]),
        helper.make_tensor_value_info("positions", INT64, ["n"]),
        helper.make_tensor_value_info("visible", TensorProto.BOOL, ["n", "n_keys"]),
        *(
            helper.make_tensor_value_info(f"h{i}/past_{leaf}", FLOAT, cache)
            for i in range(hparams.n_layer)
            for leaf in "kv"
        ),
    ]
    results = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    return helper.make_model(
        helper.make_graph(nodes, "gpt2", inputs, results, initializer=weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def declared(name, w):
    """A weight's name, type and shape; the session receives its values in memory."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=w.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="in memory")
    return tensor


def numpy(x):
    return np.asarray(x)


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
    feed = {
        "tokens": tokens.astype(np.int64),
        "positions": np.arange(n_past, n_past + n),
        "visible": np.arange(n_past + n) <= np.arange(n_past, n_past + n)[:, None],
    }
    feed |= {f"h{i // 2}/past_{'kv'[i % 2]}": value for i, value in enumerate(past)}
    logits, *rest = (model.tapped if tap else model.plain).run(None, feed)
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
