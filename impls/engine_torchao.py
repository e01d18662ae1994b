"""torchao: the PyTorch specimen with int8 weights, as quantize_(Int8WeightOnlyConfig()) makes them.

Needs torch and torchao. Declared float32, as its arithmetic is: the weights of the linear layers have
one scale for each output, and are multiplied as they are; wte stays in float32. That is another model,
so it disagrees.
"""

import torch
import torch.nn.functional as F
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import gpt2_torch
from gpt2_torch import TAPS, forward, numpy

__all__ = ["TAPS", "forward", "load", "numpy", "targets"]


def targets():
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    model = gpt2_torch.load(params, hparams, device=device, dtype=dtype)
    weights = {name: quantised(w) if name.endswith("/w") else w for name, w in model.params.items()}
    return model._replace(params=weights, linear=linear)


def quantised(w):
    """w [n_in, n_out] as the weight [n_out, n_in] of a linear layer of torchao."""
    layer = torch.nn.Linear(*w.shape, bias=False)
    layer.weight = torch.nn.Parameter(w.T.contiguous(), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return layer.weight


def linear(x, w, b):
    """[..., n_in] -> [..., n_out]; the head, which has no bias, is not quantised."""
    return F.linear(x, w.T if b is None else w, b)
