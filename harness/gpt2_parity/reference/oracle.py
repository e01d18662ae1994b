"""The truth: GPT-2 in float64 NumPy, one function per operation, run in the order of the graph.

The same operations serve three purposes: exact, they are the oracle; one by one, they recompute a single
operation from an implementation's own input; and under an ``Arithmetic`` of lower precision, they
measure how far honest rounding alone moves the result (the noise floor).

Source: Radford et al. 2019 and OpenAI's published model. Written independently of impls/ on purpose, and
trusted only because TensorFlow in float64 agrees with it (reference/build_golden.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams, Op, graph
from gpt2_parity.contract.interface import Tap
from gpt2_parity.reference import parallel

EPSILON = 1e-5
VOCABULARY = 2**13  # rows of wte that the head converts at a time


def exact(x: np.ndarray) -> np.ndarray:
    """x [...] in float64."""
    return np.asarray(x, np.float64)


def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x [..., n_in] @ w [n_in, n_out] + b [n_out]."""
    return x @ w + b


class Arithmetic(NamedTuple):
    """How an evaluation rounds. The default is exact: float64 throughout."""

    weight: Callable[[np.ndarray], np.ndarray] = exact  # applied to a weight before it is used
    settle: Callable[[np.ndarray], np.ndarray] = exact  # applied to each result
    matmul: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul
    affine: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = affine


EXACT = Arithmetic()


