"""Build golden records, and compare stored ones with the oracle again.

Two oracles that share no code, NumPy and TensorFlow in float64, must agree within the limits for float64
at every tap and every logit. Only then is the manifest written; records without one are not used.

OpenAI's own code is a third oracle, if a clone of openai/gpt-2 is given: its float32 logits must agree
within the limits for float32 (reference/openai_source.py).
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.limits import NOISE, Limit
from gpt2_parity.files import atomic, digest, safetensors_mmap
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.reference import openai_source
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.golden import FORMAT, SEAL, CaseEntry, Manifest, read, seal
from gpt2_parity.reference.records import KEPT, Case, Record, cases, make_record

REMEASURED = Limit(
    4.0,
    "The factor by which a record's noise may be above or below the noise that is measured today. "
    "OpenBLAS's kernels, from Prescott to SkylakeX, sum in different orders: they gave 0.44 to 2.6.",
)


SecondOracle = Callable[[checkpoint.Checkpoint, str], Callable[..., Any]]  # by checkpoint and dtype


def build(
    model: Model,
    second_oracle: SecondOracle,
    progress: Callable[[str], None] = lambda text: None,
    official_source: Path | None = None,
) -> Manifest:
    """Make all records of a model, verify them, and install them in one step.

    second_oracle: TensorFlow's evaluation (implementation/second_oracle.py). official_source: a clone of
    openai/gpt-2, whose model must agree too. Returns the manifest.
    Raises CannotJudge, and writes nothing, if the oracles disagree.
    """
    loaded = checkpoint.load(model.checkpoint)
    tokenizer = tokenizer_of(model.checkpoint, loaded.hparams)
    todo = cases(loaded.hparams, tokenizer)
    published: dict[str, np.ndarray] = {}
    if official_source is not None:
        progress("OpenAI's own code")
        published = openai_source.logits(
            official_source, loaded, {case.name: case.tokens for case in todo}
        )
    progress("TensorFlow float32")
    single = second_oracle(loaded, "float32")
    rounded = {case.name: single(case.tokens, lambda *_: None) for case in todo}
    del single  # frees its weights before the float64 ones are loaded
    double = second_oracle(loaded, "float64")
    with atomic.temporary(model.records) as folder:
        manifest = _manifest(model, loaded)
        if official_source is not None:
            manifest.oracles.append(openai_source.describe(official_source))
        for case in todo:
            progress(case.name)
            truth = make_record(case, loaded.params, loaded.hparams)
            facts: dict[str, Any] = _prove(truth, double)
            if published:
                facts |= _prove_official(truth, published[case.name])
            if tokenizer is not None:
                facts["greedy_text"] = [tokenizer.decode(row) for row in truth.arrays["greedy"].tolist()]
            path = folder / f"{case.name}.safetensors"
            safetensors_mmap.write(path, {**truth.arrays, "logits_tensorflow": rounded[case.name]})
            manifest.cases[case.name] = CaseEntry(**facts, sha256=digest.sha256(path))
        text = json.dumps(msgspec.to_builtins(manifest), indent=1) + "\n"
        atomic.write_text(folder / "manifest.json", text)
        atomic.write_text(folder / SEAL, seal(folder / "manifest.json"))
        _replace(folder, model.records)
    return manifest


def _manifest(model: Model, loaded: checkpoint.Checkpoint) -> Manifest:
    import tensorflow as tf

    return Manifest(
        format=FORMAT,
        model=model.name,
        hparams=loaded.hparams._asdict(),
        checkpoint_sha256=loaded.sha256,
        oracles=[
            "NumPy float64 (gpt2_parity/reference/oracle.py)",
            "TensorFlow float64 (impls/gpt2_tensorflow.py)",
        ],
        versions={"numpy": np.__version__, "tensorflow": tf.__version__},
        storage="float64 as computed: storing adds no error",
        kept_positions=KEPT,
        cases={},
    )


def _prove(truth: Record, second: Callable[..., Any]) -> dict[str, Any]:
    """How well the two oracles agree on a record. Raises CannotJudge beyond the float64 limit."""
    units: dict[str, float] = {}
    positions = truth.arrays["positions"]

    def tap(name: str, value: np.ndarray) -> None:  # compares at once: none is kept in memory
        units[name] = apart(truth, name, value[:, positions])

    logits = second(truth.tokens, tap)
    units["logits"] = apart(truth, "logits", logits)
    location, worst = worst_of(truth, units)
    if not worst <= NOISE.most:
        raise CannotJudge(
            f"golden {truth.name}: the oracles disagree at {location} by {worst:.3g} float64 noise "
            f"units (at most {NOISE.most:g}); nothing was written"
        )
    return {
        "agreement_noise_units": worst,
        "agreement_worst_at": location,
        "agreement_logits_max_abs": max_abs(logits, truth.logits),
    }


def apart(truth: Record, name: str, value: np.ndarray) -> float:
    """How far a second float64 evaluation is from a record, in float64 noise units.

    value: a tap [batch, kept, width] at the kept positions, or the logits of every position.
    """
    want = truth.logits if name == "logits" else truth.tap(name)
    return max_abs(value, want) / truth.noise("float64", name)


def worst_of(truth: Record, units: Mapping[str, float]) -> tuple[str, float]:
    """The name at which two evaluations are furthest apart, and their distance. NaN counts as furthest.

    units: distance in noise units by tap name and "logits". Raises CannotJudge if one is missing.
    """
    if lacking := [name for name in (*tap_names(truth.n_layer), "logits") if name not in units]:
        raise CannotJudge(f"golden {truth.name}: the second oracle gave no {lacking[0]}")
    return max(units.items(), key=lambda item: (math.isnan(item[1]), item[1]))


def _prove_official(truth: Record, logits: np.ndarray) -> dict[str, float]:
    """How far OpenAI's own float32 logits [batch, n, n_vocab] are from a record.

    Raises CannotJudge beyond the limit.
    """
    units = max_abs(logits, truth.logits) / truth.noise("float32")
    if not units <= NOISE.most:
        raise CannotJudge(
            f"golden {truth.name}: OpenAI's src/model.py disagrees at logits by {units:.3g} float32 "
            f"noise units (at most {NOISE.most:g}); nothing was written"
        )
    return {
        "official_noise_units": units,
        "official_logits_max_abs": max_abs(logits, truth.logits),
    }


def _replace(new: Path, path: Path) -> None:
    """Rename a finished folder to path, then remove the old folder."""
    with atomic.temporary(path) as old:
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def verify(model: Model, progress: Callable[[str], None] = lambda text: None) -> None:
    """Compute every record again and compare all arrays.

    Raises CannotJudge, naming the record, if a stored value differs from the float64 oracle by more than
    rounding, or if an array is missing.
    """
    loaded, records = read(model)
    for stored in records:
        progress(stored.name)
        n_new = stored.arrays["greedy"].shape[1]
        case = Case(stored.name, np.asarray(stored.tokens), n_new)
        today = make_record(case, loaded.params, loaded.hparams)
        for name, fault in (
            ("greedy", "ids are not what the oracle chooses"),
            ("positions", "are not the ones chosen today"),
        ):
            if not np.array_equal(stored.arrays[name], today.arrays[name]):
                raise CannotJudge(f"golden {stored.name}: its {name} {fault}; remake it")
        _check_noise(stored, today)
        units = {name: apart(stored, name, today.tap(name)) for name in tap_names(stored.n_layer)}
        units["logits"] = apart(stored, "logits", today.logits)
        if n_new:
            margins = max_abs(stored.arrays["margins"], today.arrays["margins"])
            units["margins"] = margins / (2 * today.noise("float64"))  # a difference of two logits
        official = max_abs(stored.arrays["logits_tensorflow"], today.logits)
        units["logits_tensorflow"] = official / today.noise("float32")
        location, worst = worst_of(stored, units)
        if not worst <= NOISE.most:
            raise CannotJudge(
                f"golden {stored.name}: {location} is {worst:.3g} noise units from the oracle; "
                f"remake it with: parity golden build --model {model.argument}"
            )


def _check_noise(stored: Record, today: Record) -> None:
    """Raise CannotJudge if stored noise is far from what is measured today: it scales every limit."""
    most = REMEASURED.most
    for dtype in dtypes.DTYPES:
        for name in (*tap_names(stored.n_layer), "logits"):
            share = stored.noise(dtype, name) / today.noise(dtype, name)
            if not 1 / most <= share <= most:
                raise CannotJudge(
                    f"golden {stored.name}: its {dtype} noise at {name} is {share:.3g} x the measured "
                    f"(at most {most:g} x, either way)"
                )
