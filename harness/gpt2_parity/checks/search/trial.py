"""A trial: a model with generated weights and a history of calls on it, as plain data.

A history is a tree: each forward call makes a cache, and a later call may continue any cache that was
made before it. So caches branch, are dropped and taken up again, and other prompts come in between.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.implementation.extremes import EXTREMES

MOST = 1e13  # floating-point operations of a trial that is read from a file: some minutes
LARGEST = 2**20  # of each of its numbers
CALL = 1e6  # floating-point operations in the time that calling one layer takes
LEAST = 4  # n_embd; a layer norm of two channels has the sign of their difference: rounding decides it
TAPPED = 2.0  # how much more a trial costs whose operations are judged
FORWARD, GENERATE, GRADIENTS, REFUSED = "forward", "generate", "gradients", "refused"
OTHER_FIRST = "other_first"  # ids: those of the step like, but for the first of each row
KINDS, IDS = (
    (FORWARD, GENERATE, GRADIENTS, REFUSED),
    ("random", "text", "zero", "last", "one", OTHER_FIRST),
)


class Step(NamedTuple):
    """One call. Its tokens int32 [batch, n] are random, or begin like those of an earlier step.

    ids "text": rows and columns of one random text, from as many columns on as are in the cache. The
    truth of all such steps is that of the longest.
    """

    kind: str = FORWARD
    past: int = -1  # the step whose cache is continued; -1: none
    batch: int = 1
    n: int = 1
    like: int = -1  # the step whose tokens are repeated as far as they reach; -1: none
    ids: str = "random"  # or "text", "zero", "last" (n_vocab - 1), "one" (the same id throughout)
    n_new: int = 0  # for generate


class Trial(NamedTuple):
    """A model and a history."""

    hparams: HParams
    steps: tuple[Step, ...]
    extremes: tuple[str, ...] = ()  # what is large or small in the weights: names in extremes.py
    seed: int = 0  # of weights and tokens
    tapped: bool = False

    def as_json(self) -> dict[str, Any]:
        """The trial as JSON; of each step only what differs from the default."""
        steps = [
            {k: v for k, v in step._asdict().items() if v != Step._field_defaults[k]}
            for step in self.steps
        ]
        return {**self._asdict(), "hparams": self.hparams._asdict(), "steps": steps}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Trial":
        """The trial that as_json wrote. Raises TypeError, KeyError or ValueError for anything else."""
        steps = tuple(Step(**step) for step in data["steps"])
        hparams = HParams(**data["hparams"])
        trial = cls(hparams, steps, tuple(data["extremes"]), data["seed"], bool(data["tapped"]))
        if not trial.sound():
            raise ValueError("it has calls or sizes that no trial has")
        return trial

    def sound(self) -> bool:
        """Whether every value is of its kind and in its range, and the contract allows every call."""
        numbers = [*self.hparams]
        for i, step in enumerate(self.steps):
            if step.kind not in KINDS or step.ids not in IDS or max(step.past, step.like) >= i:
                return False
            numbers += [step.past + 1, step.like + 1, step.batch, step.n, step.n_new]
        if not all(type(number) is int and 0 <= number <= LARGEST for number in numbers):
            return False
        if type(self.seed) is not int or self.seed < 0 or not EXTREMES.keys() >= {*self.extremes}:
            return False
        return min(self.hparams) > 0 and self.possible() and self.work() <= MOST

    def lengths(self) -> list[int]:
        """The number of tokens, those in its cache included, after each step."""
        total: list[int] = []
        for step in self.steps:
            before = total[step.past] if step.past >= 0 else 0
            total.append(before + step.n + (step.n_new - 1 if step.kind == GENERATE else 0))
        return total

    def possible(self) -> bool:
        """Whether the contract allows every call of it, and it can be judged."""
        if self.hparams.n_embd % self.hparams.n_head or not self.steps or self.hparams.n_embd < LEAST:
            return False
        for step, length in zip(self.steps, self.lengths(), strict=True):
            too_long = length > self.hparams.n_ctx
            if too_long or min(step.n, step.batch) < 1:
                return False
            if step.past >= 0:
                before = self.steps[step.past]
                if before.kind != FORWARD or before.batch != step.batch:
                    return False
            if (step.kind == GENERATE and step.n_new < 1) or (step.kind == GRADIENTS and step.n < 2):
                return False
        return True

    def tokens(self) -> list[np.ndarray]:
        """The tokens int32 [batch, n] of each step."""
        made: list[np.ndarray] = []
        text = self._text()
        lengths = self.lengths()
        for i, step in enumerate(self.steps):
            before = lengths[step.past] if step.past >= 0 else 0
            ids = self._ids(i, step, text[: step.batch, before : before + step.n])
            if step.like >= 0:
                other = made[step.like]
                rows, columns = (min(pair) for pair in zip(ids.shape, other.shape, strict=True))
                ids[:rows, :columns] = other[:rows, :columns]
            if step.ids == OTHER_FIRST:
                ids[:, 0] = (ids[:, 0] + 1) % self.hparams.n_vocab
            made.append(ids)
        return made

    def _text(self) -> np.ndarray:
        """The text of the steps that follow it, int32 [batch, n]; a longer one begins like it."""
        follow = [
            (step.batch, n)
            for step, n in zip(self.steps, self.lengths(), strict=True)
            if step.ids == "text"
        ]
        batch, n = (max(sizes, default=0) for sizes in zip(*follow, strict=True)) if follow else (0, 0)
        rows = [
            np.random.default_rng([self.seed, row, 1]).integers(0, self.hparams.n_vocab, n)
            for row in range(batch)
        ]
        return np.array(rows, np.int32).reshape(batch, n)

    def _ids(self, i: int, step: Step, text: np.ndarray) -> np.ndarray:
        shape, n_vocab = (step.batch, step.n), self.hparams.n_vocab
        rng = np.random.default_rng([self.seed, i])
        match step.ids:
            case "text":
                return text.copy()
            case "zero":
                return np.zeros(shape, np.int32)
            case "last":
                return np.full(shape, n_vocab - 1, np.int32)
            case "one":
                return np.full(shape, self.seed % n_vocab, np.int32)
        return rng.integers(0, n_vocab, shape).astype(np.int32)

    def work(self) -> float:
        """What it costs, in floating-point operations, its truth and noise included; roughly."""
        n_vocab, n_ctx, n_embd, n_head, n_layer = self.hparams
        n_params = (n_vocab + n_ctx + 2) * n_embd + n_layer * (12 * n_embd + 13) * n_embd
        total = 25.0 * n_params  # weights are drawn and converted
        lengths = self.lengths()
        for step, length in zip(self.steps, lengths, strict=True):
            passes = {GRADIENTS: 40.0, FORWARD: 7.0, GENERATE: 14.0, REFUSED: 0.0}[step.kind]
            if step.ids != "random" and step.kind == FORWARD:
                passes = 1.0  # many steps, and one truth
            new = step.batch * (length - (lengths[step.past] if step.past >= 0 else 0))
            total += CALL * n_layer + passes * new * (
                2.0 * n_params + n_layer * length * (4.0 * n_embd + 60.0 * n_head)
            )
        return total * (TAPPED if self.tapped else 1)


def paths(steps: Sequence[Step]) -> list[list[int]]:
    """For each forward step the steps from the first without a cache up to it."""
    ways: list[list[int]] = []
    for i, step in enumerate(steps):
        ways.append([*(ways[step.past] if step.past >= 0 else []), i])
    return ways
