"""The gradient of the loss in float64: one function per operation, in reverse order of the graph.

The loss is the mean cross entropy (nats) of every token except the first of each row, given the tokens
before it. As in reference/oracle.py, the same operations are evaluated exactly, and under an
``Arithmetic`` of lower precision to measure how far honest rounding alone moves each gradient.

"slope" is the gradient of the loss by the result of an operation, in the shape of that result.

Derived by hand, independently of every framework. TensorFlow's automatic differentiation in float64
agrees with it (tests/test_gradient.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, Op, graph
from gpt2_parity.reference import noise, oracle
from gpt2_parity.reference.distance import log_softmax, max_abs
from gpt2_parity.reference.oracle import EXACT, Arithmetic

Gradients = dict[str, np.ndarray]  # by checkpoint name
TINY = np.finfo(np.float64).tiny  # the smallest unit: a gradient may be zero throughout


def loss_and_slope(logits: np.ndarray, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss (nats) of tokens int32 [batch, n], and its gradient by the logits [batch, n, n_vocab].

    The token that the last position predicts is not known, so the gradient there is zero.
    """
    log_probs = log_softmax(logits[:, :-1])
    at = (*np.indices(tokens[:, 1:].shape), tokens[:, 1:])  # the logit of each token to predict
    n_predicted = tokens[:, 1:].size
    slope = np.zeros_like(logits)
    slope[:, :-1] = np.exp(log_probs)
    slope[at] -= 1
    slope /= n_predicted
    return -float(log_probs[at].sum()) / n_predicted, slope


def over_rows(x: np.ndarray) -> np.ndarray:
    """The sum of x [batch, n, width] over batch and n: [width]."""
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


def layer_norm(x: np.ndarray, g: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, Gradients]:
    """The gradients by x and by g and b. x and slope [batch, n, n_embd]; g and b [n_embd]."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + oracle.EPSILON)
    unit = centred / deviation
    inner = slope * g
    inner -= inner.mean(axis=-1, keepdims=True) + unit * np.mean(inner * unit, axis=-1, keepdims=True)
    return inner / deviation, {"g": over_rows(slope * unit), "b": over_rows(slope)}


def linear(
    x: np.ndarray, w: np.ndarray, slope: np.ndarray, arithmetic: Arithmetic
) -> tuple[np.ndarray, Gradients]:
    """The gradients by x [batch, n, n_in], w [n_in, n_out] and b [n_out]; slope [batch, n, n_out]."""
    rows, slopes = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return arithmetic.matmul(slope, w.T), {"w": arithmetic.matmul(rows.T, slopes), "b": over_rows(slope)}


def attention(
    qkv: np.ndarray, n_head: int, slope: np.ndarray, arithmetic: Arithmetic = EXACT
) -> np.ndarray:
    """The gradient by qkv [batch, n, 3 n_embd]; slope [batch, n, n_embd], by the merged heads.

    As in fused kernels (Dao 2023, FlashAttention-2), the backward pass recomputes the probabilities,
    and takes the sum that the softmax's gradient subtracts in each row from the result of the forward
    pass. Where nearly all attention is on one key, the rounding errors of the two do not cancel, as they
    would with stored probabilities. An honest kernel may show this noise, so it belongs to the unit.
    """
    q, k, v = oracle.split_heads(qkv, n_head)
    batch, n, width = slope.shape
    slope = slope.reshape(batch, n, n_head, width // n_head).transpose(0, 2, 1, 3)
    scale = 1 / math.sqrt(q.shape[-1])

    def probabilities() -> np.ndarray:
        scores = arithmetic.settle(arithmetic.matmul(q, k.swapaxes(-1, -2)) * scale)
        return arithmetic.settle(oracle.softmax(oracle.causal(scores)))

    heads = arithmetic.settle(arithmetic.matmul(probabilities(), v))
    probs = probabilities()
    by_probs = arithmetic.settle(arithmetic.matmul(slope, v.swapaxes(-1, -2)))
    by_scores = probs * (by_probs - np.sum(slope * heads, axis=-1, keepdims=True))
    by_scores = arithmetic.settle(by_scores)
    parts = (
        arithmetic.matmul(by_scores, k) * scale,
        arithmetic.matmul(by_scores.swapaxes(-1, -2), q) * scale,
        arithmetic.matmul(probs.swapaxes(-1, -2), slope),
    )
    return np.concatenate([oracle.merge_heads(part) for part in parts], axis=-1)


def gelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The gradient by x, both [batch, n, width].

    GELU is x / 2 (1 + tanh z), z = sqrt(2 / pi) (x + 0.044715 x^3).
    """
    root = math.sqrt(2 / math.pi)
    tanh = np.tanh(root * (x + 0.044715 * x * x * x))
    inner = root * (1 + 3 * 0.044715 * x * x)
    return slope * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner)


