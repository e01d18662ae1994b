"""Every matrix product is computed in the declared precision, as its error shows.

The root-mean-square error of a product, given its own input, is compared with the error that the
declared precision causes. ``bits_lost`` is the base-2 logarithm of their ratio: about 0 or less if
honest, 11 to 13 for TF32 passed off as float32. The evidence names the precision that fits the error
best, and mentions products that are computed in a higher precision than declared.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import Op, graph
from gpt2_parity.contract.check import Check, OwnBlame
from gpt2_parity.contract.dtypes import DROPPED_BITS, UNIT_ROUNDOFF
from gpt2_parity.contract.limits import Limit
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.mistakes.registry import narrow
from gpt2_parity.reference import parallel, rounding

COLUMNS = 32  # output channels examined, evenly spread
ROWS = 64  # positions examined, likewise: 2048 errors give a root mean square to a few per cent
SLACK = 1.5  # bits by which an honest error may exceed the expected one


class Product(NamedTuple):
    """A part of one matrix product: x [rows, n_in] @ w [n_in, columns] + b."""

    x: np.ndarray  # [rows, n_in]
    w: np.ndarray  # [n_in, columns]
    b: np.ndarray  # [columns]
    got: np.ndarray  # the captured result [rows, columns]
    norm: float  # mean of ||x w||_2 squared


def products(plan: Plan) -> list[Op]:
    """The matrix products whose input and result are tapped."""
    known = {*plan.taps, "logits"}
    ops = graph(plan.hparams.n_layer)
    return [
        op
        for op in ops
        if op.kind in ("linear", "head") and op.name in known and known.issuperset(op.inputs)
    ]


def expected(plan: Plan) -> Iterable[Key]:
    return [(plan.cases[-1].name, op.name, "bits_lost") for op in products(plan)]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    record, dtype = loaded.records[-1], loaded.target.dtype
    run = loaded.prefill(record)
    captured = run.taps | {"logits": run.logits}
    ops = [op for op in products(plan) if op.name in captured and op.inputs[0] in captured]
    yield from parallel.each(
        lambda op: fingerprint(record.name, op, captured, loaded.params, dtype), ops
    )


def fingerprint(
    case: str,
    op: Op,
    captured: Mapping[str, np.ndarray],
    params: Mapping[str, np.ndarray],
    declared: str,
) -> Measurement:
    """bits_lost of one product, with the measured precision in the evidence.

    captured: activations and logits, [batch, n, width], by name.
    """
    product = take(op, captured, rounding.weights_at(params, declared))
    lost = bits_lost(product, declared)
    if declared in DROPPED_BITS:
        whole = take(op, captured, params)
        wider = bits_lost(whole, declared)
        if wider < lost - 1:  # the weights are kept wider than declared
            product, lost = whole, wider
    measured, dtype = name_precision(product)
    evidence: Evidence = {"measured": measured, "declared": declared}
    if dtype:
        evidence["as_coarse_as"] = dtype
    if rank(measured) < rank(declared):  # this passes, and is mentioned
        evidence["wider"] = True
    return Measurement(case, op.name, "bits_lost", lost, evidence)


def take(op: Op, captured: Mapping[str, np.ndarray], params: Mapping[str, np.ndarray]) -> Product:
    """Evenly spread rows and columns of a product, all float64; captured: [batch, n, width] by name."""
    head = op.kind == "head"
    x, got = (captured[name].reshape(-1, captured[name].shape[-1]) for name in (op.inputs[0], op.name))
    rows, columns = spread(len(x), ROWS), spread(got.shape[1], COLUMNS)
    # rows of wte are selected before it is transposed: np.take would first copy the whole transpose
    w = params["wte"][columns].T if head else np.take(params[f"{op.name}/w"], columns, axis=1)
    b = np.zeros(len(columns)) if head else params[f"{op.name}/b"][columns]
    parts = (x[rows], w, b, got[np.ix_(rows, columns)])
    x, w, b, got = (np.asarray(part, np.float64) for part in parts)
    return Product(x, w, b, got, float(np.mean((x * x) @ (w * w))))


def spread(n: int, most: int) -> np.ndarray:
    """At most ``most`` of n indices, evenly spread: int [at most most]."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(int))


def error(product: Product, cast: str | None = None) -> float:
    """RMS error of the result, given exact factors, or factors rounded to the format ``cast``."""
    x, w = product.x, product.w
    if cast:
        x, w = narrow(cast)(x), narrow(cast)(w)
    return float(np.sqrt(np.mean((product.got - (x @ w + product.b)) ** 2)))


def expectation(product: Product, dtype: str, inputs: float = 0.0) -> float:
    """RMS error expected of an honest product at dtype; inputs: unit roundoff of the factors, or 0."""
    u, a, tiny = rounding.Roundoff.of(dtype)
    result = np.mean(product.got**2) + np.mean(product.b**2)  # a sum may start from the bias
    storing = np.mean(product.got**2) * u**2 / 3
    summing = (product.norm + result) * a**2 * (1 + len(product.w) / 6)
    return float(np.sqrt(storing + summing + inputs**2 * product.norm * 2 / 3)) + tiny


def bits_lost(product: Product, dtype: str) -> float:
    """log2 of the RMS error over the expected one at dtype; NaN if the error is NaN."""
    wrong = error(product)
    return math.log2(max(wrong / expectation(product, dtype), 2.0**-60)) if wrong == wrong else math.nan


ORDER = ("float64", "float32", "TF32", "float16", "bfloat16")


def rank(name: str) -> int:
    """How coarse a precision is, as a number; an unknown one is the coarsest."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def name_precision(product: Product) -> tuple[str, str]:
    """The finest precision that explains the error of a product: in words, and as a dtype or ""."""
    wrong = error(product)
    if not math.isfinite(wrong):
        return "no precision at all (NaN or infinite)", ""
    for dtype in ("float64", "float32"):
        if wrong <= 2**SLACK * expectation(product, dtype):
            return dtype, dtype
    fits = [dtype for dtype in DROPPED_BITS if np.array_equal(narrow(dtype)(product.got), product.got)]
    for name, dtype in (("TF32", "tf32"), ("bfloat16", "bfloat16")):
        near = expectation(product, "float32") * 2**SLACK
        if dtype not in fits and error(product, dtype) <= near:
            return name, dtype
    for dtype in ("float16", "bfloat16"):
        if dtype in fits and wrong <= 2**SLACK * expectation(product, dtype):
            return dtype, dtype
    for dtype in ("float16", "bfloat16"):
        if wrong <= 2**SLACK * expectation(product, "float32", UNIT_ROUNDOFF[dtype]):
            return f"about {dtype}, in factors or sums", dtype
    return "coarser than bfloat16 factors: sums in low precision, or wrong", ""


CHECK = Check(
    name="precision",
    establishes="every matrix product is computed in the declared precision",
    expected=expected,
    measure=measure,
    limits={
        "bits_lost": Limit(
            2.0,
            "Honest products were at up to 0.6 bits; sums in bfloat16 lose 2.5, TF32 loses 11.",
        )
    },
    after="local",
    look_at="the precision of products: TF32, autocast and reduced-precision flags",
    own_blame={"bits_lost": OwnBlame()},
)
