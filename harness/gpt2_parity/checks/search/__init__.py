"""Searches for what no listed case shows: other sizes, lengths, values, histories and many calls.

The trials of a corpus, which have failed before, come first. Then trials (trial.py) are drawn by seed
(draw.py), made (calls.py) and judged by the float64 truth of their own models (truth.py, judge.py) until
the budget is spent. What fails is made smaller, and the condition under which it fails is found
(narrow.py). What was seen right is the envelope (envelope.py). What a file needs to show a failure
alone is in alone.py.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpt2_parity.checks.search import draw
from gpt2_parity.checks.search.calls import NotLoaded, play
from gpt2_parity.checks.search.draw import Offer
from gpt2_parity.checks.search.envelope import Envelope
from gpt2_parity.checks.search.judge import (
    DECODE,
    GRADIENT_UNITS,
    LIMITS,
    PREFILL,
    ROUNDING,
    UNITS,
    WRONG,
    Judged,
    Shown,
    judge,
    leaf_of,
)
from gpt2_parity.checks.search.narrow import Budget, conditions, smallest
from gpt2_parity.checks.search.trial import GENERATE, GRADIENTS, Trial
from gpt2_parity.contract.check import Check
from gpt2_parity.contract.plan import IN_PLACE, SLOW, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation import operation
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.mistakes import matching
from gpt2_parity.mistakes.registry import Scene

CASE = "search"
ENOUGH = 8  # failing trials after which the search ends
NARROWED = 2  # scopes whose failing trial is made smaller
LEAST = 3.0  # seconds for that, at least
WHOLE = 40  # steps of a trial that are kept in the evidence
FALL = 3.0  # the factor by which a mistake that explains an error must at least reduce it
REPLAYED = -1
TOO_MANY = 300  # trials after which a scope that none has shown counts as missing


def scopes(plan: Plan) -> list[tuple[str, str]]:
    """The scopes that a search measures, each with its metric."""
    judged = operation.judged(plan.taps, plan.hparams.n_layer)
    first = [op.name for op, metric in judged if metric == ROUNDING]
    leaves = [leaf_of(name) for name in first if name.startswith("h0") or not name[1:2].isdigit()]
    offers = {each.name for each in plan.offers}
    found = [(leaf, ROUNDING) for leaf in dict.fromkeys(leaves)]
    found += [(PREFILL, UNITS), (DECODE, UNITS)]
    found += [(GENERATE, WRONG)] if "generate" in offers else []
    found += [(GRADIENTS, GRADIENT_UNITS)] if "loss_and_grads" in offers else []
    return found


def wanted(plan: Plan) -> bool:
    """Whether to search: every trial is a load, so not where loading is slow.

    A corpus alone takes the first trials besides.
    """
    return plan.reloads != SLOW and (plan.asked.search > 0 or bool(plan.asked.corpus))


def expected(plan: Plan) -> Iterable[Key]:
    return [(CASE, *each) for each in scopes(plan)] if wanted(plan) else []


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    if not wanted(plan):
        return
    search = Search(loaded, plan)
    search.run()
    search.narrow()
    yield from search.measurements()


class Failure(NamedTuple):
    """The trial that showed a failure of a scope: one of the corpus, or the one that costs least."""

    number: int  # of the trial; REPLAYED for one of the corpus
    trial: Trial
    found: Shown
    corpus: str = ""  # its name there


class Search:
    """One search: its worst values, its failures and its envelope."""

    def __init__(self, loaded: Loaded, plan: Plan):
        self.loaded, self.plan = loaded, plan
        self.worst: dict[tuple[str, str], Shown] = {}
        self.failures: dict[tuple[str, str], Failure] = {}
        self.envelope = Envelope()
        self.failed = self.made = self.calls = self.replayed = 0
        self.plainly = False  # whether a trial failed that has no condition
        self.explained: dict[tuple[str, str], Evidence] = {}
        self.mistakes: dict[tuple[str, str], str] = {}

    def offer(self) -> Offer:
        """What is asked."""
        return Offer(
            offers=[each.name for each in self.plan.offers],
            taps=bool(self.plan.taps),
            branches=self.plan.cache != IN_PLACE,
            refuses=self.loaded.target.device == "cpu",
        )

    def replay(self) -> None:
        """Make the trials of the corpus, as far as the implementation offers what they ask for."""
        offer = self.offer()
        for entry in self.plan.asked.corpus:
            trial = draw.asked_of(Trial.of(entry["trial"]), offer)
            judged = self.attempt(trial) if trial else None
            if trial and judged is not None and not judged.outside:
                self.replayed += 1
                self.keep(REPLAYED, trial, judged, entry["name"])

    def run(self) -> None:
        """Replay the corpus, then make trials until the budget is spent and each scope was seen, or
        enough have failed."""
        self.replay()
        before, budget, wanted = self.failed, Budget(self.plan.asked.search), set(scopes(self.plan))
        for number, trial in enumerate(draw.trials(self.plan.asked.seed, self.offer())):
            judged = self.attempt(trial)
            if judged is not None:
                self.keep(number, trial, judged)
            everything = wanted <= self.worst.keys() or number >= TOO_MANY
            if self.failed - before >= ENOUGH or (budget.spent and everything):
                break

    def attempt(self, trial: Trial) -> Judged | None:
        """Make and judge a trial. None if the implementation refuses to load its model."""
        try:
            return judge(play(self.loaded, trial), self.plan.cache)
        except NotLoaded as refusal:
            self.envelope.refused.append(str(refusal))
            return None

    def keep(self, number: int, trial: Trial, judged: Judged, corpus: str = "") -> None:
        """Count a trial and keep its worst values, and its failures."""
        if judged.outside:
            self.envelope.outside += 1
            return
        self.made += 1
        self.calls += len(trial.steps)
        for found in judged.found:
            key = found.scope, found.metric
            worst = self.worst.get(key)
            if worst is None or not found.value <= worst.value:
                self.worst[key] = found
            if found.wrong and self.tells_more(trial, key):
                self.failures[key] = Failure(number, trial, found, corpus)
        if any(found.wrong for found in judged.found):
            self.failed += 1
            self.plainly |= 0 <= number < draw.PLAIN
        else:
            self.envelope.add(trial, judged)

    def tells_more(self, trial: Trial, key: tuple[str, str]) -> bool:
        """Whether a failing trial is the first of a scope, or costs less than the one before."""
        before = self.failures.get(key)
        return before is None or (not before.corpus and trial.work() < before.trial.work())

    def narrow(self) -> None:
        """Localise the failures, and make the trial of the most telling ones smaller."""
        if not self.failures or self.plainly:
            return  # nothing is wrong, or without any condition
        self.localise()
        budget = Budget(max(LEAST, self.plan.asked.search / 2))
        operations = [key for key in self.failures if key[1] == ROUNDING]
        for key in (operations or [*self.failures])[:NARROWED]:
            self.explain(key, budget)

    def localise(self) -> None:
        """Make the cheapest failing trial again with taps: an operation may fail there."""
        plain = [each for each in self.failures.values() if each.found.metric == UNITS]
        if not self.plan.taps or not plain:
            return
        failure = min(plain, key=lambda each: each.trial.work())
        trial = failure.trial._replace(tapped=True)
        judged = None if failure.trial.tapped else self.attempt(trial)
        for found in judged.found if judged else ():
            key = found.scope, found.metric
            if found.wrong and found.metric == ROUNDING and self.tells_more(trial, key):
                self.worst[key] = found
                self.failures[key] = failure._replace(trial=trial, found=found)

    def explain(self, key: tuple[str, str], budget: Budget) -> None:
        """The smallest trial that shows a failure, its condition and, for an operation, its mistake."""
        trial = self.failures[key].trial

        def fails(other: Trial) -> bool:
            return self.shows(other, key) is not None

        trial = smallest(trial, fails, budget) if fails(trial) else trial
        found = self.shows(trial, key)
        if found is None:  # it fails by chance, or because of earlier calls
            self.explained[key] = {"not_again": True}
            return
        facts: Evidence = {"step": found.step}
        facts["condition"] = conditions(trial, found.step, fails, budget)
        if len(trial.steps) <= WHOLE:
            facts["trial"] = trial.as_json()
            facts["shown_by"] = self.shown_by(trial, found)
        self.explained[key] = facts
        if found.scene is not None and math.isfinite(found.value):
            self.mistakes[key] = mistake(found)

    def shown_by(self, trial: Trial, found: Shown) -> Evidence:
        """The step of a trial that shows its failure, and what of it: what a file must compare.

        compare: "logits", "ids", "gradients", or the name of a tap; "" if a call raises or refuses. An
        operation's failure is shown by logits if they are wrong too.
        """
        facts: Evidence = {"step": found.step, "tapped": trial.tapped, "cache": self.plan.cache}
        if {"raised", "accepted_a_bad_id"} & found.evidence.keys():
            return facts | {"compare": ""}
        if found.metric != ROUNDING:
            compared = {UNITS: "logits", WRONG: "ids", GRADIENT_UNITS: "gradients"}
            return facts | {"compare": compared[found.metric]}
        judged = self.attempt(trial._replace(tapped=False))
        for other in judged.found if judged else ():
            if other.metric == UNITS and other.wrong:
                return facts | {"step": other.step, "tapped": False, "compare": "logits"}
        return facts | {"compare": found.evidence["operation"]}

    def shows(self, trial: Trial, key: tuple[str, str]) -> Shown | None:
        """What a trial shows of a failure; None if it does not fail in this way."""
        judged = self.attempt(trial)
        found = judged.found if judged else []
        return next((each for each in found if (each.scope, each.metric) == key and each.wrong), None)

    def measurements(self) -> Iterator[Measurement]:
        """One for each scope: its worst value in all trials, or its failure."""
        for key in scopes(self.plan):
            if key not in self.worst:
                continue
            found = self.worst[key]
            facts: Evidence = {"seed": self.plan.asked.seed, "seconds": self.plan.asked.search}
            facts |= {"trials": self.made, "calls": self.calls, "failed": self.failed}
            facts |= {"replayed": self.replayed} if self.replayed else {}
            evidence: Evidence = {"search": facts}
            if key in self.failures:
                number, _, found, corpus = self.failures[key]
                facts |= {"corpus": corpus} if corpus else {"trial_number": number}
                facts |= self.explained.get(key, {})
                evidence.update(found.evidence)
            if key == (PREFILL, UNITS):
                evidence["envelope"] = self.envelope.as_json()
            yield Measurement(CASE, *key, found.value, evidence, mistake=self.mistakes.get(key, ""))


def mistake(found: Shown) -> str:
    """The known mistake that explains a wrong operation; "" if none does."""
    scene = found.scene
    assert scene is not None
    left = matching.explain(Scene(*scene.around()))
    name = min(left, key=lambda name: left[name], default="")
    explains = bool(name) and left[name] <= scene.most and left[name] <= found.value / FALL
    return name if explains else ""


CHECK = Check(
    name="search",
    establishes="sizes, lengths, values and histories drawn at random are right, in the time allowed",
    expected=expected,
    measure=measure,
    limits=LIMITS,
    after="gradients",
    blames="search",
    blames_by_scope={PREFILL: "forward", DECODE: "cache", GENERATE: GENERATE, GRADIENTS: GRADIENTS},
    precedence=135,
    look_at="what the code does differently under the condition that is given",
)