def layer_norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Zero mean and unit (biased) variance over the last axis, then scaled by g and shifted by b.

    x and the result [batch, n, n_embd]; g and b [n_embd].
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + EPSILON) * g + b


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of GELU for x [...]: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Source: Hendrycks and Gimpel 2016, as in OpenAI's src/model.py.
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def split_heads(qkv: np.ndarray, n_head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[batch, n, 3 n_embd] to q, k, v, each [batch, n_head, n, head]; head is n_embd / n_head."""
    batch, n, width = qkv.shape
    q, k, v = qkv.reshape(batch, n, 3, n_head, width // (3 * n_head)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(x: np.ndarray) -> np.ndarray:
    """[batch, n_head, n, head] to [batch, n, n_embd]."""
    batch, n_head, n, head = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, n, n_head * head)


def causal(scores: np.ndarray) -> np.ndarray:
    """scores [..., n, n] (query, key) with -inf for every key later than its query."""
    future = np.triu(np.ones(scores.shape[-2:], bool), k=1)
    return np.where(future, scores.dtype.type(-np.inf), scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax of scores [..., n_keys] over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(qkv: np.ndarray, n_head: int, arithmetic: Arithmetic = EXACT) -> np.ndarray:
    """c_attn's result [batch, n, 3 n_embd] to merged heads [batch, n, n_embd], before c_proj."""
    q, k, v = split_heads(qkv, n_head)
    scores = arithmetic.matmul(q, k.swapaxes(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
    probs = arithmetic.settle(softmax(causal(arithmetic.settle(scores))))
    return merge_heads(arithmetic.matmul(probs, v))


def head(x: np.ndarray, wte: np.ndarray, arithmetic: Arithmetic = EXACT) -> np.ndarray:
    """Logits [batch, n, n_vocab]: x [batch, n, n_embd] @ wte.T, VOCABULARY rows of wte at a time.

    wte [n_vocab, n_embd] is by far the largest weight: a converted copy would need more memory than
    everything else.
    """
    logits = np.empty((*x.shape[:-1], len(wte)), x.dtype)
    for start in range(0, len(wte), VOCABULARY):
        some = slice(start, start + VOCABULARY)
        logits[..., some] = arithmetic.matmul(x, arithmetic.weight(wte[some]).T)
    return logits


def apply(
    op: Op,
    inputs: list[np.ndarray],
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    arithmetic: Arithmetic = EXACT,
) -> np.ndarray:
    """The result [batch, n, width] of one operation from its inputs, each [batch, n, width].

    tokens int32 [batch, n] are for the embedding. Raises ValueError for an unknown kind of operation.
    """

    def weight(name: str) -> np.ndarray:
        return arithmetic.weight(params[name])

    match op.kind:
        case "embedding":  # rows are selected before they are converted: wte may be large
            value = weight_rows(params["wte"], tokens, arithmetic) + weight_rows(
                params["wpe"], np.arange(tokens.shape[1]), arithmetic
            )
        case "layer_norm":
            value = layer_norm(inputs[0], weight(f"{op.name}/g"), weight(f"{op.name}/b"))
        case "linear":
            value = arithmetic.affine(inputs[0], weight(f"{op.name}/w"), weight(f"{op.name}/b"))
        case "attention":
            value = attention(inputs[0], hparams.n_head, arithmetic)
        case "gelu":
            value = gelu(inputs[0])
        case "add":
            value = inputs[0] + inputs[1]
        case "head":
            value = head(inputs[0], params["wte"], arithmetic)
        case _:
            raise ValueError(f"unknown kind of operation {op.kind}")
    return arithmetic.settle(value)


def weight_rows(table: np.ndarray, rows: np.ndarray, arithmetic: Arithmetic) -> np.ndarray:
    """Rows [...] of an embedding table as [..., n_embd]."""
    return arithmetic.weight(table[rows])


def stream(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    arithmetics: Sequence[Arithmetic] = (EXACT,),
    apply: Callable[..., np.ndarray] = apply,
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Every operation's result under each arithmetic: (name, which, [batch, n, width]).

    tokens int32 [batch, n]; "which" is the index of the arithmetic; the last results are the logits
    [batch, n, n_vocab]. apply computes each operation; mistakes/whole_model.py replaces it. The
    evaluations run side by side, in threads, one operation at a time, and a weight is converted when it
    is used. So the memory beyond the mapped weights is one weight for each thread and the activations
    still needed.
    """
    ops = graph(hparams.n_layer)
    last_use = {name: op.name for op in ops for name in op.inputs}
    live: dict[str, list[np.ndarray]] = {}
    n_threads = parallel.allowed()
    for op in ops:
        live[op.name] = []

        def evaluate(i: int, op: Op = op) -> np.ndarray:
            inputs = [live[name][i] for name in op.inputs]
            return apply(op, inputs, params, hparams, tokens, arithmetics[i])

        for start in range(0, len(arithmetics), n_threads):  # all logits at once would fill the memory
            some = range(start, min(start + n_threads, len(arithmetics)))
            for i, value in zip(some, parallel.each(evaluate, some), strict=True):
                if op.name in last_use:
                    live[op.name].append(value)
                yield op.name, i, value
        for name in op.inputs:
            if last_use[name] == op.name:
                del live[name]


def forward(
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    tokens: np.ndarray,
    tap: Tap | None = None,
    arithmetic: Arithmetic = EXACT,
    apply: Callable[..., np.ndarray] = apply,
) -> np.ndarray:
    """Logits [batch, n, n_vocab] for tokens int32 [batch, n]; tap gets all other results."""
    for name, _, value in stream(params, hparams, tokens, [arithmetic], apply):
        if tap is not None and name != "logits":
            tap(name, value)
    return value


def greedy(
    params: Mapping[str, np.ndarray], hparams: HParams, tokens: np.ndarray, n_new: int
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy ids int32 [batch, n_new] after tokens int32 [batch, n], and margins [batch, n_new].

    A margin is the float64 logit of the best token minus that of the second best.
    """
    ids, margins = [], []
    for _ in range(n_new):
        last = forward(params, hparams, tokens)[:, -1]
        second, best = np.argsort(last, axis=-1)[:, -2:].T
        rows = np.arange(len(last))
        ids.append(best.astype(np.int32))
        margins.append(last[rows, best] - last[rows, second])
        tokens = np.concatenate([tokens, ids[-1][:, None]], axis=1)
    if not ids:
        return np.zeros((len(tokens), 0), np.int32), np.zeros((len(tokens), 0))
    return np.stack(ids, axis=1), np.stack(margins, axis=1)
