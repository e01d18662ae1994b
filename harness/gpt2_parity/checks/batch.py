"""Each row of a batch gets the same logits as alone, in any order of the rows."""

from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_parity.contract.check import Check, Implied
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded, chunk_cuts
from gpt2_parity.reference.records import Record

IN_CHUNKS = "beside_in_chunks"  # the only scope that goes through the cache
MANY = "many_rows"
ROWS = (11, 5)  # batch, n: more than a kernel processes at a time, and no multiple of it
LONG = 64  # positions; kernels process as many at a time, and shorter batches have no second block


def expected(plan: Plan) -> Iterable[Key]:
    for case in plan.cases:
        if case.batch > 1:
            yield from ((case.name, f"row{i}", "noise_units") for i in range(case.batch))
            yield (case.name, "reversed", "noise_units")
        elif case.n > LONG:
            yield from ((case.name, scope, "noise_units") for scope in ("beside", IN_CHUNKS))
    yield (plan.cases[-1].name, MANY, "noise_units")


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        together = loaded.logits(record)
        if len(together) == 1:
            if record.tokens.shape[1] > LONG:
                yield from beside_another(loaded, record)
            continue
        for i in range(len(together)):
            alone = loaded.forward(record.tokens[i : i + 1])[0]
            units = loaded.units(alone, together[i : i + 1], record)
            yield Measurement(record.name, f"row{i}", "noise_units", units)
        turned = loaded.forward(record.tokens[::-1].copy())[0]
        units = loaded.units(turned[::-1], together, record)
        yield Measurement(record.name, "reversed", "noise_units", units)
    yield many_rows(loaded, loaded.records[-1])


def many_rows(loaded: Loaded, record: Record) -> Measurement:
    """Compare many short rows, together, with each row alone, in noise units of a record."""
    batch, n = ROWS[0], min(ROWS[1], loaded.hparams.n_ctx)
    tokens = np.random.default_rng(0).integers(0, loaded.hparams.n_vocab, (batch, n)).astype(np.int32)
    together = loaded.forward(tokens)[0]
    alone = np.concatenate([loaded.forward(row[None])[0] for row in tokens])
    units = loaded.units(together, alone, record)
    return Measurement(record.name, MANY, "noise_units", units)


def beside_another(loaded: Loaded, record: Record) -> Iterator[Measurement]:
    """Compare a long row after another row with the same row alone, in prefill and in chunks."""
    both = np.concatenate([record.tokens[:, ::-1], record.tokens])
    cuts = chunk_cuts(both.shape[1])
    for scope, pieces in {"beside": [both], IN_CHUNKS: np.split(both, cuts, axis=1)}.items():
        parts, past = [], None
        for tokens in pieces:
            logits, past = loaded.forward(tokens, past)
            parts.append(logits[1:].copy())  # the logits of the other row are not kept
            del logits
        units = loaded.units(np.concatenate(parts, axis=1), loaded.logits(record), record)
        yield Measurement(record.name, scope, "noise_units", units)


CHECK = Check(
    name="batch",
    establishes="each row of a batch gets the same logits as alone, in any order and among eleven",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="kv_cache",
    blames="batch",
    precedence=50,
    look_at="operations that mix rows of the batch, and scales that are computed from all of them",
    # if rows differ only when they go through the cache, the cache is at fault
    implied_by=(Implied(("kv_cache",), scope=IN_CHUNKS), Implied(("logits",), "as large")),
)
