"""The truth about one case of one model, made once and mapped by every process that needs it.

What it says depends on weights, tokens and dtype only, never on the implementation under test.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.files import digest, safetensors_mmap
from gpt2_parity.files.safetensors_mmap import MappedArrays
from gpt2_parity.reference import gradient, kept, records
from gpt2_parity.reference.records import Case, Record


def record(
    case: Case, params: MappedArrays, hparams: HParams, dtype: str, folder: Path | None = None
) -> Record:
    """The record of a case, with its noise floor at one dtype. folder: as for kept.entry."""

    def make() -> dict[str, np.ndarray]:
        return dict(records.make_record(case, params, hparams, [dtype]).arrays)

    made_from = _made_from("record", params, hparams, case.tokens, dtype) | {"n_new": case.n_new}
    path = kept.entry(made_from, make, folder)
    return Record(case.name, safetensors_mmap.read(path), hparams.n_layer)


def gradients(
    params: MappedArrays, hparams: HParams, tokens: np.ndarray, dtype: str, folder: Path | None = None
) -> Iterator[tuple[str, np.ndarray, float]]:
    """What gradient.measure yields for tokens int32 [batch, n]. folder: as for kept.entry."""

    def make() -> dict[str, np.ndarray]:
        truth = gradient.measure(params, hparams, tokens, dtype, seed=0)
        arrays, units = {}, []
        for i, (name, exact, unit) in enumerate(truth):
            arrays[f"{i:05} {name}"] = exact  # numbered: the order shows where an error enters
            units.append(unit)
        return arrays | {"units": np.array(units)}

    made_from = _made_from("gradients", params, hparams, tokens, dtype)
    arrays = MappedArrays(kept.entry(made_from, make, folder))
    names = sorted(name for name in arrays if name != "units")
    for name, unit in zip(names, arrays["units"], strict=True):
        yield name.partition(" ")[2], arrays[name], float(unit)


def _made_from(
    what: str, params: MappedArrays, hparams: HParams, tokens: np.ndarray, dtype: str
) -> dict[str, Any]:
    status = params.path.stat()
    return {
        "what": what,
        "tokens": tokens.tolist(),
        "weights": _sha256(params.path, status.st_mtime_ns, status.st_size),
        "hparams": hparams._asdict(),
        "dtype": dtype,
    }


@functools.cache
def _sha256(path: Path, changed: int, size: int) -> str:
    """The hash of a file, which is read again only if it has changed."""
    return digest.sha256(path)
