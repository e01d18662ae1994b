"""The envelope: the sizes, lengths, values and number of calls that were seen right."""

import math
from collections import defaultdict
from itertools import combinations
from typing import Any

from gpt2_parity.checks.search.judge import Judged
from gpt2_parity.checks.search.trial import FORWARD, REFUSED, Trial
from gpt2_parity.contract.architecture import parameter_shapes
from gpt2_parity.implementation.extremes import EXTREMES

SURE = 0.99  # the probability with which a race of the stated rate would have been seen
PAIRED = ("batch", "queries", "keys", "head size", "n_head", "n_layer", "n_vocab")
REFUSALS = 5  # that are kept as examples


class Envelope:
    """What was seen right so far."""

    def __init__(self) -> None:
        self.trials = self.calls = self.outside = 0
        self.seen: dict[str, set[int]] = defaultdict(set)
        self.pairs: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.extremes = dict.fromkeys(EXTREMES, 0)  # trials with weights that are extreme in this
        self.parameters = 0
        self.refused: list[str] = []

    def add(self, trial: Trial, judged: Judged) -> None:
        """Count a trial in which nothing was wrong."""
        self.trials += 1
        self.calls += len(trial.steps)
        for name in trial.extremes:
            self.extremes[name] += 1
        hparams = trial.hparams
        sizes = {
            "n_embd": hparams.n_embd,
            "head size": hparams.n_embd // hparams.n_head,
            "n_head": hparams.n_head,
            "n_layer": hparams.n_layer,
            "n_vocab": hparams.n_vocab,
            "n_ctx": hparams.n_ctx,
        }
        for step, length in zip(trial.steps, trial.lengths(), strict=True):
            if step.kind == REFUSED:
                continue
            cached = step.kind == FORWARD and step.past >= 0
            calls = sizes | {"batch": step.batch, "keys": length}
            calls["queries" if step.kind == FORWARD else step.kind] = step.n
            if cached:
                calls["queries with a cache"] = step.n
            for name, value in calls.items():
                self.seen[name].add(value)
            for pair in combinations([name for name in PAIRED if name in calls], 2):
                self.pairs[pair].add((stratum(calls[pair[0]]), stratum(calls[pair[1]])))
        for name, (low, high) in judged.ranges.items():
            before = self.ranges.get(name, (low, high))
            self.ranges[name] = min(low, before[0]), max(high, before[1])
        size = sum(math.prod(shape) for shape in parameter_shapes(hparams).values())
        self.parameters = max(self.parameters, size)

    def as_json(self) -> dict[str, Any]:
        """The envelope as JSON. Values of an axis are given as ranges: [[1, 40], [63, 65]]."""
        return {
            "trials": self.trials,
            "calls": self.calls,
            "axes": {name: spans(values) for name, values in sorted(self.seen.items())},
            "pairs": {" x ".join(pair): len(seen) for pair, seen in sorted(self.pairs.items())},
            "ranges": {name: list(both) for name, both in sorted(self.ranges.items())},
            "extremes": dict(self.extremes),
            "largest_model": self.parameters,
            "rarest_race": 1 - (1 - SURE) ** (1 / self.calls) if self.calls else 1.0,
            "outside": self.outside,
            "refused": self.refused[:REFUSALS],
            "n_refused": len(self.refused),
        }


def stratum(value: int) -> int:
    """The power of two below a value: pairs are counted by these."""
    return value.bit_length()


def spans(values: set[int]) -> list[list[int]]:
    """Values as ranges without gaps: {1, 2, 3, 7} is [[1, 3], [7, 7]]."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return found
