"""OpenAI's own code as an oracle: src/model.py of a clone of openai/gpt-2, run unchanged.

It was written for TensorFlow 1. TensorFlow 2 still has that interface as tf.compat.v1, but lacks
tf.contrib; the file needs only HParams of it. So the file is imported in a process of its own, where
"tensorflow" is a stand-in that has both. The file is neither changed nor copied. The golden manifest
records its SHA-256, and whether it is the published one.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest, fresh_process, safetensors_mmap
from gpt2_parity.model import published_files
from gpt2_parity.model.checkpoint import Checkpoint

MODEL = Path("src") / "model.py"


class StandInHParams:
    """The part of tf.contrib.training.HParams that the model needs."""

    def __init__(self, **values: int):
        self.override_from_dict(values)

    def override_from_dict(self, values: Mapping[str, int]) -> "StandInHParams":
        vars(self).update(values)
        return self


def describe(source: Path) -> str:
    """The oracle's line in the manifest. Raises CannotJudge if there is no src/model.py."""
    sha = digest.sha256(source / MODEL)
    whose = (
        "as OpenAI published it"
        if sha == published_files.read().model_py
        else "NOT the file that OpenAI published"
    )
    return f"TensorFlow float32 (src/model.py, SHA-256 {sha}, {whose})"


def logits(source: Path, loaded: Checkpoint, tokens: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 logits [batch, n, n_vocab] by case, for tokens int32 [batch, n] by case.

    Raises CannotJudge if source has no src/model.py, or if that cannot be run, has other variables than
    the checkpoint, or kills its process.
    """
    died = f"{source / MODEL}: the process running it died"
    return fresh_process.call(died, evaluate, source, loaded.weights, loaded.hparams, dict(tokens))


def evaluate(
    source: Path, weights: Path, hparams: HParams, tokens: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Float32 logits [batch, n, n_vocab] by case, as ``logits`` returns them.

    It leaves TensorFlow in TensorFlow 1 mode, so end the process. Raises CannotJudge as ``logits`` does.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    path = source / MODEL
    try:
        import tensorflow.compat.v1 as tf
    except ImportError as error:
        raise CannotJudge(f"{path}: needs TensorFlow; pip install tensorflow ({error})") from error
    tf.logging.set_verbosity(tf.logging.ERROR)  # TensorFlow warns about each deprecated call
    tf.disable_v2_behavior()
    try:
        module = load(path, tf)
        configured = module.default_hparams()
        configured.override_from_dict(hparams._asdict())
        with tf.Graph().as_default(), tf.Session() as session:
            x = tf.placeholder(tf.int32, [None, None])
            result = module.model(configured, x)["logits"]
            fill(tf.global_variables(), safetensors_mmap.read(weights), session, path)
            results = {case: np.asarray(session.run(result, {x: ids})) for case, ids in tokens.items()}
    except CannotJudge:
        raise
    except Exception as error:  # their code may raise anything
        raise CannotJudge(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    for case, array in results.items():
        expected = (*tokens[case].shape, hparams.n_vocab)
        if array.shape != expected or array.dtype != np.float32:
            raise CannotJudge(
                f"{path}: logits are {array.dtype} {array.shape}, expected float32 {expected}"
            )
    return results


def load(path: Path, tf: ModuleType) -> ModuleType:
    """Import the module at path; its ``import tensorflow`` gets TensorFlow 1 with tf.contrib.

    Raises CannotJudge if there is no such file.
    """
    training = ModuleType("tensorflow.contrib.training")
    contrib = ModuleType("tensorflow.contrib")
    stand_in = ModuleType("tensorflow")
    vars(training).update(HParams=StandInHParams)
    vars(contrib).update(training=training)
    vars(stand_in).update(contrib=contrib, __getattr__=lambda name: getattr(tf, name))
    spec = importlib.util.spec_from_file_location("official_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CannotJudge(f"{path}: no such file; --official-source is a clone of openai/gpt-2")
    module = importlib.util.module_from_spec(spec)
    real = sys.modules["tensorflow"]
    shams = {each.__name__: each for each in (stand_in, contrib, training)}
    sys.modules.update(shams)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in shams:
            del sys.modules[name]
        sys.modules["tensorflow"] = real
    return module


def fill(variables: list[Any], params: Mapping[str, np.ndarray], session: Any, path: Path) -> None:
    """Assign the weights to the variables of the graph. Raises CannotJudge unless the names agree."""
    by_name = {variable.op.name.removeprefix("model/"): variable for variable in variables}
    if by_name.keys() != params.keys():
        odd = sorted(by_name.keys() ^ params.keys())
        raise CannotJudge(f"{path}: its variables are not the checkpoint's ({', '.join(odd[:3])})")
    for name, variable in by_name.items():
        variable.load(params[name].reshape(variable.shape.as_list()), session)
