"""Mistakes in the activation."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from gpt2_parity.mistakes.registry import Scene, mistake, narrow, simple
from gpt2_parity.reference import oracle


def tanh_form(
    x: np.ndarray, cubic: float = 0.044715, root: float = math.sqrt(2 / math.pi)
) -> np.ndarray:
    """GELU's tanh form with other constants, of x [...]."""
    return 0.5 * x * (1 + np.tanh(root * (x + cubic * x**3)))


def logistic(x: np.ndarray) -> np.ndarray:
    """The sigmoid function of x [...]."""
    return 0.5 * (1 + np.tanh(x / 2))


def half_table(x: np.ndarray) -> np.ndarray:
    """GELU from a table that is indexed by the float16 bits of x [...] and stores float16."""
    rounded = np.asarray(x, np.float16).astype(np.float64)
    return np.asarray(oracle.gelu(rounded), np.float16).astype(np.float64)


_ERF = np.vectorize(math.erf, otypes=[float])
_GELUS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "erf_gelu": ("erf instead of tanh GELU", lambda x: 0.5 * x * (1 + _ERF(x / math.sqrt(2)))),
    "sigmoid_gelu": ("x sigmoid(1.702 x) instead of tanh GELU", lambda x: x * logistic(1.702 * x)),
    "relu": ("ReLU instead of GELU", lambda x: np.maximum(x, 0)),
    "silu": ("SiLU instead of GELU", lambda x: x * logistic(x)),
    "gelu_skipped": ("no activation at all", lambda x: x),
    "gelu_without_half": ("the factor 1/2 is missing", lambda x: 2 * oracle.gelu(x)),
    "gelu_cubic_missing": ("the cubic term is missing", lambda x: tanh_form(x, cubic=0.0)),
    "gelu_cubic_0.44715": ("0.44715 instead of 0.044715", lambda x: tanh_form(x, cubic=0.44715)),
    "gelu_cubic_0.0447": ("0.0447 instead of 0.044715", lambda x: tanh_form(x, cubic=0.0447)),
    "gelu_root_0.8": ("0.8 instead of sqrt(2/pi)", lambda x: tanh_form(x, root=0.8)),
    "gelu_root_0.7979": ("0.7979 instead of sqrt(2/pi)", lambda x: tanh_form(x, root=0.7979)),
    "gelu_float16_table": ("GELU from a table indexed by and stored in float16", half_table),
}  # fmt: skip
for _name, (_text, _gelu) in _GELUS.items():
    simple(_name, _text, "gelu", lambda s, f=_gelu: f(s.inputs[0]))  # type: ignore[misc]


@mistake("bias_after_gelu", "c_fc's bias is added after the activation, not before", "gelu")
def _(scene: Scene) -> Iterator[np.ndarray]:
    x = scene.inputs[0]
    bias = scene.weight("b", scene.op.inputs[0])
    yield scene.exact + bias  # c_fc's tap is without it
    yield oracle.gelu(x - bias) + bias


@mistake(
    "gelu_coarse_tanh",
    "the tanh in GELU has about 11 or 8 bits (a hardware instruction, or half precision)",
    "gelu",
    flips=True,
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    x, root = scene.inputs[0], math.sqrt(2 / math.pi)
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    for cast in (narrow("tf32"), narrow("float16"), narrow("bfloat16")):
        yield 0.5 * x * (1 + cast(tanh))
    half = np.asarray(x, np.float16)  # all of its argument is in float16 too
    with np.errstate(over="ignore"):
        inner = np.tanh(np.float16(root) * (half + np.float16(0.044715) * half * half * half))
    yield 0.5 * x * (1 + inner.astype(np.float64))


@mistake("gelu_cut_off", "the tails are cut off: 0 below some value, or x itself above one", "gelu")
def _(scene: Scene) -> Iterator[np.ndarray]:
    x, got, exact = scene.inputs[0], scene.got, scene.exact
    below = x[(got == 0) & (exact != 0)]
    above = x[(got == x) & (exact != x) & (x > 0)]
    low = below.max() if below.size else -math.inf
    high = above.min() if above.size else math.inf
    if below.size or above.size:
        yield np.where(x <= low, 0.0, np.where(x >= high, x, exact))
