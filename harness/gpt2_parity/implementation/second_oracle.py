"""The second oracle of golden records: the TensorFlow specimen in float64, or float32, on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.implementation.discovery import find
from gpt2_parity.model.checkpoint import Checkpoint


def tensorflow(loaded: Checkpoint, dtype: str) -> Callable[..., Any]:
    """(tokens int32 [batch, n], tap) -> logits [batch, n, n_vocab] on the host, at dtype.

    Raises CannotJudge if TensorFlow is not installed.
    """
    try:
        impl = find("tensorflow").load()
    except ImportError as error:
        raise CannotJudge(
            f"the second oracle needs TensorFlow; pip install tensorflow ({error})"
        ) from error
    model = impl.load(loaded.params, loaded.hparams, **Target("cpu", dtype)._asdict())

    def forward(tokens: np.ndarray, tap: Callable[[str, np.ndarray], None]) -> np.ndarray:
        logits, _ = impl.forward(model, tokens, tap=lambda name, x: tap(name, impl.numpy(x)))
        return impl.numpy(logits)

    return forward
