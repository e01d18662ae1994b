"""Conditioned faults: a planted fault times a condition under which it is at work, drawn by seed.

A condition compares sizes of a call with constants, or counts calls, or looks at what came before; a
condition on values replaces single elements of one operation. Constants are drawn from the ranges that
the search claims to cover. Each fault that is drawn was seen to change a result under its condition.
"""

import itertools
import math
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from faults import FAULTS, Fault, Plain, plant
from faults.rounding import BFLOAT16, cut
from gpt2_parity.checks.search.trial import Step, Trial
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.model import synthetic

RANGES = {  # of the sizes of a call
    "batch": (1, 64),
    "queries": (1, 256),
    "past": (0, 1100),
    "keys": (1, 1100),
    "rows x tokens": (1, 2048),
    "n_embd": (1, 1600),
    "head size": (1, 128),
    "n_head": (1, 25),
    "n_layer": (1, 48),
    "n_vocab": (2, 50304),
    "n_ctx": (1, 1100),
}
POWERS = {2**k + d for k in range(1, 17) for d in (-1, 0, 1)}
BOUNDARIES = sorted(POWERS | {*range(16, 257, 16), 12, 20, 25, 768, 1280, 1600, 50257, 50304})
DEAREST = 4e9  # work of a trial that would show a fault; what costs more is not claimed
VISIBLE = 3e-5  # relative change of logits


# ---- what a call is


class Facts(NamedTuple):
    """What a condition may depend on."""

    sizes: Mapping[str, int]  # by the names of RANGES
    call: int  # how many calls came before
    of_model: int  # how many of this model
    shared: int  # tokens that a prompt's first row shares with the beginning of an earlier, other prompt
    again: int  # how often the same prompt came before
    same_shape: int  # how often another prompt of the same shape came before
    adopted: int  # length of a chunk that came before at the same position after other tokens; else 0
    continued: int  # how often this cache was continued before


class Cache(list):
    """Plain's cache, and the tokens that it holds."""

    tokens: np.ndarray
    continued = 0


