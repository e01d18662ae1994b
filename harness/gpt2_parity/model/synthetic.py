"""Models of any size with generated weights, to test scale, speed and correctness. They write no text.

The weights are random, with the magnitudes of trained ones, so that attention is not uniform, biases and
gains matter, and a mistake in any operation shows. Models of the same sizes have the same weights.
"""

import json
import math
from pathlib import Path

import numpy as np

from gpt2_parity.contract.architecture import HParams, variable_shapes
from gpt2_parity.files import atomic, safetensors_mmap

OFFICIAL = {  # the published sizes
    "124M": HParams(50257, 1024, 768, 12, 12),
    "355M": HParams(50257, 1024, 1024, 16, 24),
    "774M": HParams(50257, 1024, 1280, 20, 36),
    "1558M": HParams(50257, 1024, 1600, 25, 48),
}
WEIGHTS = "weights.safetensors"
FILES = ("hparams.json", WEIGHTS)


def generate(hparams: HParams, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights by checkpoint name, each w [n_in, n_out]."""
    params = {}
    for i, (name, stored) in enumerate(variable_shapes(hparams).items()):
        shape = stored[1:] if name.endswith("/w") else stored
        rng = np.random.default_rng([seed, i])
        value = rng.standard_normal(shape, np.float32)
        value *= np.float32(_spread(name, shape))
        params[name] = value + np.float32(1) if name.endswith("/g") else value
    return params


def _spread(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation of the elements of a weight."""
    if name in ("wte", "wpe"):
        return {"wte": 0.14, "wpe": 0.05}[name]
    if name.endswith("/w"):
        return (2 if "c_attn" in name else 1) / math.sqrt(shape[0])
    return 0.1


def ensure(directory: Path, hparams: HParams) -> None:
    """Write the model's two files unless both exist."""
    if all((directory / name).is_file() for name in FILES):
        return
    safetensors_mmap.write(directory / WEIGHTS, generate(hparams))
    atomic.write_text(directory / "hparams.json", json.dumps(hparams._asdict()))
