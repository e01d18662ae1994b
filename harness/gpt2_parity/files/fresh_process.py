"""One function call in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from gpt2_parity.contract.interface import CannotJudge

Given = ParamSpec("Given")
Result = TypeVar("Result")


def call(
    died: str, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """The result of a function, called in a new process, whose memory and settings end with it.

    The function and what it is given must be picklable. Raises what it raises, and CannotJudge with the
    text died where the process ends without a result.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise CannotJudge(died) from error
