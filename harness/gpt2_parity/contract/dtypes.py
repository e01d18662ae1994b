"""The dtypes that are judged, their unit roundoffs, and rounding to the narrower ones."""

import numpy as np

DTYPES = ("float64", "float32", "bfloat16", "float16")
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,  # float32's range with float16's digits: how tensor cores round float32 factors
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
# Bits of a float32 mantissa that the narrower dtype lacks. Its products are summed in float32.
DROPPED_BITS = {"bfloat16": 16, "float16": 13, "tf32": 13}


def round_nearest(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values [...] rounded to the nearest value of a narrower dtype, kept as float32."""
    return _drop(x, DROPPED_BITS[dtype], lambda bits, low: np.uint32(low // 2) + ((bits // low) & 1) - 1)


def round_stochastic(x: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Float32 values [...] rounded up or down at random, the nearer value likelier; kept as float32."""
    return _drop(
        x,
        DROPPED_BITS[dtype],
        lambda bits, low: rng.integers(0, low, bits.shape, dtype=np.uint32),
    )


def _drop(x: np.ndarray, n_bits: int, carry) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Add a carry to the bit pattern and clear its n_bits low bits. NaN and infinities do not change."""
    low = np.uint32(1 << n_bits)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + carry(bits, low)) & ~(low - np.uint32(1))).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(np.float32)


def weight_at(w: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 weight [...] converted to dtype; below float32 it is rounded, and kept as float32."""
    return round_nearest(w, dtype) if dtype in DROPPED_BITS else np.asarray(w, dtype)