class History:
    """The prompts and chunks that a model was given."""

    def __init__(self) -> None:
        self.calls = 0
        self.prompts: list[np.ndarray] = []
        self.chunks: list[tuple[np.ndarray, np.ndarray]] = []  # what came before, and the chunk

    def facts(self, hparams: HParams, tokens: np.ndarray, past: Cache | None, call: int) -> Facts:
        """The facts of a call, which becomes part of the history."""
        batch, n = tokens.shape
        n_past = past.tokens.shape[1] if past else 0
        n_vocab, n_ctx, n_embd, n_head, n_layer = hparams
        sizes = (batch, n, n_past, n_past + n, batch * n, n_embd, n_embd // n_head, n_head, n_layer)
        shared = again = same_shape = adopted = continued = 0
        if past:
            continued, past.continued = past.continued, past.continued + 1
            for before, chunk in self.chunks:
                same = chunk.shape == tokens.shape and before.shape == past.tokens.shape
                if same and (chunk == tokens).all() and not np.array_equal(before, past.tokens):
                    adopted = n
            self.chunks.append((past.tokens, tokens))
        else:
            for prompt in self.prompts:
                equal = prompt.shape == tokens.shape and bool((prompt == tokens).all())
                again += equal
                same_shape += prompt.shape == tokens.shape and not equal
                shared = max(shared, 0 if equal else beginning(prompt[0], tokens[0]))
            self.prompts.append(tokens)
        self.calls += 1
        named = dict(zip(RANGES, (*sizes, n_vocab, n_ctx), strict=True))
        return Facts(named, call, self.calls - 1, shared, again, same_shape, adopted, continued)


def beginning(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens are equal from the first on."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n


class Pair(NamedTuple):
    """A model, right and faulty."""

    right: Any
    wrong: Any
    history: History


class Conditioned(Plain):
    """A right implementation that is another one, wrong, in calls that meet a condition."""

    def __init__(self, wrong: Any, condition: Callable[[Facts], bool], calls: int = 0):
        super().__init__()
        self.right, self.wrong, self.condition = Plain(), wrong, condition
        self.calls = calls  # so far
        self.log: list[Facts] = []

    def load(self, params, hparams, *, device, dtype):
        right = self.right.load(params, hparams, device=device, dtype=dtype)
        same = type(self.wrong).converted is Plain.converted
        wrong = right if same else self.wrong.load(params, hparams, device=device, dtype=dtype)
        return Pair(right, wrong, History())

    def forward(self, model, tokens, past=None, tap=None):
        facts = model.history.facts(model.right.hparams, np.array(tokens), past, self.calls)
        self.calls += 1
        self.log.append(facts)
        side, its = (self.wrong, model.wrong) if self.condition(facts) else (self.right, model.right)
        logits, present = side.forward(its, tokens, past, tap)
        cache = Cache(present)
        before = past.tokens if past else np.asarray(tokens)[:, :0]
        cache.tokens = np.concatenate([before, tokens], axis=1)
        return logits, cache


# ---- conditions


class Atom(NamedTuple):
    """A size compared with a constant, or its residue, or between two constants."""

    axis: str
    sign: str  # "<", ">", "==", "between" or "%"
    a: int
    b: int = 0  # the upper bound, or the residue

    def __call__(self, facts: Facts) -> bool:
        return self.met(facts.sizes[self.axis])

    def met(self, value: int) -> bool:
        match self.sign:
            case "%":
                return value % self.a == self.b
            case "between":
                return self.a <= value <= self.b
        return {"<": operator.lt, ">": operator.gt, "==": operator.eq}[self.sign](value, self.a)

    def __str__(self) -> str:
        if self.sign == "%":
            return f"{self.axis} % {self.a} == {self.b}"
        if self.sign == "between":
            return f"{self.a} <= {self.axis} <= {self.b}"
        return f"{self.axis} {self.sign} {self.a}"

    def value(self, rng: random.Random) -> int:
        """A value that meets it, mostly the one nearest to the constant."""
        low, high = RANGES[self.axis]
        if self.sign == "%":
            return self.b + self.a * rng.choice([0, 1, 2, 3])
        nearest = {"<": self.a - 1, ">": self.a + 1}.get(self.sign, self.a)
        wide = {"<": (low, nearest), ">": (nearest, high), "between": (self.a, self.b)}
        values = wide.get(self.sign)
        if values is None or rng.random() < 0.5 or values[0] > values[1]:
            return nearest
        return rng.randint(*values)


class Both(NamedTuple):
    """Two conditions at once."""

    one: Atom
    other: Atom

    def __call__(self, facts: Facts) -> bool:
        return self.one(facts) and self.other(facts)

    def __str__(self) -> str:
        return f"{self.one} and {self.other}"


class Counted(NamedTuple):
    """A count of calls or of tokens compared with a constant: fields of Facts."""

    field: str
    sign: str  # "==", ">=", "every"
    a: int

    def __call__(self, facts: Facts) -> bool:
        value = getattr(facts, self.field)
        if self.sign == "every":
            return value % self.a == self.a - 1
        return value == self.a if self.sign == "==" else value >= self.a

    def __str__(self) -> str:
        return f"{self.field} {self.sign} {self.a}"


class Rate(NamedTuple):
    """One in so many calls, at random."""

    n: int
    seed: int

    def __call__(self, facts: Facts) -> bool:
        return random.Random(f"{self.seed} {facts.call}").random() < 1 / self.n

    def __str__(self) -> str:
        return f"one in {self.n} calls"


def never(facts: Facts) -> bool:
    return False


def always(facts: Facts) -> bool:
    return True


def constant(rng: random.Random, low: int, high: int, boundary: float = 0.6) -> int:
    """A boundary, or any number by its logarithm."""
    if rng.random() < boundary:
        return rng.choice([v for v in BOUNDARIES if low <= v <= high])
    return round(math.exp(rng.uniform(math.log(max(low, 1)), math.log(high))))


def atom(rng: random.Random) -> Atom:
    axis = rng.choice([*RANGES])
    low, high = RANGES[axis]
    sign = rng.choice(["<", ">", "==", "between"])
    a = constant(rng, low, high, 0.9 if sign == "==" else 0.6)
    return Atom(axis, sign, a, a + rng.randint(1, max(1, a // 3)) if sign == "between" else 0)


def residue(rng: random.Random) -> Atom:
    axis = rng.choice([each for each in RANGES if each != "n_layer"])
    a = rng.choice([2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 32])
    return Atom(axis, "%", a, rng.randrange(a))


def two(rng: random.Random) -> Both:
    one, other = rng.choice([atom, atom, residue])(rng), atom(rng)
    return Both(one, other) if one.axis != other.axis else two(rng)


def counted(rng: random.Random) -> Counted:
    sign = rng.choice(["==", ">=", "every"])
    if rng.random() < 0.5:
        return Counted("of_model", sign, constant(rng, 2, 300, 0.3))
    return Counted("call", sign, constant(rng, 2, 400 if sign == "every" else 1500, 0.3))


def before(rng: random.Random) -> Counted:
    field = rng.choice(["shared", "shared", "again", "same_shape", "adopted", "adopted", "continued"])
    most = {"shared": 32, "adopted": 16}.get(field, 3)
    return Counted(field, ">=", constant(rng, 1, most, 0.2))


def rate(rng: random.Random) -> Rate:
    return Rate(constant(rng, 5, 400, 0), rng.randrange(2**31))


# ---- faults


class ConditionedFault(NamedTuple):
    """A fault and its condition."""

    name: str
    kind: str  # of its condition
    blame: frozenset[str]
    made: Callable[[], Any]  # the faulty implementation
    condition: Callable[[Facts], bool]

    def plant(self, calls: int = 0) -> Conditioned:
        """The implementation, as it is after so many calls."""
        return Conditioned(self.made(), self.condition, calls)


OPERATIONS = {
    *("weights", "embed", "norm", "layer_norm", "linear", "split_heads", "extend", "attention"),
    *("scores", "mask", "softmax", "weigh", "merge_heads", "residual", "add", "gelu", "head"),
}


NARROW = ("one_percent", "vocabulary_rows", "embedding_row", "numpy_raises")  # of few ids; of all NumPy


def conditionable(fault: Fault) -> bool:
    """Whether it is of an operation, in every layer, whatever the sizes, values and calls before."""
    everywhere = not any(character.isdigit() for word in fault.blame for character in word)
    of_operations = all(word.startswith(("h*", "h?", "embed", "logits")) for word in fault.blame)
    replaces_operations = not fault.specimen and OPERATIONS.issuperset(fault.replaced)
    narrow = any(word in fault.name for word in NARROW)
    return replaces_operations and everywhere and of_operations and not narrow


SHELF = [fault for fault in FAULTS if conditionable(fault)]
KINDS: dict[str, Callable[[random.Random], Any]] = {
    "one axis": atom,
    "residue": residue,
    "two axes": two,
    "call": counted,
    "before": before,
    "rate": rate,
}
VALUES = "values"
SHARES = {"one axis": 8, "residue": 3, "two axes": 4, "call": 2, "before": 3, "rate": 2, VALUES: 4}


def draw(seed: int) -> Iterator[ConditionedFault]:
    """Conditioned faults without end."""
    rng = random.Random(seed)
    for number in itertools.count():
        kind = rng.choices([*SHARES], [*SHARES.values()])[0]
        made = None
        while made is None:
            made = of_values(rng) if kind == VALUES else of_calls(rng, kind)
        yield made._replace(name=f"{number}: {made.name}", kind=kind)


def of_calls(rng: random.Random, kind: str) -> ConditionedFault | None:
    """A fault with a condition of that kind. None if no trial shows it."""
    fault, condition = rng.choice(SHELF), KINDS[kind](rng)
    trial = witness(rng, condition)
    if trial is None or not shows(fault, trial):
        return None
    name = f"{fault.name} where {condition}"
    return ConditionedFault(name, kind, fault.blame, lambda: plant(fault), condition)


def witness(rng: random.Random, condition: Any) -> Trial | None:
    """A trial whose last call meets a condition on sizes; None if there is no cheap one."""
    atoms = {Atom: lambda: [condition], Both: lambda: [*condition]}.get(type(condition), list)()
    for _ in range(40):
        sizes = {"batch": rng.choice([1, 2, 3]), "queries": rng.randint(1, 4), "n_layer": 1, "slack": 0}
        sizes |= {
            "past": rng.choice([0, 5]),
            "head size": rng.choice([4, 8]),
            "n_head": 2,
            "n_vocab": 61,
        }
        if isinstance(condition, Counted) and condition.field not in ("call", "of_model"):
            sizes["past"] = 5 if condition.field in ("adopted", "continued") else 0
            sizes["queries"] = max(condition.a, 2)
        for each in rng.sample(atoms, len(atoms)):
            put(sizes, each.axis, each.value(rng), rng)
        trial = trial_of(sizes)
        if trial is not None and all(each.met(sizes_of(trial)[each.axis]) for each in atoms):
            return trial
    return None


def put(sizes: dict[str, int], axis: str, value: int, rng: random.Random) -> None:
    """Give an axis a value."""
    match axis:
        case "keys" if value <= sizes["queries"] or (value <= 256 and rng.random() < 0.3):
            sizes |= {"queries": value, "past": 0}
        case "keys":
            sizes["past"] = value - sizes["queries"]
        case "n_ctx":
            sizes["slack"] = value - sizes["past"] - sizes["queries"]
        case "rows x tokens" if value > 0:
            batches = [b for b in range(1, 65) if value % b == 0 and value // b <= 256] or [1]
            sizes["batch"] = rng.choice(batches)
            sizes["queries"] = value // sizes["batch"]
        case "n_embd" if value > 0:
            heads = [h for h in range(1, 26) if value % h == 0 and value // h <= 128] or [1]
            sizes["n_head"] = rng.choice(heads)
            sizes["head size"] = value // sizes["n_head"]
        case _:
            sizes[axis] = value


def trial_of(sizes: Mapping[str, int]) -> Trial | None:
    """A trial of these sizes: a prompt, and a chunk if there is a past. None if there is none."""
    if min(sizes["queries"], sizes["batch"], sizes["head size"], sizes["n_head"]) < 1:
        return None
    if sizes["slack"] < 0 or sizes["past"] < 0 or sizes["n_layer"] < 1 or sizes["n_vocab"] < 2:
        return None
    hparams = HParams(
        sizes["n_vocab"],
        sizes["past"] + sizes["queries"] + sizes["slack"],
        sizes["n_head"] * sizes["head size"],
        sizes["n_head"],
        sizes["n_layer"],
    )
    batch = sizes["batch"]
    steps = [Step(batch=batch, n=sizes["past"])] if sizes["past"] else []
    steps.append(Step(past=len(steps) - 1, batch=batch, n=sizes["queries"]))
    trial = Trial(hparams, tuple(steps), (), 1)
    named = sizes_of(trial)
    within = all(low <= named[axis] <= high for axis, (low, high) in RANGES.items())
    return trial if within and trial.possible() and trial.work() <= DEAREST else None


def sizes_of(trial: Trial) -> dict[str, int]:
    """The sizes of a witness's last call."""
    tokens = trial.tokens()
    past = Cache()
    if len(tokens) > 1:
        past.append(0)
        past.tokens = tokens[0]
    return dict(History().facts(trial.hparams, tokens[-1], past or None, 0).sizes)


def shows(fault: Fault, trial: Trial) -> bool:
    """Whether a fault changes the logits of a trial's last call, where the calls before were right."""
    params = synthetic.generate(trial.hparams, trial.seed)
    right, wrong = Plain(), plant(fault)
    model = right.load(params, trial.hparams, device="cpu", dtype="float32")
    try:
        other = wrong.load(params, trial.hparams, device="cpu", dtype="float32")
        past = None
        *first, last = trial.tokens()
        for tokens in first:
            _, past = right.forward(model, tokens)
        want, _ = right.forward(model, last, past)
        with np.errstate(all="ignore"):
            got, _ = wrong.forward(other, last, past)
    except (IndexError, KeyError, TypeError, ValueError):
        return False  # a mistake that is of other sizes
    return not np.abs(got - want).max() <= VISIBLE * np.abs(want).max()


# ---- conditions on values


class Valued(NamedTuple):
    """An operation, the quantity of its input or result that a condition is on, and its range."""

    operation: str
    words: str
    blame: str
    most: float
    of: Callable[..., np.ndarray]  # of the operation's inputs and result, broadcast with the result
    least: float = 1.0
    signs: Sequence[str] = ("> c", "< -c", "|x| > c")


def variance(result: np.ndarray, x: np.ndarray, *rest: Any) -> np.ndarray:
    return np.asarray(x, float).var(axis=-1, keepdims=True) + 0 * x


def mean(result: np.ndarray, x: np.ndarray, *rest: Any) -> np.ndarray:
    """How many deviations the mean is from zero."""
    x = np.asarray(x, float)
    return x.mean(axis=-1, keepdims=True) / (x.std(axis=-1, keepdims=True) + 1e-9) + 0 * x


def result_of(result: np.ndarray, *inputs: Any) -> np.ndarray:
    return result


VALUED = [
    Valued("gelu", "GELU input", "h*/mlp/gelu", 45, lambda result, x, at: x, 0.5),
    Valued("scores", "score", "h*/attn/heads", 120, result_of),
    Valued("add", "residual", "h?", 8000, result_of),
    Valued("layer_norm", "variance", "h*/ln_1 h*/ln_2 ln_f", 1e7, variance, 1.0, ("> c",)),
    Valued("layer_norm", "variance", "h*/ln_1 h*/ln_2 ln_f", 0.1, variance, 1e-11, ("0 < x < c",)),
    Valued("layer_norm", "mean / deviation", "h*/ln_1 h*/ln_2 ln_f", 5000, mean, 3.0),
    Valued("head", "logit", "logits", 100, result_of, 0.5, ("> c", "< -c", "|x| > c", "> 0", "< 0")),
]
SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NaN": lambda right: np.full_like(right, np.nan),
    "off by 1 %": lambda right: right * np.float32(1.01),
    "in bfloat16": lambda right: cut(right, BFLOAT16),
}


def of_values(rng: random.Random) -> ConditionedFault:
    """An operation that is wrong where a value is in a range."""
    valued = rng.choice(VALUED)
    sign = rng.choice(valued.signs)
    c = math.exp(rng.uniform(math.log(valued.least), math.log(valued.most)))
    spoilt = rng.choice([*SPOILT])
    if sign == "< -c" and (valued.operation == "scores" or (valued.operation == "gelu" and c > 3)):
        spoilt = "NaN"  # otherwise it has no weight in the result
    right = getattr(Plain, valued.operation)
    spoil = SPOILT[spoilt]

    def wrong(*args: Any) -> np.ndarray:
        result = right(*args)
        x = valued.of(result, *args)
        return np.where(within(sign, x, c), spoil(result), result)

    name = f"{valued.operation} {spoilt} where {valued.words} {sign.replace('c', f'{c:.3g}')}"
    made = {valued.operation: wrong}
    blame = frozenset(valued.blame.split())
    return ConditionedFault(name, VALUES, blame, lambda: Plain.with_("valued", **made), always)


def within(sign: str, x: np.ndarray, c: float) -> np.ndarray:
    match sign:
        case "> c":
            return x > c
        case "< -c":
            return x < -c
        case "|x| > c":
            return np.abs(x) > c
        case "0 < x < c":
            return (x > 0) & (x < c)
        case "> 0":
            return x > 0
    return x < 0
