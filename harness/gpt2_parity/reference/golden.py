"""The golden records: the right results for a checkpoint, and how they are stored.

A record belongs to one case (a batch of tokens) and holds, as safetensors:

    tokens              int32   [batch, n]
    positions           int32   [kept]          positions at which taps are kept
    taps/{name}         float64 [batch, kept, width]
    logits              float64 [batch, n, n_vocab]
    logits_tensorflow   float32 [batch, n, n_vocab]   (stored records only)
    greedy, margins     int32, float64 [batch, n_new]
    noise/{dtype}/...   see reference/noise.py

reference/build_golden.py makes them, and writes a manifest only if independent oracles agree. Records
without a manifest are not used.
"""

import re
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, tap_names, tap_width
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest, safetensors_mmap, strict_json
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.reference import noise
from gpt2_parity.reference.records import FRESH, KEPT, Record

FORMAT = 1
SEAL = "manifest.json.sha256"
# The name of a case becomes a file name, so it must not contain a path.
CaseName = Annotated[str, msgspec.Meta(pattern=rf"\A(?!{FRESH}\Z)[a-z0-9_]{{1,40}}\Z")]


class CaseEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The entry of one case in the manifest. Noise units are those of the dtype compared."""

    agreement_noise_units: float  # greatest distance between the two float64 oracles
    agreement_worst_at: str
    agreement_logits_max_abs: float
    official_noise_units: float | None = None  # distance of OpenAI's own code
    official_logits_max_abs: float | None = None
    greedy_text: list[str] = []
    sha256: str  # of the record


class Manifest(msgspec.Struct, kw_only=True):
    """manifest.json: what the records were made from, and how closely the oracles agree."""

    format: int
    model: str
    hparams: dict[str, int]
    checkpoint_sha256: dict[str, str]
    oracles: list[str]
    versions: dict[str, str]
    storage: str
    kept_positions: int
    cases: Annotated[dict[CaseName, CaseEntry], msgspec.Meta(min_length=1)]


def seal(manifest: Path) -> str:
    """The manifest's own SHA-256, in the format of sha256sum."""
    return f"{digest.sha256(manifest)}  {manifest.name}\n"


def read_manifest(model: Model) -> Manifest:
    """The manifest. Raises CannotJudge, naming the remedy, if it is missing or malformed."""
    path = model.records / "manifest.json"
    remedy = f"make it with: parity golden build --model {model.argument}"
    try:
        document = strict_json.read(path)
    except OSError as error:
        changed = _of_other_weights(model.records)
        raise CannotJudge(f"{path}: no golden record ({error.strerror}{changed}); {remedy}") from error
    except ValueError as error:
        raise CannotJudge(f"{path}: not JSON ({error}); {remedy}") from error
    sealed = path.with_name(SEAL)
    if not sealed.is_file() or sealed.read_bytes() != seal(path).encode():
        raise CannotJudge(
            f"{path}: SHA-256 is not what {sealed.name} beside it says; restore it, or {remedy}"
        )
    try:
        manifest = strict_json.convert(document, Manifest)
        if manifest.format != FORMAT:
            raise ValueError(f"its format is {manifest.format}")
        if manifest.checkpoint_sha256.keys() != set(checkpoint.files(model.checkpoint)):
            raise ValueError("it does not give the SHA-256 of every checkpoint file")
    except ValueError as error:
        raise CannotJudge(
            f"{path}: not a golden manifest of format {FORMAT} ({error}); {remedy}"
        ) from error
    return manifest


def _of_other_weights(records: Path) -> str:
    """A hint if there are records of a folder of the same name with other weights; else ""."""
    if not (named := re.fullmatch("(.+)-[0-9a-f]{12}", records.name)):
        return ""
    like = re.compile(re.escape(named[1]) + "-[0-9a-f]{12}")
    others = sorted(path.name for path in records.parent.glob("*") if like.fullmatch(path.name))
    return (
        f"; records of other weights: {', '.join(others)}; have the weights changed?" if others else ""
    )


def read(model: Model) -> tuple[checkpoint.Checkpoint, list[Record]]:
    """The checkpoint and its records; the SHA-256 of every file is compared with the manifest.

    Raises CannotJudge, naming the file, if one is missing, stale or changed.
    """
    manifest = read_manifest(model)
    loaded = checkpoint.load(model.checkpoint, manifest.checkpoint_sha256)
    records = []
    for name, entry in manifest.cases.items():
        path = model.records / f"{name}.safetensors"
        if digest.sha256(path) != entry.sha256:
            raise CannotJudge(
                f"{path}: SHA-256 is not what manifest.json says; "
                f"restore it or remake it with: parity golden build --model {model.argument}"
            )
        stored = Record(name, safetensors_mmap.read(path), loaded.hparams.n_layer)
        check(stored, loaded.hparams, path)
        records.append(stored)
    return loaded, records


def check(stored: Record, hparams: HParams, path: Path) -> None:
    """Raise CannotJudge, naming file and array, unless a record has the arrays that build writes."""
    tokens, greedy = stored.arrays.get("tokens"), stored.arrays.get("greedy")
    if tokens is None or tokens.ndim != 2 or greedy is None or greedy.ndim != 2:
        raise CannotJudge(f"{path}: tokens or greedy is missing or not [batch, n]")
    needed = _form(hparams, tokens.shape, greedy.shape[1])
    if lacking := sorted(needed.keys() - stored.arrays.keys()):
        raise CannotJudge(f"{path}: the record lacks {', '.join(lacking)}")
    if unknown := sorted(stored.arrays.keys() - needed.keys()):
        raise CannotJudge(f"{path}: the record has unknown {', '.join(unknown)}")
    for name, (dtype, shape, below) in needed.items():
        array = stored.arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise CannotJudge(f"{path}: {name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
        inside = np.isfinite(array) if not below else (array >= 0) & (array < below)
        if not inside.all() or (name.startswith("noise/") and not array.all()):
            raise CannotJudge(f"{path}: {name} has values that are NaN, infinite or out of range")
    if tokens.size == 0 or not tokens.shape[1] + greedy.shape[1] <= hparams.n_ctx:
        raise CannotJudge(f"{path}: no tokens, or more than n_ctx {hparams.n_ctx} with the greedy ones")


def _form(
    hparams: HParams, shape: tuple[int, ...], n_new: int
) -> dict[str, tuple[str, tuple[int, ...], float]]:
    """Dtype, shape and bound of every array of a record. shape: [batch, n] of its tokens.

    Values lie from 0 to below the bound; with a bound of 0, any finite value is valid.
    """
    batch, n = shape
    names, kept = tap_names(hparams.n_layer), min(n, KEPT)
    wide = (batch, n, hparams.n_vocab)
    form: dict[str, tuple[str, tuple[int, ...], float]] = {
        "tokens": ("int32", (batch, n), hparams.n_vocab),
        "positions": ("int32", (kept,), n),
        "logits": ("float64", wide, 0),
        "logits_tensorflow": ("float32", wide, 0),
        "greedy": ("int32", (batch, n_new), hparams.n_vocab),
        "margins": ("float64", (batch, n_new), np.inf),
    }
    for name in names:
        form[f"taps/{name}"] = ("float64", (batch, kept, tap_width(name, hparams)), 0)
    for dtype in dtypes.DTYPES:
        form[f"noise/{dtype}/taps"] = ("float64", (noise.DRAWS, len(names)), np.inf)
        form[f"noise/{dtype}/logits"] = ("float64", (noise.DRAWS, 3), np.inf)
    return form
