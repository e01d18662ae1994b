"""The expected results: records for the checks, and a float64 oracle for timed calls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2_parity.bench.workload import Settings
from gpt2_parity.contract import limits
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import SHAPE, Model
from gpt2_parity.reference import golden, oracle
from gpt2_parity.reference.records import Case, Record, fresh_case, make_record

KEPT = 32  # positions at which logits of timed calls are compared


class Expected:
    """The expected results: records for the checks, and a float64 oracle for timed calls."""

    def __init__(self, model: Model, settings: Settings, folder: Path):
        self.source, self.checkpoint, self.records, self.paths = _records(model, settings, folder)
        self.params, self.hparams = self.checkpoint.params, self.checkpoint.hparams
        # Random tokens, different in every run, so that no implementation can have seen them.
        longest = max(workload.longest for workload in settings.workloads)
        rng = np.random.default_rng(settings.seed)
        self.tokens = rng.integers(0, self.hparams.n_vocab, (1, longest)).astype(np.int32)
        lengths = [t.n for t in settings.workloads if t.phase != "decode"] or [1]
        spread = np.linspace(0, max(lengths) - 1, KEPT).astype(np.int32)
        positions = np.unique([*spread, *(n - 1 for n in lengths)])
        logits = oracle.forward(self.params, self.hparams, self.tokens[:, : max(lengths)])[:, positions]
        self.path = folder / "expected.safetensors"
        arrays = {"tokens": self.tokens, "positions": positions.astype(np.int32), "logits": logits}
        safetensors_mmap.write(self.path, arrays)
        self.noise = max(record.noise(settings.target.dtype) for record in self.records)
        self._computed: dict[bytes, np.ndarray] = {}

    def units(self, difference: float) -> float:
        """A difference of logits in noise units."""
        return difference / self.noise

    def unlikely(self, n_past: int, ids: Sequence[Sequence[int]]) -> str:
        """What is wrong with ids [batch, n] chosen after n_past tokens, or "" if nothing is.

        Each must be the likeliest token after those before it, or within the noise of it.
        """
        tie = limits.near_tie(self.noise)
        for row in sorted({tuple(row) for row in ids}):
            if not all(0 <= i < self.hparams.n_vocab for i in row):
                return f"ids {row} are not all in the vocabulary"
            chosen = np.array(row)
            logits = self._after(n_past, chosen)
            short = logits.max(axis=-1) - logits[np.arange(len(row)), chosen]
            if (short > tie).any():
                at = int(np.argmax(short > tie))
                return f"new token {at} after {n_past} has a logit {short[at]:.3g} below the best one"
        return ""

    def _after(self, n_past: int, ids: np.ndarray) -> np.ndarray:
        """Float64 logits [n, n_vocab] from which ids [n] were to be chosen, computed once."""
        tokens = np.concatenate([self.tokens[0, :n_past], ids[:-1].astype(np.int32)])[None]
        key = tokens.tobytes()
        if key not in self._computed:
            logits = oracle.forward(self.params, self.hparams, tokens)
            self._computed[key] = logits[0, n_past - 1 :].copy()
        return self._computed[key]


def _records(
    model: Model, settings: Settings, folder: Path
) -> tuple[str, checkpoint.Checkpoint, list[Record], dict[str, str]]:
    """The source of what is expected, the checkpoint, the records, and their files.

    The records are the golden ones. For generated weights without golden records, the same oracle
    computes one now.
    """
    if (model.records / "manifest.json").is_file() or not model.name.startswith(SHAPE):
        loaded, records = golden.read(model)
        paths = {r.name: str(model.records / f"{r.name}.safetensors") for r in records}
        return "golden records", loaded, records, paths
    loaded = checkpoint.load(model.checkpoint)
    tokens = fresh_case(loaded.hparams, settings.seed).tokens
    case = Case("fresh", tokens, 2)
    record = make_record(case, loaded.params, loaded.hparams, (settings.target.dtype,))
    path = folder / f"{case.name}.safetensors"
    safetensors_mmap.write(path, record.arrays)
    return "float64 oracle on the spot", loaded, [record], {case.name: str(path)}
