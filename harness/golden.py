"""The golden records: what is true of a checkpoint, and how it is kept.

A record belongs to one case (a batch of tokens) and holds, as safetensors:

    tokens              int32   [batch, n]
    positions           int32   [kept]          positions at which taps are kept
    taps/{name}         float64 [batch, kept, width]
    logits              float64 [batch, n, n_vocab]
    logits_tensorflow   float32 [batch, n, n_vocab]   (stored records only)
    greedy, margins     int32, float64 [batch, n_new]
    noise/{dtype}/...   see noise.py

prove.py makes them, and writes a manifest only where independent oracles agree; without a manifest
there is no golden.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import checkpoint, mapped, noise, oracle, strict_json
from harness.contract import CannotJudge, HParams, tap_names, tap_width
from harness.models import Model
from harness.tokenizer import Tokenizer

FORMAT = 1
PROMPT = "Alan Turing theorized that computers would one day become"
CONTINUATION = " the most powerful machines on the planet."
SEAL = "manifest.json.sha256"
FRESH = "fresh"  # the case that every run draws anew: no record may have its name
ENTRY = {  # what the manifest says of each case
    "agreement_noise_units": float,
    "agreement_worst_at": str,
    "agreement_logits_max_abs": float,
    "sha256": str,
}
KEPT = 32  # positions kept of each tap where a case is longer: records stay small enough to ship


class Case(NamedTuple):
    """What a record is about."""

    name: str
    tokens: np.ndarray  # int32 [batch, n]
    n_new: int  # greedy tokens to record


class Record(NamedTuple):
    """One case and the truth about it."""

    name: str
    arrays: Mapping[str, np.ndarray]
    n_layer: int

    @property
    def tokens(self) -> np.ndarray:
        return self.arrays["tokens"]

    @property
    def logits(self) -> np.ndarray:
        return self.arrays["logits"]

    def tap(self, name: str) -> np.ndarray:
        """float64 [batch, kept, width]"""
        return self.arrays[f"taps/{name}"]

    def noise(self, dtype: str, name: str = "logits") -> float:
        """One noise unit at a tap, or of the logits: median over the draws."""
        if name == "logits":
            return float(np.median(self.arrays[f"noise/{dtype}/logits"][:, 0]))
        column = tap_names(self.n_layer).index(name)
        return float(np.median(self.arrays[f"noise/{dtype}/taps"][:, column]))

    def logits_noise(self, dtype: str) -> tuple[float, float, float]:
        """One unit each of greatest difference, root mean square and KL of the logits."""
        greatest, rms, kl = np.median(self.arrays[f"noise/{dtype}/logits"], axis=0)
        return float(greatest), float(rms), float(kl)


def cases(hparams: HParams, tokenizer: Tokenizer | None) -> list[Case]:
    """The golden cases: seed prompt, unconditional, one token, full context, and a batch.

    A generated model has no tokenizer and says nothing, so its cases are random tokens, and short.
    """
    if tokenizer is None:
        rng = np.random.default_rng(0)
        shapes = {"tokens": (1, min(128, hparams.n_ctx)), "one_token": (1, 1), "batch": (4, 12)}
        return [
            Case(name, rng.integers(0, hparams.n_vocab, shape).astype(np.int32), 2 * (name == "batch"))
            for name, shape in shapes.items()
        ]
    seed = tokenizer.encode(PROMPT)
    rng = np.random.default_rng(0)
    full = rng.integers(0, hparams.n_vocab, (1, hparams.n_ctx))
    rows = rng.integers(0, hparams.n_vocab, (3, len(seed) // 2))
    specs = [
        ("seed", [seed], len(tokenizer.encode(CONTINUATION))),
        ("unconditional", [[tokenizer.end_of_text]], 16),
        ("one_token", [seed[:1]], 16),
        ("full_context", full, 0),
        ("batch", [seed[: len(seed) // 2], *rows], 8),
    ]
    return [Case(name, np.asarray(tokens, np.int32), n_new) for name, tokens, n_new in specs]


def tokenizer_of(directory: Path, hparams: HParams) -> Tokenizer | None:
    """The checkpoint's tokenizer; None for a generated model, which has none."""
    if "vocab.bpe" not in checkpoint.files(directory):
        return None
    return Tokenizer(directory, hparams.n_vocab)


