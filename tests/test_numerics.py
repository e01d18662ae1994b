"""Comparisons: nothing is never agreement, and NaN is never lost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_parity.contract import dtypes
from gpt2_parity.reference import distance

MEASURES = [distance.max_abs, distance.rms, distance.differing]


@pytest.mark.parametrize("measure", [*MEASURES, distance.kl_divergence])
def test_empty_and_differently_shaped_are_refused(measure):
    with pytest.raises(ValueError, match="nothing to compare"):
        measure(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="shapes differ"):
        measure(np.zeros((2, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_single_nan_shows(measure):
    a = np.ones((3, 4))
    a[1, 2] = np.nan
    assert math.isnan(measure(a, np.ones((3, 4)))) or measure(a, np.ones((3, 4))) > 0
    assert math.isnan(measure(a, a)) or measure(a, a) > 0


@pytest.mark.parametrize("at", [0, distance.PART - 1, distance.PART, 2 * distance.PART + 2])
def test_a_single_difference_shows_in_whichever_part_it_is(at):
    want = np.zeros(2 * distance.PART + 3)
    got = want.copy()
    got[at] = -3
    assert distance.max_abs(got, want) == 3
    assert distance.rms(got, want) == pytest.approx(3 / math.sqrt(len(want)))
    got[at] = np.nan
    assert math.isnan(distance.max_abs(got, want))
    assert math.isnan(distance.rms(got, want))


def test_kl_of_nan_is_nan():
    a = np.zeros((1, 1, 4))
    a[..., 0] = np.nan
    assert math.isnan(distance.kl_divergence(a, np.zeros((1, 1, 4))))


@given(st.floats(1e-15, 1e-2), st.integers(0, 1000))
def test_kl_keeps_its_digits_when_tiny(size, seed):
    """For small differences KL is half the variance of the difference under p."""
    rng = np.random.default_rng(seed)
    want, step = rng.normal(0, 3, (1, 1, 50)), rng.normal(0, size, (1, 1, 50))
    p = np.exp(distance.log_softmax(want))
    variance = (p * step**2).sum() - (p * step).sum() ** 2
    scale = max(1e-300, variance / 2)
    # the step itself is rounded where it is added to logits of size 3
    assert distance.kl_divergence(want + step, want) == pytest.approx(scale, rel=0.05 + 1e-14 / size)


def test_kl_by_the_book():
    want, got = np.log([[[0.5, 0.5]]]), np.log([[[0.9, 0.1]]])
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert distance.kl_divergence(got, want) == pytest.approx(by_hand)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@given(x=st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3))
def test_rounding_to_narrow_types(dtype, x):
    import ml_dtypes

    real = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    nearest = float(np.array(x, np.float32).astype(real))
    assert float(dtypes.round_nearest(np.array([x], np.float32), dtype)[0]) == nearest
    drawn = float(dtypes.round_stochastic(np.array([x], np.float32), dtype, np.random.default_rng(0))[0])
    assert abs(drawn - x) <= 2 * dtypes.UNIT_ROUNDOFF[dtype] * abs(x)
    assert float(np.array(drawn).astype(real)) == drawn
