"""TransformerLens with weights as they are: engine_transformer_lens without its processing.

Needs what engine_transformer_lens needs.
"""

import engine_transformer_lens
from engine_transformer_lens import TAPS, forward, numpy, targets

__all__ = ["TAPS", "forward", "load", "numpy", "targets"]


def load(params, hparams, *, device, dtype):
    return engine_transformer_lens.load(params, hparams, device=device, dtype=dtype, processed=False)
