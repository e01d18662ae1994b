"""Make the calls of a trial on an implementation, and keep what it answers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.checks.search.trial import FORWARD, Step, Trial, paths
from gpt2_parity.contract.architecture import parameter_shapes
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.implementation.extremes import weights
from gpt2_parity.implementation.loaded import Loaded, describe


class NotLoaded(Exception):
    """The implementation does not load a model of these sizes, and says so."""


class Reply(NamedTuple):
    """What one step gave; what its kind does not give is empty."""

    logits: np.ndarray | None = None  # [batch, n, n_vocab]
    taps: Mapping[str, np.ndarray] = {}  # by name, each [batch, n, width]
    ids: np.ndarray | None = None  # of generate, [batch, n_new]
    gradients: Mapping[str, np.ndarray] = {}  # the loss too, by checkpoint name
    accepted: bool | None = None  # whether bad tokens were accepted
    raised: str = ""  # the error of a call that must not raise


class Played(NamedTuple):
    """A trial, the weights that it is judged by, and the answers."""

    trial: Trial
    loaded: Loaded
    tokens: list[np.ndarray]
    answers: list[Reply]  # up to the first that raised


def play(under_test: Loaded, trial: Trial, params: dict[str, np.ndarray] | None = None) -> Played:
    """Load a trial's model beside the one under test and make its calls.

    params: its weights, if they are known.
    Raises NotLoaded if the implementation does not load a model of these sizes.
    """
    params = params or weights(trial.hparams, trial.extremes, trial.seed, under_test.target.dtype)
    try:
        loaded = under_test.other(params, trial.hparams)
    except (ValueError, NotImplementedError) as error:
        raise NotLoaded(f"{trial.hparams}: {error}"[:300]) from error
    played = Played(trial, loaded, trial.tokens(), [])
    last_use = {step.past: i for i, step in enumerate(trial.steps)}
    caches: dict[int, Any] = {-1: None}
    for i, step in enumerate(trial.steps):
        try:
            answer, present = ask(loaded, step, played.tokens[i], caches.get(step.past), trial.tapped)
        except (Exception, SystemExit) as error:
            played.answers.append(Reply(raised=f"{type(error).__name__}: {error}"[:300]))
            break
        played.answers.append(answer)
        if i in last_use:
            caches[i] = present
        if step.past >= 0 and last_use[step.past] == i:
            del caches[step.past]  # dropped: its memory may be used again
    return played


@np.errstate(all="ignore")  # as in every check: loading may have set NumPy to raise
def ask(loaded: Loaded, step: Step, tokens: np.ndarray, past: Any, tapped: bool) -> tuple[Reply, Any]:
    """One call: its answer, and the cache after it. Raises what the implementation raises."""
    match step.kind:
        case "forward" if tapped:
            run = loaded.tapped(tokens, past)
            return Reply(run.logits, run.taps), run.present
        case "forward":
            logits, present = loaded.forward(tokens, past)
            return Reply(logits), present
        case "generate":
            return Reply(ids=generated(loaded, tokens, step.n_new)), None
        case "gradients":
            return Reply(gradients=loss_and_grads(loaded, tokens)), None
    bad = tokens.copy()
    bad[-1, -1] = loaded.hparams.n_vocab
    try:
        logits, _ = loaded.returned(bad, past, None)
        loaded.impl.numpy(logits)
    except (Exception, SystemExit):  # the contract allows any
        return Reply(accepted=False), None
    return Reply(accepted=True), None


def generated(loaded: Loaded, tokens: np.ndarray, n_new: int) -> np.ndarray:
    """The ids int32 [batch, n_new] of generate. Raises ContractBroken for another shape or dtype."""
    ids = loaded.impl.generate(loaded.model, np.array(tokens), n_new)
    given = np.array(ids if isinstance(ids, np.ndarray) else loaded.impl.numpy(ids))
    if given.shape != (len(tokens), n_new) or not np.issubdtype(given.dtype, np.integer):
        raise ContractBroken(
            f"generate returned {describe(given)}, the contract says ids [batch, n_new]"
        )
    return given


def loss_and_grads(loaded: Loaded, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The "loss" [] and the gradients by checkpoint name. Raises ContractBroken for another shape."""
    loss, grads = loaded.impl.loss_and_grads(loaded.model, np.array(tokens))
    shapes = parameter_shapes(loaded.hparams)
    given = {"loss": np.array(float(loss))}
    for name, shape in shapes.items():
        given[name] = loaded.array(f"the gradient by {name}", grads[name], shape, "that of its weight")
    return given


def whole(played: Played) -> dict[tuple[int, ...], np.ndarray]:
    """The tokens [batch, n] of every path of forward steps that were answered, by its steps."""
    made = {}
    for i, way in enumerate(paths(played.trial.steps)[: len(played.answers)]):
        if played.trial.steps[i].kind == FORWARD and not played.answers[i].raised:
            made[tuple(way)] = np.concatenate([played.tokens[j] for j in way], axis=1)
    return made


def texts(played: Played) -> dict[int, np.ndarray]:
    """Prompt and new ids but the last, int32 [batch, n], of every generate step, by step."""
    made = {}
    for i, answer in enumerate(played.answers):
        if answer.ids is not None:
            ids = answer.ids[:, :-1].clip(0, played.trial.hparams.n_vocab - 1)
            made[i] = np.concatenate([played.tokens[i], ids], axis=1).astype(np.int32)
    return made
