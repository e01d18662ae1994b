"""CTranslate2 in int8: engine_ctranslate2 with int8 weights and int8 inputs of products.

Needs what engine_ctranslate2 needs. Declared float32, as its answers are: the weights have one scale for
each output, the inputs one for each token. That is another model, so it disagrees.
"""

import engine_ctranslate2
from engine_ctranslate2 import TAPS, forward, generate, numpy, targets

__all__ = ["TAPS", "forward", "generate", "load", "numpy", "targets"]


def load(params, hparams, *, device, dtype):
    return engine_ctranslate2.load(params, hparams, device=device, dtype="int8")
