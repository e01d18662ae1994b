"""ONNX Runtime in int8: the graph of engine_onnxruntime after quantize_dynamic().

Needs what engine_onnxruntime needs. Declared float32, as its answers are. The weight of each linear
layer has one scale, and so has its input, chosen anew in each call for all rows and tokens: rows of a
batch and later tokens change each other. That is another model, so it disagrees.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic

import engine_onnxruntime
from engine_onnxruntime import TAPS, Model, forward, numpy, targets

__all__ = ["TAPS", "forward", "load", "numpy", "targets"]


def load(params, hparams, *, device, dtype):
    nodes, taps, presents = engine_onnxruntime.graph(hparams)
    weights = [
        numpy_helper.from_array(np.asarray(w), name.replace("/", ".")) for name, w in params.items()
    ]

    def session(outputs):
        proto = engine_onnxruntime.model_proto(hparams, weights, nodes, outputs)
        with tempfile.TemporaryDirectory(prefix="parity-onnxruntime-") as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(proto, path, op_types_to_quantize=["MatMul"])
            return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    results = ["logits", *presents]
    return Model(session(results), session([*results, *taps]), taps, hparams)
