"""Load a checkpoint without a framework: OpenAI's TensorFlow files, Hugging Face's or generated weights.

The first time, every weight is checked; of OpenAI's files, the index and each tensor's CRC32C as well.
The weights are kept as a memory-mapped safetensors file in a per-user cache, keyed by the content of the
checkpoint. That load holds one weight in memory at a time; later loads copy none.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from gpt2_parity.contract.architecture import HParams, parameter_shapes, variable_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest, safetensors_mmap, strict_json
from gpt2_parity.model import huggingface, synthetic, tf_variables

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
    hparams = hparams_of(directory)
    if synthetic.WEIGHTS in found:  # generated weights are stored as safetensors already
        params = safetensors_mmap.read(directory / synthetic.WEIGHTS)
        check(params, hparams, directory / synthetic.WEIGHTS, squeezed=True)
        return Checkpoint(hparams, params, directory / synthetic.WEIGHTS, found)
    if huggingface.is_one(directory):
        huggingface.Weights(directory / huggingface.WEIGHTS, hparams)  # compares names and shapes
        key = found[huggingface.WEIGHTS][:32]
    else:
        _fits(directory, hparams)
        key = found[DATA][:16] + found[INDEX][:16]
    weights = home() / "weights" / f"{key}.safetensors"
    if not _intact(weights):
        convert(directory, hparams, weights)
    params = safetensors_mmap.read(weights)
    check(params, hparams, weights, squeezed=True)
    return Checkpoint(hparams, params, weights, found)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files by name. Raises CannotJudge if one is missing or empty."""
    _refuse_shards(directory)
    huggingface.refuse_other_files(directory)
    for name in files(directory):
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            raise CannotJudge(
                f"{path}: missing or empty; a checkpoint is the files {', '.join(files(directory))}"
            )
    return {name: digest.sha256(directory / name) for name in files(directory)}


def _refuse_shards(directory: Path) -> None:
    """Raise CannotJudge, naming one, if there are several data files instead of one."""
    if not (directory / DATA).exists():
        for path in sorted(directory.glob("model.ckpt.data-*-of-*")):
            raise CannotJudge(
                f"{path}: the checkpoint is split over several data files (shards). Only one is read, "
                f"{DATA}; save the checkpoint with TensorFlow again, unsharded"
            )


def files(directory: Path) -> tuple[str, ...]:
    """The names of OpenAI's seven files, of Hugging Face's, or of the two of a generated model."""
    if huggingface.is_one(directory):
        return huggingface.files(directory)
    return synthetic.FILES if (directory / synthetic.WEIGHTS).is_file() else FILES


def data_file(directory: Path) -> str:
    """The name of the file that holds the weights."""
    return next(
        name for name in files(directory) if name in (DATA, huggingface.WEIGHTS, synthetic.WEIGHTS)
    )


def hparams_of(directory: Path) -> HParams:
    """The sizes of a checkpoint, checked. Raises CannotJudge, naming the file and the entry."""
    if huggingface.is_one(directory):
        path = directory / huggingface.CONFIG
        return _checked(path, huggingface.sizes(path))
    return read_hparams(directory / "hparams.json")


def read_hparams(path: Path) -> HParams:
    """hparams.json, checked. Raises CannotJudge, naming the entry, for impossible values."""
    try:
        raw = strict_json.read(path)
        values = {name: raw[name] for name in HParams._fields}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotJudge(f"{path}: needs {', '.join(HParams._fields)} as JSON ({error!r})") from error
    return _checked(path, values)


def _checked(path: Path, values: Mapping[str, Any]) -> HParams:
    """The sizes in a file. values: in the order of HParams, by the names that they have in the file."""
    for name, value in values.items():
        most = 2**12 if name == "n_layer" else 2**24  # variables are listed layer by layer
        if type(value) is not int or not 0 < value < most:
            text = str(value)[:40]
            raise CannotJudge(f"{path}: {name} is {text!r}, expected an integer from 1 to {most - 1}")
    hparams = HParams(*values.values())
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


def convert(directory: Path, hparams: HParams, weights: Path) -> None:
    """Read and check every weight; write the weights file, one by one, and its SHA-256 beside it."""
    if huggingface.is_one(directory):
        found = huggingface.Weights(directory / huggingface.WEIGHTS, hparams)
        found.check_values()
        safetensors_mmap.write(weights, found)
    else:
        stored = tf_variables.read(directory / INDEX, directory / DATA)
        check(stored, hparams, directory / INDEX)
        safetensors_mmap.write(weights, stored.squeezed())
    atomic.write_text(weights.with_suffix(".sha256"), digest.sha256(weights))


def _intact(weights: Path) -> bool:
    """Whether a cached file still has exactly the bytes that were written."""
    recorded = weights.with_suffix(".sha256")
    return (
        weights.is_file()
        and recorded.is_file()
        and recorded.read_bytes() == digest.sha256(weights).encode()
        and safetensors_mmap.is_aligned(weights)  # files of earlier versions are not aligned
    )
