"""OpenAI's own code as an oracle: src/model.py of a clone of openai/gpt-2, run as it is.

It was written for TensorFlow 1. TensorFlow 2 still has that interface as tf.compat.v1, but not
tf.contrib, of which the file needs only HParams. So the file is imported in a process of its own, in
which "tensorflow" is a stand-in that has both. The file is neither changed nor copied. The golden
manifest records its SHA-256, and whether that is the published one.
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
    """As much of tf.contrib.training.HParams as the model needs."""

    def __init__(self, **values: int):
        self.override_from_dict(values)

    def override_from_dict(self, values: Mapping[str, int]) -> "StandInHParams":
        vars(self).update(values)
        return self


def describe(source: Path) -> str:
    """The oracle's line in the manifest. Raises CannotJudge where there is no src/model.py."""
    found = digest.sha256(source / MODEL)
    whose = (
        "as OpenAI published it"
        if found == published_files.read().model_py
        else "NOT the file that OpenAI published"
    )
    return f"TensorFlow float32 (src/model.py, SHA-256 {found}, {whose})"


def logits(source: Path, loaded: Checkpoint, tokens: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 logits [batch, n, n_vocab] by case, of tokens [batch, n] by case.

    Raises CannotJudge where source has no src/model.py, or one that cannot be run, that has other
    variables than the checkpoint, or that kills its process.
    """
    died = f"{source / MODEL}: the process running it died"
    return fresh_process.call(died, evaluate, source, loaded.weights, loaded.hparams, dict(tokens))


def evaluate(
    source: Path, weights: Path, hparams: HParams, tokens: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Compute what ``logits`` returns. It leaves TensorFlow in TensorFlow 1 mode, so end the process."""
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
            found = module.model(configured, x)["logits"]
            fill(tf.global_variables(), safetensors_mmap.read(weights), session, path)
            results = {case: np.asarray(session.run(found, {x: ids})) for case, ids in tokens.items()}
    except CannotJudge:
        raise
    except Exception as error:  # it is not our code, so it may raise anything
        raise CannotJudge(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    for case, array in results.items():
        expected = (*tokens[case].shape, hparams.n_vocab)
        if array.shape != expected or array.dtype != np.float32:
            raise CannotJudge(
                f"{path}: logits are {array.dtype} {array.shape}, expected float32 {expected}"
            )
    return results


def load(path: Path, tf: ModuleType) -> ModuleType:
    """Import the module at path; ``import tensorflow`` in it gets TensorFlow 1 with tf.contrib."""
    training = ModuleType("tensorflow.contrib.training")
    contrib = ModuleType("tensorflow.contrib")
    stand_in = ModuleType("tensorflow")
    vars(training).update(HParams=StandInHParams)
    vars(contrib).update(training=training)
    vars(stand_in).update(contrib=contrib, __getattr__=lambda name: getattr(tf, name))
    spec = importlib.util.spec_from_file_location("official_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CannotJudge(f"{path}: not there; --official-source is a clone of openai/gpt-2")
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
    """Give every variable of the graph its weights. Raises CannotJudge unless the names are the same."""
    by_name = {variable.op.name.removeprefix("model/"): variable for variable in variables}
    if by_name.keys() != params.keys():
        odd = sorted(by_name.keys() ^ params.keys())
        raise CannotJudge(f"{path}: its variables are not the checkpoint's ({', '.join(odd[:3])})")
    for name, variable in by_name.items():
        variable.load(params[name].reshape(variable.shape.as_list()), session)
