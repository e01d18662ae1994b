"""The interface of an implementation: a module or an object with four functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt2_parity.contract.architecture import HParams

Array = Any  # a framework's own array, opaque here; Implementation.numpy copies it to the host
Tap = Callable[[str, Array], None]


class CannotJudge(Exception):
    """No verdict is possible (exit code 2): bad usage, missing or corrupt input, absent device.

    Its text says what is wrong, where, and what to do.
    """


class Interrupted(CannotJudge):
    """A run that was under way cannot go on where it is; what it has measured can be continued from."""

    def __init__(self, text: str):
        super().__init__(f"{text}; a run with --out DIR is continued by: parity resume DIR")


class CodeChanged(CannotJudge):
    """An implementation's files were edited while it was verified: no verdict would be about either."""


class Target(NamedTuple):
    """The device and dtype that an implementation runs with, such as ``cuda-float32``."""

    device: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}"


class Implementation(Protocol):
    """The contract. Optional: ``TAPS``, ``ORDER``, ``CACHE``, ``WEIGHTS``, ``RELOADS``, and the
    capabilities that checks declare (``generate``, ``loss_and_grads``, ``weights``).

    ``TAPS`` promises taps: "all", or a list of names. A promised tap that is missing is a failure.
    Without ``TAPS``, every later pass must deliver the taps of a first probe.
    ``ORDER`` is the memory order of each w: "C" as [n_in, n_out], or "F" as [n_out, n_in]. Its shape is
    [n_in, n_out] in both (model/weight_layout.py).
    ``CACHE`` is None if everything is computed anew in each call: then forward(model, tokens) is enough
    (implementation/without_cache.py). It is "in place" if forward writes into the cache that it is
    given, so that a cache can be continued in one way only.
    ``WEIGHTS`` is "quantized" if the model multiplies with other weights than the checkpoint's, which
    ``weights(model)`` returns: then it is judged by these (implementation/own_weights.py).
    ``RELOADS`` is "slow" if load compiles: then fewer auxiliary models are loaded, and the report says
    what was not looked at.
    """

    def targets(self) -> Sequence[tuple[str, str]]:
        """(device, dtype) pairs that can run on this machine, such as ("cuda", "float32")."""

    def load(
        self, params: Mapping[str, np.ndarray], hparams: HParams, *, device: str, dtype: str
    ) -> Any:
        """The model. params: float32 arrays by checkpoint name without "model/", w as [n_in, n_out].

        Called once for each target, and up to six times more for small models of other sizes or other
        weights. Several models may be loaded at once; all must keep working.
        """

    def forward(
        self, model: Any, tokens: np.ndarray, past: Any = None, tap: Tap | None = None
    ) -> tuple[Array, Any]:
        """Logits [batch, n, n_vocab] of every position of tokens int32 [batch, n], and the new cache.

        Must raise for ids out of range, for no tokens, and for more than n_ctx with those in past.
        """

    def numpy(self, x: Array) -> np.ndarray:
        """x [...] on the host. On an asynchronous device it waits for the result."""


class ContractBroken(Exception):
    """The implementation broke the contract. The text says how; the running check fails."""
