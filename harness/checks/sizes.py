"""A model of other sizes is computed rightly, too: no two of them are equal, and n_vocab is odd.

The model under test may have as many heads as layers (micro and 124M do), and then nothing else could
tell whether an implementation mixes them up, or has a size written down that it ought to be given.
Heads are 64 wide, as in every official model.
"""

import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from harness import golden, mapped, shapes
from harness.contract import HParams
from harness.golden import Record
from harness.subject import Key, Measurement, Plan, Subject, chunk_cuts

OTHER = HParams(n_vocab=301, n_ctx=96, n_embd=192, n_head=3, n_layer=2)
CASE = "other_sizes"
METRIC = "noise_units"


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, scope, METRIC) for scope in ("prefill", "decode")]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    params, record = truth(subject.target.dtype)
    with tempfile.TemporaryDirectory(prefix="parity-sizes-") as folder:
        weights = Path(folder, shapes.WEIGHTS)
        mapped.write(weights, params)
        other = Subject.load(subject.impl, subject.target, weights, OTHER, [record])
        units = other.units(other.logits(record), record.logits, record)
        yield Measurement(CASE, "prefill", METRIC, units)
        got = other.in_chunks(record.tokens, chunk_cuts(record.tokens.shape[1]))
        units = other.units(got, record.logits, record)
        yield Measurement(CASE, "decode", METRIC, units)


@functools.cache
def truth(dtype: str) -> tuple[Mapping[str, np.ndarray], Record]:
    """Its generated weights, and what is true of them, with the noise floor at one dtype."""
    params = shapes.generate(OTHER)
    tokens = np.random.default_rng(0).integers(0, OTHER.n_vocab, (2, 33)).astype(np.int32)
    return params, golden.record(golden.Case(CASE, tokens, 0), params, OTHER, [dtype])
