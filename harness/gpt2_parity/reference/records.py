"""A record: one case and the right results for it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_parity.contract import dtypes
from gpt2_parity.contract.architecture import HParams, tap_names
from gpt2_parity.contract.plan import CaseShape
from gpt2_parity.model.tokenizer import Tokenizer
from gpt2_parity.reference import noise, oracle

PROMPT = "Alan Turing theorized that computers would one day become"
CONTINUATION = " the most powerful machines on the planet."
FRESH = "fresh"  # the case of random tokens, new in every run: no record may have its name
KEPT = 32  # positions kept of each tap in a longer case: records stay small enough to ship


class Case(NamedTuple):
    """The tokens that a record belongs to."""

    name: str
    tokens: np.ndarray  # int32 [batch, n]
    n_new: int  # greedy tokens to record

    @property
    def shape(self) -> CaseShape:
        """Its name and sizes."""
        batch, n = self.tokens.shape
        return CaseShape(self.name, batch, n, self.n_new)


class Record(NamedTuple):
    """One case and the right results for it; reference/golden.py lists the arrays and their shapes."""

    name: str
    arrays: Mapping[str, np.ndarray]
    n_layer: int

    @property
    def tokens(self) -> np.ndarray:
        """int32 [batch, n]"""
        return self.arrays["tokens"]

    @property
    def logits(self) -> np.ndarray:
        """float64 [batch, n, n_vocab]"""
        return self.arrays["logits"]

    def tap(self, name: str) -> np.ndarray:
        """The activation of a tap at the kept positions: float64 [batch, kept, width]"""
        return self.arrays[f"taps/{name}"]

    def noise(self, dtype: str, name: str = "logits") -> float:
        """One noise unit at a tap or of the logits: the draws' median of the greatest difference."""
        if name == "logits":
            return float(np.median(self.arrays[f"noise/{dtype}/logits"][:, 0]))
        column = tap_names(self.n_layer).index(name)
        return float(np.median(self.arrays[f"noise/{dtype}/taps"][:, column]))

    def logits_noise(self, dtype: str) -> tuple[float, float, float]:
        """One noise unit of the logits' greatest difference, of their RMS and of their KL (nats)."""
        greatest, rms, kl = np.median(self.arrays[f"noise/{dtype}/logits"], axis=0)
        return float(greatest), float(rms), float(kl)


def cases(hparams: HParams, tokenizer: Tokenizer | None) -> list[Case]:
    """The golden cases: seed prompt, unconditional, one token, full context, and a batch.

    A model without a tokenizer, such as a generated one, gets short rows of random tokens.
    """
    if tokenizer is None:
        rng = np.random.default_rng(0)
        shapes = {"tokens": (1, min(128, hparams.n_ctx)), "one_token": (1, 1), "batch": (4, 12)}
        return [
            Case(name, rng.integers(0, hparams.n_vocab, shape).astype(np.int32), 2 * (name == "batch"))
            for name, shape in shapes.items()
        ]
    seed = tokenizer.encode(PROMPT)
    rng = np.random.default_rng(0)
    full = rng.integers(0, hparams.n_vocab, (1, hparams.n_ctx))
    rows = rng.integers(0, hparams.n_vocab, (3, len(seed) // 2))
    specs = [
        ("seed", [seed], len(tokenizer.encode(CONTINUATION))),
        ("unconditional", [[tokenizer.end_of_text]], 16),
        ("one_token", [seed[:1]], 16),
        ("full_context", full, 0),
        ("batch", [seed[: len(seed) // 2], *rows], 8),
    ]
    return [Case(name, np.asarray(tokens, np.int32), n_new) for name, tokens, n_new in specs]


def fresh_case(hparams: HParams, seed: int) -> Case:
    """Random tokens int32 [2, up to 24], drawn from seed, that no implementation can have seen.

    Ids 0 and n_vocab - 1 (GPT-2's end of text), which some implementations take for padding, always
    occur: each starts a row, ends the other row, and is in the middle of both.
    """
    n, last = min(24, hparams.n_ctx), hparams.n_vocab - 1
    tokens = np.random.default_rng(seed).integers(0, hparams.n_vocab, (2, n))
    tokens[:, -2:] = np.array([[last, last], [0, 0]])[:, :n]
    tokens[:, 0] = 0, last
    middle = slice(n // 2, n // 2 + 3)
    tokens[:, middle] = np.array([[0, 0, last], [last, last, 0]])[:, : n - n // 2]
    return Case(FRESH, tokens.astype(np.int32), 0)


def make_record(
    case: Case,
    params: Mapping[str, np.ndarray],
    hparams: HParams,
    dtypes: Sequence[str] = dtypes.DTYPES,
) -> Record:
    """The record of a case by the float64 NumPy oracle, with its noise floor at each dtype."""
    n = case.tokens.shape[1]
    positions = np.unique(np.linspace(0, n - 1, min(n, KEPT)).astype(np.int32))
    arrays = {"tokens": case.tokens, "positions": positions}

    def keep(name: str, value: np.ndarray) -> None:
        if name == "logits":
            arrays[name] = value
        else:
            arrays[f"taps/{name}"] = value[:, positions]

    arrays |= noise.measure(params, hparams, case.tokens, keep, seed=0, dtypes=dtypes)
    arrays["greedy"], arrays["margins"] = oracle.greedy(params, hparams, case.tokens, case.n_new)
    return Record(case.name, arrays, hparams.n_layer)


def shape_of(record: Record) -> CaseShape:
    """The name and sizes of a record."""
    batch, n = record.tokens.shape
    return CaseShape(record.name, batch, n, record.arrays["greedy"].shape[1])
