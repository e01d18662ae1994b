"""Make a failing trial smaller while it still fails, and find out under which condition it fails."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpt2_parity.checks.search.trial import FORWARD, Step, Trial

Fails = Callable[[Trial], bool]
PROBED = (*range(1, 10), 12, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
PROBED += (511, 512, 513, 1023, 1024, 1025)
NEAR = 3  # values on either side of the failing one that are probed


class Budget:
    """Seconds that may be spent."""

    def __init__(self, seconds: float):
        self.until = time.perf_counter() + seconds

    @property
    def spent(self) -> bool:
        return time.perf_counter() >= self.until


def smallest(trial: Trial, fails: Fails, budget: Budget) -> Trial:
    """The smallest trial found that still fails: fewer steps first, then smaller sizes."""
    progress = True
    while progress and not budget.spent:
        progress = False
        for smaller in candidates(trial):
            if budget.spent:
                break
            if smaller.possible() and fails(smaller):
                trial, progress = smaller, True
                break
    return trial


def candidates(trial: Trial) -> Iterator[Trial]:
    """Trials that are smaller in one way, the boldest first."""
    count = len(trial.steps)
    for half in (count // 2, count // 4):
        if half > 1:
            for start in range(0, count, half):
                yield without(trial, set(range(start, min(start + half, count))))
    if count <= 40:
        for i in reversed(range(count)):
            yield without(trial, {i})
    if trial.extremes:
        yield trial._replace(extremes=())
        for name in trial.extremes if len(trial.extremes) > 1 else ():
            yield trial._replace(extremes=(name,))
    if trial.tapped:
        yield trial._replace(tapped=False)
    for name in AXES:
        axis = AXES[name]
        now = axis.get(trial)
        for value in sorted({axis.least, now // 2, now - 1}):
            if axis.least <= value < now:
                yield axis.set(trial, value)
    for i, step in enumerate(trial.steps):
        for value in sorted({1, step.n // 2, step.n - 1}):
            if 1 <= value < step.n:
                yield fitted(with_step(trial, i, step._replace(n=value)))
        plain = step._replace(ids="random", like=-1)
        if step != plain:
            yield with_step(trial, i, plain)


def with_step(trial: Trial, i: int, step: Step) -> Trial:
    return trial._replace(steps=(*trial.steps[:i], step, *trial.steps[i + 1 :]))


def without(trial: Trial, gone: set[int]) -> Trial:
    """The trial without some steps and those that continue them."""
    kept: dict[int, int] = {}
    steps: list[Step] = []
    for i, step in enumerate(trial.steps):
        if i in gone or (step.past >= 0 and step.past not in kept):
            continue
        kept[i] = len(steps)
        like = kept.get(step.like, -1)
        steps.append(step._replace(past=kept.get(step.past, -1), like=like))
    return fitted(trial._replace(steps=tuple(steps)))


def fitted(trial: Trial, slack: int | None = None) -> Trial:
    """The trial with as many positions left at the end as before, or as given."""
    needed = max(trial.lengths(), default=1)
    return trial._replace(hparams=trial.hparams._replace(n_ctx=needed + (slack or 0)))


class Axis(NamedTuple):
    """A size of a trial that can be set alone."""

    get: Callable[[Trial], int]
    set: Callable[[Trial, int], Trial]
    least: int = 1


def hparam(name: str) -> Callable[[Trial, int], Trial]:
    return lambda trial, value: trial._replace(hparams=trial.hparams._replace(**{name: value}))


def with_batch(trial: Trial, value: int) -> Trial:
    """All calls with another number of rows."""
    return trial._replace(steps=tuple(step._replace(batch=value) for step in trial.steps))


def with_head(trial: Trial, value: int) -> Trial:
    """Heads of another size."""
    return hparam("n_embd")(trial, value * trial.hparams.n_head)


def with_n_head(trial: Trial, value: int) -> Trial:
    """Another number of heads of the same size."""
    head = trial.hparams.n_embd // trial.hparams.n_head
    return hparam("n_embd")(hparam("n_head")(trial, value), head * value)


def slack(trial: Trial) -> int:
    return trial.hparams.n_ctx - max(trial.lengths())


AXES = {
    "batch": Axis(lambda trial: max(step.batch for step in trial.steps), with_batch),
    "n_layer": Axis(lambda trial: trial.hparams.n_layer, hparam("n_layer")),
    "n_head": Axis(lambda trial: trial.hparams.n_head, with_n_head),
    "head size": Axis(lambda trial: trial.hparams.n_embd // trial.hparams.n_head, with_head),
    "n_vocab": Axis(lambda trial: trial.hparams.n_vocab, hparam("n_vocab"), 2),
    "free positions": Axis(slack, fitted, 0),
}


def queries(i: int) -> Axis:
    """The new tokens of a step."""
    return Axis(
        lambda trial: trial.steps[i].n,
        lambda trial, value: fitted(with_step(trial, i, trial.steps[i]._replace(n=value)), slack(trial)),
    )


def conditions(trial: Trial, i: int, fails: Fails, budget: Budget) -> list[dict[str, Any]]:
    """On which sizes it depends that a trial fails at step i: those that make it pass.

    One entry for each: {"axis", "fails", "passes"}, with the values that were probed.
    """
    step = trial.steps[i]
    axes = AXES | {"queries" if step.kind == FORWARD else "tokens": queries(i)}
    if step.past >= 0 and trial.steps[step.past].past < 0:
        axes["tokens in the cache"] = queries(step.past)
    found = []
    for name, axis in axes.items():
        now = axis.get(trial)
        values = {now + j for j in range(-NEAR, NEAR + 1)} | {v for v in PROBED if v <= 4 * now + 8}
        seen: dict[bool, list[int]] = {True: [now], False: []}
        for value in sorted(values - {now}, key=lambda value: abs(value - now)):
            if budget.spent:
                break
            other = axis.set(trial, value)
            if value >= axis.least and other.possible():
                seen[fails(other)].append(value)
        if seen[False]:
            found.append({"axis": name, "fails": sorted(seen[True]), "passes": sorted(seen[False])})
    for name in trial.extremes:
        rest = tuple(each for each in trial.extremes if each != name)
        if not budget.spent and not fails(trial._replace(extremes=rest)):
            found.append({"axis": "weights", "fails": [name], "passes": [" and ".join(rest) or "plain"]})
    return found
