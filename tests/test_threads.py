"""Parallel work: every core is used, and NumPy's thread limits elsewhere are unchanged."""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpt2_parity.reference import parallel

TOGETHER = 30  # seconds in which another thread must come; without one the test fails


def in_blas() -> int:
    found = parallel.controller().info()
    return max(each["num_threads"] for each in found if each["user_api"] == "blas")


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(parallel, "allowed", lambda: 2)


def test_results_come_in_order_from_several_threads(two):
    barrier = threading.Barrier(2)  # passed only by two at once

    def work(item):
        barrier.wait(TOGETHER)
        return item, threading.get_ident()

    found = parallel.each(work, range(6))
    assert [item for item, _ in found] == list(range(6))
    assert len({thread for _, thread in found}) == 2


def test_blas_takes_one_thread_meanwhile_and_its_own_number_afterwards(two):
    with threadpool_limits(2, "blas"):
        assert in_blas() == 2
        assert parallel.each(lambda _: in_blas(), range(3)) == [1, 1, 1]
        assert in_blas() == 2
        with pytest.raises(ZeroDivisionError):
            parallel.each(lambda item: 1 / item, [1, 0])
        assert in_blas() == 2


def test_each_thread_says_so_itself(two, monkeypatch):
    """A BLAS that is built on OpenMP has a limit for each thread, and the caller's is not theirs."""
    said = set()

    def limit(**how):
        assert how == {"limits": 1, "user_api": "blas"}
        said.add(threading.get_ident())
        return contextlib.nullcontext()

    monkeypatch.setattr(parallel, "controller", lambda: SimpleNamespace(limit=limit))
    worked = set(parallel.each(lambda _: threading.get_ident(), range(4)))
    assert worked <= said
    assert threading.get_ident() in said - worked


def test_as_many_threads_as_blas_is_allowed():
    with threadpool_limits(1, "blas"):
        assert parallel.allowed() == 1
        assert parallel.each(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3
    with threadpool_limits(64, "blas"):
        assert 1 < parallel.allowed() <= parallel.MOST


def test_what_the_caller_says_of_overflow_holds_in_the_threads(two):
    def squares():
        return parallel.each(lambda x: x * x, [np.full(2, 1e200)] * 3)

    with np.errstate(over="ignore"):
        assert np.isinf(squares()).all()
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        squares()


def test_products_are_what_they_are_in_one_thread(two):
    x = np.random.default_rng(0).normal(size=(8, 60, 70))
    for got, part in zip(parallel.each(lambda part: part @ part.T, list(x)), x, strict=True):
        np.testing.assert_allclose(got, part @ part.T, rtol=1e-13)
