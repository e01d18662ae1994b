"""Rounding to fewer bits, independent of the package: the code under test must not plant its faults."""

import numpy as np

TF32, BFLOAT16 = 13, 16  # how many of float32's 23 bits they drop


def cut(x, bits):
    """float32 rounded to nearest, ties to even, with so many bits dropped."""
    i = np.ascontiguousarray(x, np.float32).view(np.uint32)
    i = i + np.uint32(2 ** (bits - 1) - 1) + ((i >> bits) & 1)
    return (i & np.uint32(2**32 - 2**bits)).view(np.float32)


def through_float16(x):
    """Rounded to float16 and back."""
    return x.astype(np.float16).astype(x.dtype)
