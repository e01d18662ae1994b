"""What is right: records for the checks, and a float64 oracle for what is timed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2_parity.bench.workload import Plans
from gpt2_parity.contract import limits
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model import checkpoint
from gpt2_parity.model.catalogue import SHAPE, Model
from gpt2_parity.reference import golden, oracle
from gpt2_parity.reference.records import Case, Record, fresh_case, make_record

KEPT = 32  # positions at which logits of timed calls are compared


class Expected:
    """What is right: records for the checks, and a float64 oracle for what is timed."""

    def __init__(self, model: Model, plans: Plans, folder: Path):
        self.source, self.checkpoint, self.records, self.paths = _records(model, plans, folder)
        self.params, self.hparams = self.checkpoint.params, self.checkpoint.hparams
        # Random tokens, drawn anew in every run: nobody can have seen them.
        longest = max(workload.longest for workload in plans.workloads)
        rng = np.random.default_rng(plans.seed)
        self.tokens = rng.integers(0, self.hparams.n_vocab, (1, longest)).astype(np.int32)
        lengths = [t.n for t in plans.workloads if t.phase != "decode"] or [1]
        spread = np.linspace(0, max(lengths) - 1, KEPT).astype(np.int32)
        positions = np.unique([*spread, *(n - 1 for n in lengths)])
        logits = oracle.forward(self.params, self.hparams, self.tokens[:, : max(lengths)])[:, positions]
        self.path = folder / "truth.safetensors"
        arrays = {"tokens": self.tokens, "positions": positions.astype(np.int32), "logits": logits}
        safetensors_mmap.write(self.path, arrays)
        self.noise = max(record.noise(plans.target.dtype) for record in self.records)
        self._told: dict[bytes, np.ndarray] = {}

    def units(self, difference: float) -> float:
        """A difference of logits in noise units."""
        return difference / self.noise

    def unlikely(self, n_past: int, ids: Sequence[Sequence[int]]) -> str:
        """What is wrong with ids [batch, n] chosen after n_past tokens; "" if nothing.

        Each must be the likeliest given those before it, or within the noise of it.
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
        """Float64 logits [n, n_vocab] from which each of ids was to be chosen; computed once."""
        tokens = np.concatenate([self.tokens[0, :n_past], ids[:-1].astype(np.int32)])[None]
        key = tokens.tobytes()
        if key not in self._told:
            logits = oracle.forward(self.params, self.hparams, tokens)
            self._told[key] = logits[0, n_past - 1 :].copy()
        return self._told[key]


def _records(
    model: Model, plans: Plans, folder: Path
) -> tuple[str, checkpoint.Checkpoint, list[Record], dict[str, str]]:
    """Where the truth comes from, the checkpoint, the records and their files.

    The golden ones; for generated weights without any, one is made on the spot by the same oracle.
    """
    if (model.records / "manifest.json").is_file() or not model.name.startswith(SHAPE):
        loaded, records = golden.read(model)
        paths = {r.name: str(model.records / f"{r.name}.safetensors") for r in records}
        return "golden records", loaded, records, paths
    loaded = checkpoint.load(model.checkpoint)
    tokens = fresh_case(loaded.hparams, plans.seed).tokens
    case = Case("fresh", tokens, 2)
    record = make_record(case, loaded.params, loaded.hparams, (plans.target.dtype,))
    path = folder / f"{case.name}.safetensors"
    safetensors_mmap.write(path, record.arrays)
    return "float64 oracle on the spot", loaded, [record], {case.name: str(path)}
