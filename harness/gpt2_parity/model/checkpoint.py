"""Load OpenAI's TensorFlow checkpoint.

The first time, TensorFlow's own reader reads it in a separate process and verifies each tensor's CRC32C.
The weights are checked and kept as a memory-mapped safetensors file in a per-user cache, keyed by the
content of the checkpoint. Later loads neither import TensorFlow nor copy a weight.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs

from gpt2_parity.contract.architecture import HParams, parameter_shapes, variable_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest, fresh_process, safetensors_mmap, strict_json
from gpt2_parity.model import synthetic

DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
FILES = ("checkpoint", "encoder.json", "hparams.json", DATA, INDEX, "model.ckpt.meta", "vocab.bpe")


class Checkpoint(NamedTuple):
    """A checked checkpoint. params are mapped from the file weights, which all processes share."""

    hparams: HParams
    params: Mapping[str, np.ndarray]  # float32, by name without "model/"; each w [n_in, n_out]
    weights: Path
    sha256: dict[str, str]  # of each file of the checkpoint


def home() -> Path:
    """The folder of all caches: $PARITY_HOME, or the user's cache folder."""
    return Path(os.environ.get("PARITY_HOME") or platformdirs.user_cache_path("gpt2-parity"))


def load(directory: Path, expected: Mapping[str, str] | None = None) -> Checkpoint:
    """The checkpoint in a folder. expected: the SHA-256 that each named file must have.

    Raises CannotJudge, naming the file or variable, if anything is missing, damaged or misshapen.
    """
    found = hashes(directory)
    for name, sha in (expected or {}).items():
        if found.get(name) != sha:
            raise CannotJudge(
                f"{directory / name}: SHA-256 is {found.get(name)}, but the golden manifest says {sha}. "
                "Restore the file or, if the change is intended, run: parity golden build"
            )
    hparams = read_hparams(directory / "hparams.json")
    if synthetic.WEIGHTS in found:  # generated weights are stored as safetensors already
        params = safetensors_mmap.read(directory / synthetic.WEIGHTS)
        check(params, hparams, directory / synthetic.WEIGHTS, squeezed=True)
        return Checkpoint(hparams, params, directory / synthetic.WEIGHTS, found)
    _fits(directory, hparams)
    weights = home() / "weights" / f"{found[DATA][:16]}{found[INDEX][:16]}.safetensors"
    if not _intact(weights):
        _in_child(directory, hparams, weights)
    params = safetensors_mmap.read(weights)
    check(params, hparams, weights, squeezed=True)
    return Checkpoint(hparams, params, weights, found)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files by name. Raises CannotJudge if one is missing or empty."""
    for name in files(directory):
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            raise CannotJudge(
                f"{path}: missing or empty; a checkpoint is the files {', '.join(files(directory))}"
            )
    return {name: digest.sha256(directory / name) for name in files(directory)}


def files(directory: Path) -> tuple[str, ...]:
    """The names of OpenAI's seven files, or of the two of a generated model."""
    return synthetic.FILES if (directory / synthetic.WEIGHTS).is_file() else FILES


def read_hparams(path: Path) -> HParams:
    """hparams.json, checked. Raises CannotJudge, naming the entry, for impossible values."""
    try:
        raw = strict_json.read(path)
        values = {name: raw[name] for name in HParams._fields}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotJudge(f"{path}: needs {', '.join(HParams._fields)} as JSON ({error!r})") from error
    for name, value in values.items():
        most = 2**12 if name == "n_layer" else 2**24  # variables are listed layer by layer
        if type(value) is not int or not 0 < value < most:
            text = str(value)[:40]
            raise CannotJudge(f"{path}: {name} is {text!r}, expected an integer from 1 to {most - 1}")
    hparams = HParams(**values)
    if hparams.n_embd % hparams.n_head:
        raise CannotJudge(f"{path}: n_embd {hparams.n_embd} is not divisible by n_head {hparams.n_head}")
    return hparams


