"""Mistakes in looking up tokens and positions."""

import math
from collections.abc import Iterator

import numpy as np

from gpt2_parity.mistakes.registry import Scene, mistake, simple


def positions(scene: Scene) -> np.ndarray:
    """The position embeddings [n, n_embd] of the tokens."""
    return np.asarray(scene.params["wpe"][: scene.tokens.shape[1]], np.float64)


def rows(scene: Scene, ids: np.ndarray) -> np.ndarray:
    """The token embeddings [batch, n, n_embd] of ids [batch, n]."""
    return np.asarray(scene.params["wte"][ids], np.float64)


simple(
    "no_positions", "the position embedding wpe is not added", "embedding", lambda s: rows(s, s.tokens)
)
simple(
    "positions_from_1",
    "positions count from 1, not from 0",
    "embedding",
    lambda s: (
        rows(s, s.tokens) + np.roll(np.asarray(s.params["wpe"], np.float64), -1, 0)[: s.tokens.shape[1]]
    ),
)
simple(
    "embedding_scaled",
    "the token embedding is multiplied by sqrt(n_embd)",
    "embedding",
    lambda s: rows(s, s.tokens) * math.sqrt(s.hparams.n_embd) + positions(s),
)
simple(
    "positions_all_0",
    "every token gets position 0",
    "embedding",
    lambda s: rows(s, s.tokens) + positions(s)[:1],
)
simple(
    "tokens_shifted",
    "the embedding of the previous token is used",
    "embedding",
    lambda s: rows(s, np.roll(s.tokens, 1, axis=1)) + positions(s),
)


@mistake(
    "cache_position",
    "in decode, positions do not continue from the cache",
    "embedding",
)
def _(scene: Scene) -> Iterator[np.ndarray]:
    if scene.cuts:
        n, table = scene.tokens.shape[1], np.asarray(scene.params["wpe"], np.float64)
        starts = np.zeros(n, int)
        for cut in scene.cuts:
            starts[cut:] = cut
        for late in (0, 1):  # from 0 in every chunk, or one too low
            index = np.arange(n) - np.where(starts > 0, 1 if late else starts, 0)
            yield rows(scene, scene.tokens) + table[np.maximum(index, 0)]
        index = np.arange(n) + (starts > 0)
        yield rows(scene, scene.tokens) + table[np.minimum(index, len(table) - 1)]