def fresh_case(hparams: HParams, seed: int) -> Case:
    """Random tokens that no implementation can have seen: [2, up to 24], drawn from seed.

    The least and the greatest id (of GPT-2 the end of text), which some take for padding, are always
    there: each begins a row and ends the other, and is in the middle of both, of its own row twice.
    """
    n, last = min(24, hparams.n_ctx), hparams.n_vocab - 1
    tokens = np.random.default_rng(seed).integers(0, hparams.n_vocab, (2, n))
    tokens[:, -2:] = np.array([[last, last], [0, 0]])[:, :n]
    tokens[:, 0] = 0, last
    middle = slice(n // 2, n // 2 + 3)
    tokens[:, middle] = np.array([[0, 0, last], [last, last, 0]])[:, : n - n // 2]
    return Case(FRESH, tokens.astype(np.int32), 0)


def record(
    case: Case,
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    dtypes: Sequence[str] = noise.DTYPES,
) -> Record:
    """The truth about a case by the float64 NumPy oracle, with its noise floor at each dtype."""
    n = case.tokens.shape[1]
    positions = np.unique(np.linspace(0, n - 1, min(n, KEPT)).astype(np.int32))
    arrays = {"tokens": case.tokens, "positions": positions}

    def keep(name: str, value: np.ndarray) -> None:
        if name == "logits":
            arrays[name] = value
        else:
            arrays[f"taps/{name}"] = value[:, positions]

    arrays |= noise.measure(params, hparams, case.tokens, keep, seed=0, dtypes=dtypes)
    arrays["greedy"], arrays["margins"] = oracle.greedy(params, hparams, case.tokens, case.n_new)
    return Record(case.name, arrays, hparams.n_layer)


def seal(manifest: Path) -> str:
    """The manifest's own SHA-256, in the format of sha256sum."""
    return f"{mapped.sha256(manifest)}  {manifest.name}\n"


def read_manifest(model: Model) -> dict[str, Any]:
    """The manifest. Raises CannotJudge, naming the remedy, where it is missing or of another format."""
    path = model.records / "manifest.json"
    remedy = f"make it with: parity golden build --model {model.argument}"
    try:
        manifest = strict_json.read(path)
    except OSError as error:
        changed = _of_other_weights(model.records)
        raise CannotJudge(f"{path}: no golden record ({error.strerror}{changed}); {remedy}") from error
    except ValueError as error:
        raise CannotJudge(f"{path}: not JSON ({error}); {remedy}") from error
    sealed = path.with_name(SEAL)
    if not sealed.is_file() or sealed.read_bytes() != seal(path).encode():
        raise CannotJudge(
            f"{path}: SHA-256 is not what {sealed.name} beside it says; restore or {remedy}"
        )
    known = isinstance(manifest, dict) and type(manifest.get("format")) is int
    if not known or manifest["format"] != FORMAT:
        raise CannotJudge(f"{path}: not a golden manifest of format {FORMAT}; {remedy}")
    if fault := _fault(manifest, checkpoint.files(model.checkpoint)):
        raise CannotJudge(f"{path}: {fault}; {remedy}")
    return manifest


def _of_other_weights(records: Path) -> str:
    """Words about records of a folder of that name, whose weights were others; "" if there are none."""
    if not (named := re.fullmatch("(.+)-[0-9a-f]{12}", records.name)):
        return ""
    like = re.compile(re.escape(named[1]) + "-[0-9a-f]{12}")
    others = sorted(path.name for path in records.parent.glob("*") if like.fullmatch(path.name))
    return f"; of other weights there are {', '.join(others)}: have these changed?" if others else ""


def _fault(manifest: dict[str, Any], files: tuple[str, ...]) -> str:
    """What a manifest says that no build writes; "" if nothing. Names of cases become names of files."""
    if not isinstance(manifest.get("model"), str):
        return "does not name its model"
    if not isinstance(manifest.get("cases"), dict) or not manifest["cases"]:
        return "lists no cases"
    for name, entry in manifest["cases"].items():
        if not re.fullmatch("[a-z0-9_]{1,40}", name) or name == FRESH:
            return f"case {name!r} is no name of a record"
        types = {key: type(entry.get(key)) for key in ENTRY} if isinstance(entry, dict) else {}
        if types != ENTRY:
            return f"case {name!r} has not {', '.join(ENTRY)}"
    shas = manifest.get("checkpoint_sha256")
    if not isinstance(shas, dict) or shas.keys() != set(files):
        return "does not give the SHA-256 of every checkpoint file"
    return ""


def read(model: Model) -> tuple[checkpoint.Checkpoint, list[Record]]:
    """The checkpoint and its records, every file of both checked against the manifest.

    Raises CannotJudge, naming the file, for anything missing, stale or tampered with.
    """
    manifest = read_manifest(model)
    loaded = checkpoint.load(model.checkpoint, manifest["checkpoint_sha256"])
    records = []
    for name, entry in manifest["cases"].items():
        path = model.records / f"{name}.safetensors"
        if mapped.sha256(path) != entry["sha256"]:
            raise CannotJudge(
                f"{path}: SHA-256 is not what manifest.json says; "
                f"restore it or remake it with: parity golden build --model {model.argument}"
            )
        stored = Record(name, mapped.read(path), loaded.hparams.n_layer)
        check(stored, loaded.hparams, path)
        records.append(stored)
    return loaded, records


def check(stored: Record, hparams: HParams, path: Path) -> None:
    """Raise CannotJudge, naming file and array, unless a record is of the form that build writes."""
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
        raise CannotJudge(f"{path}: no tokens, or more with greedy than n_ctx {hparams.n_ctx}")


def _form(
    hparams: HParams, shape: tuple[int, ...], n_new: int
) -> dict[str, tuple[str, tuple[int, ...], float]]:
    """dtype, shape and, unless 0, the bound of the values (from 0) of every array of a record."""
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
    for dtype in noise.DTYPES:
        form[f"noise/{dtype}/taps"] = ("float64", (noise.DRAWS, len(names)), np.inf)
        form[f"noise/{dtype}/logits"] = ("float64", (noise.DRAWS, 3), np.inf)
    return form
