"""NumPy on every core: several threads of Python, each with a BLAS of one.

BLAS multiplies on all cores, but what NumPy does between two products takes one of them. Where there
are many independent pieces of work, to give each thread a piece of its own keeps all cores busy.
"""

import contextvars
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

MOST = 8  # each holds a block of a weight in float64, and memory has its limit too

Item = TypeVar("Item")
Result = TypeVar("Result")


@functools.cache
def controller() -> ThreadpoolController:
    """NumPy's BLAS, looked up once: it is loaded, and what comes later is not ours to set."""
    return ThreadpoolController()


def allowed() -> int:
    """How many threads BLAS would use, as OMP_NUM_THREADS and its like have it; 1 for a BLAS unknown."""
    blas = [int(found["num_threads"]) for found in controller().info() if found["user_api"] == "blas"]
    return min(MOST, max(blas, default=1))


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """work of every item, in their order, side by side. The first exception is raised."""
    count = min(allowed(), len(items))
    if count <= 1:
        return [work(item) for item in items]
    contexts = [contextvars.copy_context() for _ in items]  # np.errstate holds in them too
    # said once for all, and in each thread: a BLAS that is built on OpenMP has a limit for each
    alone = functools.partial(controller().limit, limits=1, user_api="blas")
    with alone(), ThreadPoolExecutor(count, initializer=alone) as pool:
        return list(pool.map(lambda context, item: context.run(work, item), contexts, items))
