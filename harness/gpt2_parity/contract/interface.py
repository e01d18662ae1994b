"""What an implementation is: a module, or an object, with four functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt2_parity.contract.architecture import HParams

Array = Any  # a framework's own array: opaque here, brought to host by Implementation.numpy
Tap = Callable[[str, Array], None]


class CannotJudge(Exception):
    """No verdict is possible (exit code 2): bad usage, missing or corrupt input, absent device.

    Its text says what is wrong, where, and what to do.
    """


class Target(NamedTuple):
    """Where and in which precision an implementation runs: ``cuda-float32`` and the like."""

    device: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}"


class Implementation(Protocol):
    """The contract. Optional besides: ``TAPS``, ``ORDER``, ``generate``, ``loss_and_grads``.

    ``TAPS`` is a promise that coverage is held to: "all", or the names that will be tapped.
    Without it, the taps seen on a first probe are what every later run must deliver.
    ``ORDER`` is how each w lies in memory: "C" as [n_in, n_out], or "F" as [n_out, n_in]; its shape is
    [n_in, n_out] in both (order.py).
    """

    def targets(self) -> Sequence[tuple[str, str]]:
        """(device, dtype) pairs that can run on this machine, such as ("cuda", "float32")."""

    def load(
        self, params: Mapping[str, np.ndarray], hparams: HParams, *, device: str, dtype: str
    ) -> Any:
        """The model. params: float32 arrays by checkpoint name without "model/", w as [n_in, n_out].

        Called anew for each target, and some ten times more for small models of other sizes or other
        weights: two may be there at once, and each has to go on working.
        """

    def forward(
        self, model: Any, tokens: np.ndarray, past: Any = None, tap: Tap | None = None
    ) -> tuple[Array, Any]:
        """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the new cache."""

    def numpy(self, x: Array) -> np.ndarray:
        """To the host; also the barrier on an asynchronous device."""


class ContractBroken(Exception):
    """The implementation broke the contract: its text says how, and fails the running check."""