def pull(
    op: Op,
    inputs: list[np.ndarray],
    slope: np.ndarray,
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    arithmetic: Arithmetic,
) -> tuple[list[np.ndarray], Gradients]:
    """The gradients by an operation's inputs, each [batch, n, width], and by its weights.

    Raises ValueError for an unknown kind of operation.
    """

    def weight(name: str) -> np.ndarray:
        return arithmetic.weight(params[name])

    by_inputs: list[np.ndarray] = [slope] * len(inputs)
    by_weights: Gradients = {}
    match op.kind:
        case "layer_norm":
            by_inputs[0], by_weights = layer_norm(inputs[0], weight(f"{op.name}/g"), slope)
        case "linear":
            w = weight(f"{op.name}/w")
            by_inputs[0], by_weights = linear(inputs[0], w, slope, arithmetic)
        case "attention":
            by_inputs = [attention(inputs[0], hparams.n_head, slope, arithmetic)]
        case "gelu":
            by_inputs = [gelu(inputs[0], slope)]
        case "head":
            by_inputs = [arithmetic.matmul(slope, weight("wte"))]
        case "add":
            pass
        case _:
            raise ValueError(f"unknown kind of operation {op.kind}")
    settled = {f"{op.name}/{leaf}": arithmetic.settle(value) for leaf, value in by_weights.items()}
    return [arithmetic.settle(value) for value in by_inputs], settled


def backward(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    arithmetic: Arithmetic = EXACT,
) -> Iterator[tuple[str, np.ndarray]]:
    """The loss [] in nats, then each gradient by checkpoint name, from the last layer to the first.

    Each gradient has the shape of its weight, w as [n_in, n_out]. wpe and wte come last: wte is used at
    both ends. tokens int32 [batch, n], n at least 2.
    """
    values = {name: value for name, _, value in oracle.stream(params, hparams, tokens, [arithmetic])}
    loss, by_logits = loss_and_slope(values["logits"], tokens)
    yield "loss", np.asarray(loss)
    ops = graph(hparams.n_layer)
    slopes = {"logits": arithmetic.settle(by_logits)}
    for op in reversed(ops[1:]):
        inputs = [values[name] for name in op.inputs]
        by_inputs, by_weights = pull(op, inputs, slopes[op.name], params, hparams, arithmetic)
        for name, slope in zip(op.inputs, by_inputs, strict=True):  # summed over all uses of a result
            slopes[name] = arithmetic.settle(slopes[name] + slope) if name in slopes else slope
        yield from by_weights.items()
    yield from _ends(hparams, tokens, values["ln_f"], slopes, arithmetic)


def _ends(
    hparams: HParams,
    tokens: np.ndarray,
    x: np.ndarray,
    slopes: Mapping[str, np.ndarray],
    arithmetic: Arithmetic,
) -> Iterator[tuple[str, np.ndarray]]:
    """Gradients of the two embeddings; x [batch, n, n_embd] is what the head read."""
    by_embed, by_logits = slopes["embed"], slopes["logits"]
    wpe = np.zeros((hparams.n_ctx, hparams.n_embd), by_embed.dtype)
    wpe[: tokens.shape[1]] = by_embed.sum(axis=0)
    yield "wpe", arithmetic.settle(wpe)
    rows, by_rows = x.reshape(-1, x.shape[-1]), by_logits.reshape(-1, hparams.n_vocab)
    wte = arithmetic.matmul(by_rows.T, rows)  # [n_vocab, n_embd]: its gradient as the head
    np.add.at(wte, tokens, by_embed)  # plus its gradient as the embedding
    yield "wte", arithmetic.settle(wte)


def stepwise(settle: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """settle of y [...], then float16's fixed steps near zero (its subnormals); kept as float32."""
    return lambda y: settle(y).astype(np.float16).astype(np.float32)


def measure(
    params: Mapping[str, np.ndarray], hparams: HParams, tokens: np.ndarray, dtype: str, seed: int
) -> Iterator[tuple[str, np.ndarray, float]]:
    """The loss and every gradient with its noise unit at dtype: (name, float64 truth, unit).

    tokens int32 [batch, n]. A unit is the median over noise.draws of the greatest difference, and at
    least one rounding of the greatest value. The draws run side by side; none is kept.
    """
    arithmetics = noise.draws(dtype, seed)
    if dtype == "float16":  # without loss scaling, gradients below its smallest step are lost
        arithmetics = [each._replace(settle=stepwise(each.settle)) for each in arithmetics]
    draws = [backward(params, hparams, tokens, each) for each in arithmetics]
    for name, exact in backward(params, hparams, tokens):
        strays = [max_abs(next(draw)[1], exact) for draw in draws]
        least = dtypes.UNIT_ROUNDOFF[dtype] * float(np.abs(exact).max())
        yield name, exact, max(float(np.median(strays)), least, TINY)
