"""The roofline: the least that GPT-2 must compute and move, and how fast this machine does either.

Nothing takes less time than its FLOPs at the rate of a plain matrix product, or than its bytes at the
rate of a plain read (Williams, Waterman & Patterson 2009). Both rates are measured in the same run as
the times that are compared with them.
"""

import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams, variable_shapes
from gpt2_parity.run import cores

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
REPEATS = 3  # runs of each kernel; the fastest is the machine's limit
LEAST, MOST = 2**22, 2**29  # bytes of a read: as many as the weights have, within these


class Rates(NamedTuple):
    """The rates of the machine. gemm is None where there is no plain product in that dtype."""

    bandwidth: float  # bytes read per second
    gemm: float | None  # FLOP per second of a matrix product

    def between(self, later: "Rates") -> "Rates":
        """The rates to expect between two measurements: the mean of both."""
        gemm = (self.gemm + later.gemm) / 2 if self.gemm and later.gemm else None
        return Rates((self.bandwidth + later.bandwidth) / 2, gemm)


def flops(hparams: HParams, n: int, n_past: int = 0, batch: int = 1) -> float:
    """FLOPs for the logits of n new tokens after n_past: 2 for each weight and token, and attention.

    Attention takes two products of n_embd with every visible key: 4 n_embd FLOPs for each key and layer.
    """
    keys = n * n_past + n * (n + 1) / 2
    return batch * (2.0 * n * _in_products(hparams) + 4.0 * hparams.n_embd * hparams.n_layer * keys)


def bytes_moved(hparams: HParams, n: int, n_past: int, batch: int, itemsize: int) -> float:
    """The least bytes to move: all weights, the keys and values of all positions, the logits."""
    cache = batch * (n_past + n) * 2 * hparams.n_layer * hparams.n_embd
    return float(itemsize * (weights(hparams) + cache + batch * n * hparams.n_vocab))


def weights(hparams: HParams) -> int:
    """Number of weights that any forward pass reads: all but wpe, of which it reads some rows."""
    return sum(math.prod(s) for name, s in variable_shapes(hparams).items() if name != "wpe")


def parameters(hparams: HParams) -> int:
    """Number of all weights: 124 million and so on."""
    return sum(math.prod(shape) for shape in variable_shapes(hparams).values())


def _in_products(hparams: HParams) -> int:
    """Number of weights that are factors of a matrix product."""
    shapes = variable_shapes(hparams)
    return sum(math.prod(s) for name, s in shapes.items() if name == "wte" or name.endswith("/w"))


def seconds(
    hparams: HParams, rates: Rates, n: int, n_past: int, batch: int, itemsize: int
) -> float | None:
    """The least seconds for n new tokens in one pass, or None where the deciding rate is not known."""
    moving = bytes_moved(hparams, n, n_past, batch, itemsize) / rates.bandwidth
    if rates.gemm is None:
        return moving if n * batch == 1 else None
    return max(moving, flops(hparams, n, n_past, batch) / rates.gemm)


# -- measured


def rates(device: str, dtype: str, hparams: HParams) -> Rates:
    """Measure the rates of this machine: the fastest of a few kernels, each run a few times."""
    n_bytes = min(max(weights(hparams) * ITEMSIZE[dtype], LEAST), MOST)
    if device == "cuda":
        return _cuda_rates(dtype, n_bytes, hparams.n_embd)
    reads, products = _cpu_kernels(dtype, n_bytes, hparams.n_embd)
    bandwidth = max(n_bytes / _fastest(read) for read in reads)
    return Rates(bandwidth, max((flop / _fastest(run) for run, flop in products), default=None))


def _fastest(kernel: Callable[[], Any]) -> float:
    """Seconds of the fastest run of a kernel."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - start)
    return min(times)


Kernels = tuple[list[Callable[[], Any]], list[tuple[Callable[[], Any], float]]]


@functools.cache  # keeps the buffers: touching new pages would be timed otherwise
def _cpu_kernels(dtype: str, n_bytes: int, n_embd: int) -> Kernels:
    """Functions that read n_bytes, and products with their FLOPs (none in a dtype that NumPy lacks)."""
    kind = np.dtype(dtype) if dtype in ("float32", "float64") else np.dtype(np.float32)
    buffer = np.ones(n_bytes // kind.itemsize, kind)
    table = buffer[: buffer.size // n_embd * n_embd].reshape(-1, n_embd)
    x, y = np.ones(n_embd, kind), np.ones(len(table), kind)
    threads = len(cores.available())
    pool, parts = ThreadPoolExecutor(threads), np.array_split(buffer, threads)
    reads: list[Callable[[], Any]] = [
        lambda: table @ x,  # BLAS threads read a row each
        lambda: y @ table,  # and a column each
        lambda: list(pool.map(np.max, parts)),
    ]
    if kind.name != dtype:
        return reads, []
    tall, wide = np.ones((1024, n_embd), kind), np.ones((n_embd, 4 * n_embd), kind)
    square = np.ones((1024, 1024), kind)
    products = [
        (lambda: tall @ wide, 2.0 * 1024 * n_embd * 4 * n_embd),  # mlp/c_fc of a prefill
        (lambda: square @ square, 2.0 * 1024**3),
    ]
    return reads, products


def _cuda_rates(dtype: str, n_bytes: int, n_embd: int) -> Rates:
    """Rates of a GPU, measured with torch whatever is timed: all frameworks use the same cuBLAS."""
    import torch

    torch.set_float32_matmul_precision("highest")  # TF32 is not float32
    kind = getattr(torch, dtype)
    buffer = torch.ones(max(n_bytes, 2**30) // ITEMSIZE[dtype], dtype=kind, device="cuda")
    square = torch.ones(8192, 8192, dtype=kind, device="cuda")

    def waited(kernel: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            kernel()
            torch.cuda.synchronize()

        return run

    read = _fastest(waited(lambda: torch.max(buffer)))
    product = _fastest(waited(lambda: square @ square))
    return Rates(buffer.numel() * ITEMSIZE[dtype] / read, 2.0 * 8192**3 / product)
