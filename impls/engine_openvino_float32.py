"""OpenVINO told to compute in float32: engine_openvino with INFERENCE_PRECISION_HINT = f32.

Needs what engine_openvino needs. Without the hint, processors that have bfloat16 compute in it.
"""

import engine_openvino
from engine_openvino import TAPS, forward, numpy, targets

__all__ = ["TAPS", "forward", "load", "numpy", "targets"]
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def load(params, hparams, *, device, dtype):
    return engine_openvino.load(params, hparams, device=device, dtype=dtype, settings=SETTINGS)
