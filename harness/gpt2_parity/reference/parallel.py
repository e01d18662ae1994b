"""NumPy on every core: several Python threads, each with a single-threaded BLAS.

BLAS multiplies on all cores, but NumPy's other work uses only one. With many independent pieces of work,
a thread for each piece keeps all cores busy.
"""

import contextvars
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

MOST = 8  # threads; each holds a block of a weight in float64, so memory limits them

Item = TypeVar("Item")
Result = TypeVar("Result")


@functools.cache
def controller() -> ThreadpoolController:
    """NumPy's BLAS, looked up once. Libraries loaded later are not ours to limit."""
    return ThreadpoolController()


def allowed() -> int:
    """The number of threads that BLAS would use (OMP_NUM_THREADS), at most MOST; 1 if unknown."""
    blas = [int(each["num_threads"]) for each in controller().info() if each["user_api"] == "blas"]
    return min(MOST, max(blas, default=1))


def alone() -> Any:
    """A context in which BLAS uses one thread; as a function, from when it is called."""
    return controller().limit(limits=1, user_api="blas")


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of work(item), in the order of the items, computed in parallel threads.

    Raises the first exception of an item.
    """
    count = min(allowed(), len(items))
    if count <= 1:
        return [work(item) for item in items]
    contexts = [contextvars.copy_context() for _ in items]  # so that np.errstate applies in the threads
    # set here and in each thread: a BLAS that is built on OpenMP has a limit per thread
    with alone(), ThreadPoolExecutor(count, initializer=alone) as pool:
        return list(pool.map(lambda context, item: context.run(work, item), contexts, items))
