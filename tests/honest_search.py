"""Search honest variants: none may alarm, whatever the trial.

    python tests/honest_search.py [--only NAME] [--seeds 1] [--first 0] [--trials 100] [--slow]

Prints the greatest share of a limit that each variant used, by scope, and every alarm with the seed and
the number of its trial. JAX and TensorFlow, which compile for every shape, are tried with --slow.
"""

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
if __name__ == "__main__":
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np

import variants
from gpt2_parity.checks.search import draw
from gpt2_parity.checks.search.calls import NotLoaded, play
from gpt2_parity.checks.search.draw import Offer
from gpt2_parity.checks.search.judge import judge
from gpt2_parity.checks.search.trial import Trial
from gpt2_parity.checks.search.truth import Truth
from gpt2_parity.contract.plan import IN_PLACE, KEPT
from gpt2_parity.implementation.extremes import weights
from gpt2_parity.implementation.loaded import Loaded
from variants import VARIANTS, Variant

SLOW = ("jax", "tensorflow")
OFFERED = ("generate", "loss_and_grads")


class Tried(NamedTuple):
    """A variant, how it did, and what of the limits it used."""

    variant: Variant
    module: Any
    alarms: list[str]
    used: dict[str, float]  # the greatest share of a limit, by scope

    @property
    def cache(self) -> str:
        return getattr(self.module, "CACHE", KEPT)

    def offer(self) -> Offer:
        offers = tuple(name for name in OFFERED if hasattr(self.module, name))
        return Offer(offers, getattr(self.module, "TAPS", "all") != (), self.cache != IN_PLACE)

    def attempt(self, label: str, trial: Trial, params: dict[str, Any], known: list[Truth]) -> None:
        """Judge a trial, and keep what it used of its limits."""
        loaded = Loaded(self.module, None, self.variant.target, {}, None, [])  # type: ignore[arg-type]
        try:
            with np.errstate():  # a variant that changes it changes it for itself
                judged = judge(play(loaded, trial, params), self.cache, known)
        except NotLoaded:
            return
        for found in judged.found:
            if found.limit:
                share = found.value / found.limit
                self.used[found.scope] = max(self.used[found.scope], share)
            if found.wrong:
                self.alarms.append(
                    f"{self.variant.name}, {label}: {found.scope} {found.metric} {found.value:.3g}, "
                    f"step {found.step}, {dict(found.evidence)}, {trial.hparams}, {trial.extremes}"
                )


def search(chosen: list[Variant], seed: int, n_trials: int, folder: Path) -> list[Tried]:
    """Try variants by the same trials, whose truths they share where dtype and offer are the same."""
    tried = [Tried(each, variants.load(each, folder), [], defaultdict(float)) for each in chosen]
    groups: dict[Any, list[Tried]] = defaultdict(list)
    for each in tried:
        groups[each.offer(), each.variant.target.dtype].append(each)
    for (offer, dtype), group in groups.items():
        for number, trial in zip(range(n_trials), draw.trials(seed, offer), strict=False):
            params, known = weights(trial.hparams, trial.extremes, trial.seed, dtype), list[Truth]()
            for each in group:
                each.attempt(f"seed {seed} trial {number}", trial, params, known)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trials", type=int, default=100, help="trials of each seed")
    parser.add_argument("--slow", action="store_true", help="JAX and TensorFlow too")
    options = parser.parse_args()
    chosen = [
        each
        for each in VARIANTS
        if options.only in each.name and (options.slow or each.specimen not in SLOW)
    ]
    alarms = []
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for each in search(chosen, seed, options.trials, Path(folder)):
                alarms += each.alarms
                worst = max(each.used, key=lambda name: each.used[name], default="")
                print(f"{each.variant.name}: {each.used[worst]:.0%} of a limit ({worst})", *each.alarms,
                      sep="\n  ", flush=True)  # fmt: skip
    print(f"{len(chosen)} variants, {options.seeds} seeds, {options.trials} trials each: "
          f"{len(alarms)} alarms")  # fmt: skip
    sys.exit(bool(alarms) or not chosen)


if __name__ == "__main__":
    main()