def _fits(directory: Path, hparams: HParams) -> None:
    """Raise CannotJudge unless the file checkpoint names the others and the data has the right size."""
    state = (directory / "checkpoint").read_bytes()
    if not re.search(rb'^model_checkpoint_path: "model\.ckpt"\s*$', state, re.MULTILINE):
        raise CannotJudge(
            f'{directory / "checkpoint"}: does not say model_checkpoint_path: "model.ckpt", '
            "the name of the files in this folder"
        )
    size = (directory / DATA).stat().st_size
    needed = sum(4 * math.prod(shape) for shape in variable_shapes(hparams).values())
    if size != needed:
        raise CannotJudge(f"{directory / DATA}: {size} bytes, but hparams.json calls for {needed}")


def check(
    params: Mapping[str, np.ndarray], hparams: HParams, source: Path, *, squeezed: bool = False
) -> None:
    """Raise CannotJudge, naming source and variable, unless names, shapes, dtypes and values are right.

    squeezed: each w is [n_in, n_out], as implementations receive it, not [1, n_in, n_out] as stored.
    """
    wanted = parameter_shapes(hparams) if squeezed else variable_shapes(hparams)
    if missing := sorted(wanted.keys() - params.keys()):
        raise CannotJudge(f"{source}: variable model/{missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(params.keys() - wanted.keys()):
        raise CannotJudge(f"{source}: unknown variable model/{unknown[0]} ({len(unknown)} in all)")
    for name, array in params.items():
        if array.shape != wanted[name]:
            raise CannotJudge(
                f"{source}: variable model/{name} has shape {array.shape}, hparams say {wanted[name]}"
            )
        if array.dtype != np.float32:
            raise CannotJudge(f"{source}: variable model/{name} is {array.dtype}, expected float32")
        if not np.isfinite(array).all():
            raise CannotJudge(f"{source}: variable model/{name} has values that are NaN or infinite")


def _in_child(directory: Path, hparams: HParams, weights: Path) -> None:
    """Convert in a separate process, which frees TensorFlow's 700 MB when it ends."""
    died = f"{directory}: the process reading the checkpoint died"
    fresh_process.call(died, convert, directory, hparams, weights)


def convert(directory: Path, hparams: HParams, weights: Path) -> None:
    """Read with TensorFlow, check, and write the weights file and its SHA-256 beside it."""
    params = read_variables(directory)
    check(params, hparams, directory / INDEX)
    squeezed = {name: w[0] if name.endswith("/w") else w for name, w in params.items()}
    safetensors_mmap.write(weights, squeezed)
    atomic.write_text(weights.with_suffix(".sha256"), digest.sha256(weights))


def read_variables(directory: Path) -> dict[str, np.ndarray]:
    """Every variable of the checkpoint, as stored (w [1, n_in, n_out]), by name without "model/".

    Raises CannotJudge if TensorFlow is absent or cannot read the checkpoint.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise CannotJudge(
            f"{directory}: the first load needs TensorFlow's reader; pip install tensorflow ({error})"
        ) from error
    try:
        reader = tf.train.load_checkpoint(str(directory / "model.ckpt"))
        names = sorted(reader.get_variable_to_shape_map())
    except Exception as error:  # TensorFlow raises many unrelated types for a corrupt file
        raise CannotJudge(f"{directory / INDEX}: TensorFlow cannot read it ({error})") from error
    params = {}
    for name in names:
        try:
            params[name.removeprefix("model/")] = np.asarray(reader.get_tensor(name))
        except Exception as error:
            raise CannotJudge(
                f"{directory / DATA}: TensorFlow cannot read variable {name} ({error})"
            ) from error
    return params


def _intact(weights: Path) -> bool:
    """Whether a cached file still has exactly the bytes that were written."""
    recorded = weights.with_suffix(".sha256")
    return (
        weights.is_file()
        and recorded.is_file()
        and recorded.read_bytes() == digest.sha256(weights).encode()
        and safetensors_mmap.is_aligned(weights)  # files of earlier versions are not aligned
    )
