"""Which trials are made, and in what order: a function of the seed, the dtype and what is offered.

The values of each axis are those at which kernels change their path: at, before and after powers of two
and multiples of tiles, primes, and the official sizes. They are drawn from strata, and strata are
combined by a covering array, so that every pair of strata occurs within the first few dozen trials.
Between them come sweeps: histories on one small model that take every length, every batch or every
number of keys in turn, or repeat a call until a rare race shows.

Trials begin cheap and become dearer, whatever the budget: a larger budget only goes further.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from allpairspy import AllPairs  # type: ignore[import-untyped]  # it has no annotations

from gpt2_parity.checks.search.trial import (
    FORWARD,
    GENERATE,
    GRADIENTS,
    LEAST,
    OTHER_FIRST,
    REFUSED,
    Step,
    Trial,
)
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.implementation.extremes import EXTREMES, ILL_CONDITIONED

# Each axis by stratum; a trial takes the next value of its stratum, in random order.
AXES: dict[str, list[list[int]]] = {
    "batch": [[1], [2, 3, 4], [5, 6, 7, 8, 9], [*range(10, 18)], [*range(18, 34)], [40, 47, 63, 64, 65]],
    "n": [
        *([1], [2, 3, 4, 5], [6, 7, 8, 9], [*range(10, 18)], [*range(18, 34)], [*range(35, 64)]),
        *([63, 64, 65], [80, 95, 96, 97, 100, 112], [127, 128, 129, 130], [255, 256, 257]),
    ],
    "chunk": [[1], [2, 3, 4], [5, 6, 7], [8, 9], [*range(10, 18)], [*range(18, 34)], [47, 63, 64, 65]],
    "head": [
        *([1, 2, 3], [4, 5, 7, 8], [6, *range(9, 18)], [*range(18, 34)]),
        *([*range(34, 62)], [62, 63, 64, 65, 66], [72, *range(75, 126, 5), 112, 126, 127, 128, 129]),
    ],
    "n_head": [[1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 15], [14, 16, 17], [*range(18, 26)]],
    "n_layer": [[1], [1], [1], [2], [2, 3], [*range(4, 8)], [*range(8, 16)], [*range(16, 49)]],
    "n_vocab": [
        *([*range(2, 9)], [*range(9, 63)], [63, 64, 65, 97, 100], [127, 128, 129, 192, 208]),
        *([255, 256, 257, 301], [500, 511, 512, 513, 768, 1000], [1023, 1024, 1025, 2047, 2049, 3001]),
        [4095, 4096, 4097, 5003, 8191, 8193, 10007, 16383, 16385, 20011, 32767, 32769, 50257, 50304],
    ],
    "n_ctx": [  # or as many as are needed, if these are more
        *([0], [0], [*range(1, 65)], [63, 64, 65, *range(80, 125, 16), 127, 128, 129, 140]),
        *(
            [*range(144, 257, 16), 255, 257],
            [300, 511, 512, 513, 700, 768],
            [1000, 1023, 1024, 1025, 1100],
        ),
    ],
}
WIDE = (
    225,
    256,
    384,
    512,
    513,
    640,
    768,
    769,
    900,
    1024,
    1280,
    1600,
)  # n_embd, official ones among them
NARROW = 400  # n_embd of other models, at most
WIDEST = (900, 1024, 1280, 1536, 1600)
HEADS = 64  # of every official model
LONG = 1100  # keys: beyond the official n_ctx, and beyond a kernel's 1,024
NEAR_POWERS = {2**k + d for k in range(1, 12) for d in (-1, 0, 1)}
CUTS = [*NEAR_POWERS, *range(16, 257, 16), *range(320, LONG - 9, 64)]
ROWS = [*NEAR_POWERS, *range(16, 257, 16), *range(320, 2100, 64)]
ELEMENTS = (1.5e5, 2e3, 2e4)  # of all hidden states of a prompt, in turn
FEW, MANY = 5, 12  # walks of a trial with taps and without
FIRST, LATER = 6e7, 8e6  # work of the first trials, and how much more each later one may cost
SWEEP = 1e10  # work of a sweep, however early it comes
TRIES = 20
PLAIN = 2  # trials that plain makes
FUNCTIONS = {GENERATE: "generate", GRADIENTS: "loss_and_grads"}  # by kind of step


More = list[Step]


class Offer(NamedTuple):
    """What of an implementation can be asked."""

    offers: Collection[str] = ()  # names of its capabilities
    taps: bool = True
    branches: bool = True  # whether a cache may be continued more than once
    refuses: bool = True  # whether bad tokens may be tried: on a GPU they may end the process


def trials(seed: int, offer: Offer) -> Iterator[Trial]:
    """Trials without end; the same seed and offer give the same ones."""
    rng = random.Random(seed)
    yield from plain(rng, offer)
    sweeps = itertools.cycle(SWEEPS)
    combined = combinations(rng)
    for i in itertools.count(PLAIN):
        swept = i % 4 == 3
        most = SWEEP if swept else FIRST + LATER * i
        make: Callable[[], Trial] = (
            functools.partial(next(sweeps), rng, offer)
            if swept
            else functools.partial(mixed, rng, offer, next(combined), ELEMENTS[i % 4])
        )
        for _ in range(TRIES):
            trial = make()
            if trial.possible() and trial.work() <= most:
                yield trial
                break


def asked_of(trial: Trial, offer: Offer) -> Trial | None:
    """A trial, without taps if there are none; None if it asks for what is not offered."""
    kinds = {step.kind for step in trial.steps}
    pasts = [step.past for step in trial.steps if step.past >= 0]
    needed = {name for kind, name in FUNCTIONS.items() if kind in kinds}
    if not needed <= {*offer.offers} or (REFUSED in kinds and not offer.refuses):
        return None
    if not offer.branches and len(pasts) > len({*pasts}):
        return None
    return trial._replace(tapped=trial.tapped and offer.taps)


def plain(rng: random.Random, offer: Offer) -> Iterator[Trial]:
    """The first trials: a small model and all that is offered, without taps and with them.

    What fails here fails under no condition.
    """
    steps = [Step(batch=2, n=5), Step(past=0, batch=2, n=3), Step(past=1, batch=2)]
    steps += [Step(REFUSED, -1, 2, 2), Step(past=2, batch=2)] if offer.refuses else []
    steps += [Step(GENERATE, -1, 2, 5, n_new=3)] if "generate" in offer.offers else []
    steps += [Step(GRADIENTS, -1, 2, 5)] if "loss_and_grads" in offer.offers else []
    trial = Trial(HParams(61, 14, 24, 3, 2), tuple(steps), (), rng.randrange(2**31))
    yield trial
    yield trial._replace(tapped=offer.taps)


def deck(rng: random.Random, values: Sequence[int]) -> Iterator[int]:
    """Values without end in random order; none comes again before all others."""
    while True:
        yield from rng.sample(values, len(values))


def combinations(rng: random.Random) -> Iterator[dict[str, int]]:
    """Values by axis, such that every pair of strata occurs, again and again with other values."""
    decks = {name: [deck(rng, values) for values in strata] for name, strata in AXES.items()}
    wide, widest = deck(rng, WIDE), deck(rng, WIDEST)
    while True:
        for row in AllPairs([rng.sample(some, len(some)) for some in decks.values()]):
            axes = {name: next(values) for name, values in zip(decks, row, strict=True)}
            chance = rng.random()
            if chance < 0.06:
                axes["n_embd"] = next(widest if chance < 0.01 else wide)
            yield axes


def mixed(rng: random.Random, offer: Offer, axes: dict[str, int], most: float) -> Trial:
    """A random history with the given sizes. What would cost too much is made smaller.

    most: elements of all hidden states of a prompt.
    """
    head, n_head = axes["head"], axes["n_head"]
    while head * n_head > NARROW:
        head, n_head = rng.choice([(head, (n_head + 1) // 2), ((head + 1) // 2, n_head)])
    n_embd = max(head, -(-LEAST // n_head)) * n_head
    batch, n, chunk, n_layer = axes["batch"], axes["n"], axes["chunk"], axes["n_layer"]
    if "n_embd" in axes:
        n_embd, n_layer, batch, n = axes["n_embd"], 1, min(batch, 3), min(n, 9)
        n_head = math.gcd(n_embd, n_embd // HEADS)
    while n_embd * n_embd * n_layer > 2e5 and n_layer > 1:
        n_layer = (n_layer + 1) // 2
    while batch * n > 1 and batch * n * max(n_embd * n_layer, axes["n_vocab"] // 6) > most:
        if batch > 1 and (n == 1 or rng.random() < 0.5):
            batch = (batch + 1) // 2
        else:
            n = (n + 1) // 2
    extremes = tuple(rng.sample([*EXTREMES], rng.choice([0, 0, 0, 0, 0, 1, 1, 1, 2])))
    if n_embd < 3:  # the layer norm of two channels is their order, which rounding may decide
        extremes = ()
    if ILL_CONDITIONED.intersection(extremes):
        offer = offer._replace(offers=[name for name in offer.offers if name != "loss_and_grads"])
    tapped = offer.taps and rng.random() < 0.2
    steps = history(rng, offer, batch, n, min(chunk, 4 * n), FEW if tapped or n_embd > 400 else MANY)
    needed = max(Trial(HParams(2, 1, 1, 1, 1), steps).lengths())
    n_ctx = max(needed, axes["n_ctx"])
    hparams = HParams(axes["n_vocab"], n_ctx, n_embd, n_head, n_layer)
    return Trial(hparams, steps, extremes, rng.randrange(2**31), tapped)


def walks(rng: random.Random, offer: Offer, batch: int, n: int, ids: str, count: int) -> More:
    """Prompts and chunks of other sizes from a text [batch, n]: they need no other truth."""
    steps: More = []
    for _ in range(count):
        rows = rng.choice([1, batch, size_below(rng, batch)])
        length = size_below(rng, n)
        first = rng.choice([0, size_below(rng, n)])
        if 0 < first < n:
            steps.append(Step(batch=rows, n=first, ids=ids))
            length = min(length, n - first)
        steps.append(Step(past=len(steps) - 1 if 0 < first < n else -1, batch=rows, n=length, ids=ids))
    return steps


def size_below(rng: random.Random, most: int) -> int:
    """A size of 1 to most: any, or by its logarithm."""
    return rng.randint(1, most) if rng.random() < 0.5 else int(most ** rng.random())


def history(
    rng: random.Random, offer: Offer, batch: int, n: int, chunk: int, count: int
) -> tuple[Step, ...]:
    """A prefill, a chunk and a token, walks on their text, and then some of what follows.

    Branches, other prompts with equal beginnings or chunks, refusals, generate and gradients.
    """
    ids = rng.choice(["text"] * 7 + ["zero", "last", "one"])
    steps = [Step(batch=batch, n=n, ids=ids), Step(past=0, batch=batch, n=chunk, ids=ids)]
    steps.append(Step(past=1, batch=batch, ids=ids))
    for step in walks(rng, offer, batch, n + chunk + 1, ids, count):
        steps.append(step._replace(past=len(steps) - 1 if step.past >= 0 else -1))
    used = {step.past for step in steps}
    for _ in range(rng.randint(0, 3)):
        kinds = [other_prompt, same_chunk, continued, continued]
        if offer.branches:
            kinds += [branch, branch]
        if offer.refuses:
            kinds.append(refusal)
        if "generate" in offer.offers:
            kinds.append(generated)
        if "loss_and_grads" in offer.offers and batch * n <= 64:
            kinds.append(gradients)
        for step in rng.choice(kinds)(rng, steps, used, offer):
            used |= {step.past}
            steps.append(step)
    return tuple(steps)


def other_prompt(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    """Another prompt, often with an equal beginning or of equal length."""
    first = steps[0]
    n = rng.choice([first.n, first.n, first.n + 1, max(1, first.n // 2), rng.randint(1, 9)])
    batch = rng.choice([first.batch, first.batch, 1, 2, rng.randint(1, 9)])
    return [Step(batch=batch, n=n, like=rng.choice([-1, -1, 0]))]


def same_chunk(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    """Another prompt of the same shape, continued by the same chunk."""
    at = len(steps)
    first, chunk = steps[0], steps[1]
    return [
        Step(batch=first.batch, n=first.n),
        Step(past=at, batch=first.batch, n=chunk.n, like=1),
    ]


def continued(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    """Continue a cache that has not been continued."""
    free = [i for i, step in enumerate(steps) if step.kind == FORWARD and i not in used]
    if not free:
        return []
    past = rng.choice(free)
    return [Step(past=past, batch=steps[past].batch, n=rng.choice([1, 1, 2, rng.randint(1, 9)]))]


def branch(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    """Continue any cache."""
    past = rng.choice([i for i, step in enumerate(steps) if step.kind == FORWARD])
    n = rng.choice([1, 1, steps[1].n, rng.randint(1, 9)])
    return [Step(past=past, batch=steps[past].batch, n=n)]


def refusal(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    """A call with an id that is no token, of a new prompt or of a cache."""
    past = rng.choice([-1, *(i for i, step in enumerate(steps) if step.kind == FORWARD)])
    if past >= 0 and not offer.branches:
        past = -1
    batch = steps[past].batch if past >= 0 else rng.randint(1, 3)
    return [Step(REFUSED, past, batch, rng.randint(1, 3))]


def generated(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    return [Step(GENERATE, -1, rng.choice([1, 1, 2, 3]), rng.randint(1, 12), n_new=rng.randint(1, 8))]


def gradients(rng: random.Random, steps: More, used: set[int], offer: Offer) -> More:
    return [Step(GRADIENTS, -1, rng.choice([1, 2, 3]), rng.randint(2, 12))]


# ---- sweeps: every value of one axis in turn, on a small model


def small(rng: random.Random, steps: Sequence[Step], offer: Offer, n_embd: int = 0) -> Trial:
    """A small model for a long history."""
    head, n_head = rng.choice([4, 8, 16, rng.randint(4, 33)]), rng.choice([1, 2, 3, rng.randint(1, 12)])
    if n_embd:
        n_head = rng.choice([count for count in (1, 2, 3, 4) if n_embd % count == 0])
    needed = max(Trial(HParams(2, 1, 1, 1, 1), tuple(steps)).lengths())
    n_vocab = rng.choice([31, 97, 128, rng.randint(2, 300)])
    hparams = HParams(n_vocab, needed, n_embd or head * n_head, n_head, 1)
    return Trial(hparams, tuple(steps), (), rng.randrange(2**31), offer.taps and rng.random() < 0.3)


def every_length(rng: random.Random, offer: Offer) -> Trial:
    longest = rng.choice([34, 70, 132])
    steps = [Step(n=longest)] + [Step(n=n, like=0) for n in range(1, longest)]
    return small(rng, steps, offer)


def every_batch(rng: random.Random, offer: Offer) -> Trial:
    most, n = rng.choice([(20, 5), (36, 3), (66, 2)]), rng.randint(1, 3)
    steps = [Step(batch=most[0], n=n)]
    steps += [Step(batch=batch, n=n, like=0) for batch in range(1, most[0])]
    return small(rng, steps, offer)


def every_key(rng: random.Random, offer: Offer) -> Trial:
    """Token by token, so that every number of keys occurs."""
    batch, first = rng.choice([1, 1, 2]), rng.choice([1, 1, 2, 17])
    steps = [Step(batch=batch, n=first)]
    steps += [Step(past=i, batch=batch) for i in range(rng.choice([40, 140, 270]))]
    return small(rng, steps, offer)


def every_chunk(rng: random.Random, offer: Offer) -> Trial:
    """Chunks of every size, after caches of some lengths or after each other."""
    batch, most = rng.choice([1, 1, 2, 3]), rng.choice([12, 20, 34])
    steps: More = []
    for first in rng.sample([1, 5, 8, 16, 33, 64], 3 if offer.branches else 1):
        at = len(steps)
        steps.append(Step(batch=batch, n=first, ids="text"))
        for chunk in rng.sample(range(1, most), most - 1):
            past = at if offer.branches else len(steps) - 1
            steps.append(Step(past=past, batch=batch, n=chunk, ids="text"))
    return small(rng, steps, offer)


def square(rng: random.Random, offer: Offer) -> Trial:
    """Sizes that are equal and may be taken for each other: batch, tokens, heads."""
    size = rng.randint(2, 12)
    steps = [Step(batch=size, n=size), Step(past=0, batch=size, n=size), Step(past=1, batch=size)]
    trial = small(rng, steps, offer)
    head = rng.choice([size, 4, 8])
    return trial._replace(
        hparams=trial.hparams._replace(n_embd=size * head, n_head=size, n_vocab=max(2, size * head))
    )


def far(rng: random.Random, offer: Offer) -> Trial:
    """A text beyond the official n_ctx, cut at boundaries, with chunks of other sizes after each cut."""
    tapped = offer.taps and rng.random() < 0.15
    cuts = sorted({cut for cut in [*CUTS, *rng.sample(range(1, LONG), 40)] if cut < LONG - 9})
    cuts = sorted({*rng.sample(cuts, 9), rng.choice([1023, 1024])}) if tapped else cuts
    steps: More = []
    at, before = -1, 0
    for cut in cuts:
        steps.append(Step(past=at, n=cut - before, ids="text"))
        at, before = len(steps) - 1, cut
        for _ in range(0 if tapped or not offer.branches else 2):
            n = rng.choice([size_below(rng, 256), rng.choice(CUTS)])
            steps.append(Step(past=at, n=min(n, LONG - cut), ids="text"))
    steps.append(Step(past=at, n=LONG - before, ids="text"))
    trial = small(rng, steps, offer, 8)._replace(tapped=tapped)
    return trial._replace(hparams=trial.hparams._replace(n_head=rng.choice([1, 1, 2])))


def alike(rng: random.Random, offer: Offer) -> Trial:
    """Prompts of one shape that have much in common: what a cache of prompts may confuse.

    Equal beginnings of every length, equal prompts, equal rests after another first token, equal chunks
    after other prompts, and one cache continued again and again.
    """
    batch, n = rng.choice([1, 1, 2, 3]), rng.choice([5, 17, 40])
    steps = [Step(batch=batch, n=n)]
    steps += [Step(batch=batch, n=n) for _ in range(3)]
    steps += [Step(batch=batch, n=n, like=0) for _ in range(3)]
    for shared in sorted({1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 33}):
        if shared < n:
            steps.append(Step(batch=batch, n=shared, like=0))
            steps.append(Step(batch=batch, n=n, like=len(steps) - 1))
    for chunk in (1, 4, 9, 17) if offer.branches else (9,):
        at = len(steps)
        steps.append(Step(past=0, batch=batch, n=chunk))
        steps += [Step(past=other, batch=batch, n=chunk, like=at) for other in (1, 2, 3)]
    at = len(steps)
    steps += [Step(n=70), Step(n=70, like=at, ids=OTHER_FIRST), Step(n=70, like=at), Step(past=at + 1)]
    return small(rng, steps, offer)


def many_rows(rng: random.Random, offer: Offer) -> Trial:
    """As many rows of all products, up to 2,100, in batches of another size."""
    batch, n = rng.choice([(65, 33), (33, 65), (17, 125), (9, 240)])
    steps = [Step(batch=batch, n=n, ids="text"), Step(past=0, batch=batch, n=1, ids="text")]
    for rows in rng.sample(ROWS, 40):
        batches = [b for b in range(1, batch + 1) if rows % b == 0 and rows // b <= n]
        if batches:
            each = rng.choice(batches)
            steps.append(Step(batch=each, n=rows // each, ids="text"))
    return small(rng, steps, offer, 16)


def values(rng: random.Random, offer: Offer) -> Trial:
    """Extreme weights on a text that is long enough to show their whole range."""
    steps = [Step(batch=2, n=40, ids="text"), Step(past=0, batch=2, n=9, ids="text")]
    trial = small(rng, steps, offer, 48)._replace(tapped=offer.taps)
    hparams = trial.hparams._replace(n_head=rng.choice([1, 3, 12]), n_layer=rng.choice([1, 2]))
    extremes = tuple(rng.sample([*EXTREMES], rng.choice([1, 2])))
    return trial._replace(hparams=hparams, extremes=extremes)


def again(rng: random.Random, offer: Offer) -> Trial:
    """One call over and over, so that what is wrong once in hundreds of calls shows."""
    batch, n = rng.choice([(1, 1), (1, 8), (2, 3)])
    steps = [Step(batch=batch, n=n)] + [Step(batch=batch, n=n, like=0) for _ in range(310)]
    return small(rng, steps, offer)


def deep(rng: random.Random, offer: Offer) -> Trial:
    """As many layers as official models, or a large vocabulary."""
    steps = [Step(batch=2, n=5), Step(past=0, batch=2, n=3), Step(past=1, batch=2)]
    trial = small(rng, steps, offer)
    if rng.random() < 0.5:
        return trial._replace(hparams=trial.hparams._replace(n_layer=rng.randint(3, 48)))
    return trial._replace(
        hparams=trial.hparams._replace(n_vocab=rng.choice([50257, 50304, 32768, 65537]))
    )


def backward(rng: random.Random, offer: Offer, extreme: str = "") -> Trial:
    """Gradients, on extreme weights too, where they are offered."""
    extremes = rng.choice([(), *((name,) for name in EXTREMES if name not in ILL_CONDITIONED)])
    extremes = (extreme,) if extreme else extremes
    step = Step(batch=rng.choice([1, 2, 3, 5]), n=rng.choice([2, 3, 9, 17, 33]))
    kind = GRADIENTS if "loss_and_grads" in offer.offers else FORWARD
    trial = small(rng, [step._replace(kind=kind), step], offer)
    n_layer = rng.choice([1, 2, 3])
    return trial._replace(extremes=extremes, hparams=trial.hparams._replace(n_layer=n_layer))


def writing(rng: random.Random, offer: Offer) -> Trial:
    """Texts by generate, where it is offered, up to the last position."""
    kind = GENERATE if "generate" in offer.offers else FORWARD
    steps = [
        Step(kind, -1, rng.choice([1, 2, 5, 9]), rng.randint(1, 40), n_new=(kind == GENERATE) * new)
        for new in (1, rng.randint(2, 9), rng.choice([17, 33, 65]))
    ]
    return small(rng, steps, offer)


Sweep = Callable[[random.Random, Offer], Trial]
SWEEPS: list[Sweep] = [
    functools.partial(backward, extreme="gelu_inputs"),  # what training runs into
    every_length,
    values,
    alike,
    every_chunk,
    every_batch,
    backward,
    square,
    many_rows,
]
SWEEPS += [writing, alike, values, far, every_key, deep, again]
