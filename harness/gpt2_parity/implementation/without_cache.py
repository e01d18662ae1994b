"""Implementations that declare CACHE = None: they compute all tokens anew in each call.

Here they get a cache, which is the tokens so far. Their own forward is called without ``past``: a module
with forward(model, tokens) is enough. Taps and logits are cut to the new positions, since that is what
the contract asks for.
"""

from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Tap
from gpt2_parity.implementation.signatures import accepts


class WithoutCache:
    """The implementation impl, with the contract's forward; all else is impl's own."""

    def __init__(self, impl: Any):
        self.impl = impl
        self.taps = accepts(impl.forward, "tap")
        self.loaded: list[tuple[Any, int]] = []  # models and their n_ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self.impl, name)

    def load(self, params: Any, hparams: HParams, **target: str) -> Any:
        """The model of impl."""
        model = self.impl.load(params, hparams, **target)
        self.loaded.append((model, hparams.n_ctx))
        return model

    def forward(
        self, model: Any, tokens: np.ndarray, past: np.ndarray | None = None, tap: Tap | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [batch, n, n_vocab] of tokens int32 [batch, n] after past, and all tokens so far.

        Raises ValueError for no tokens, and for more than n_ctx with those in past.
        """
        whole = tokens if past is None else np.concatenate([past, tokens], axis=1)
        self._refuse(model, tokens, whole)
        n = tokens.shape[1]

        def cut(name: str, value: Any) -> None:
            if tap is not None:
                tap(name, self.numpy(value)[:, -n:])

        returned = self.impl.forward(model, whole.copy(), **({"tap": cut} if tap and self.taps else {}))
        logits = returned[0] if isinstance(returned, tuple) else returned
        return self.numpy(logits)[:, -n:], whole

    def numpy(self, x: Any) -> np.ndarray:
        """x [...] on the host; what is there already stays as it is."""
        return x if isinstance(x, np.ndarray) else self.impl.numpy(x)

    def _refuse(self, model: Any, tokens: np.ndarray, whole: np.ndarray) -> None:
        n_ctx = next((n for each, n in self.loaded if each is model), None)
        if tokens.size == 0:
            raise ValueError("no tokens")
        if n_ctx is not None and whole.shape[1] > n_ctx:
            raise ValueError(f"{whole.shape[1]} tokens exceed n_ctx = {n_ctx}")


def with_cache(impl: Any) -> Any:
    """The implementation, or the same with a cache of tokens if it declares that it has none."""
    return WithoutCache(impl) if getattr(impl, "CACHE", "") is None else impl
