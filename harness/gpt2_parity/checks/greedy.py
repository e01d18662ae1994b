"""Greedy decoding chooses the golden tokens wherever the margin is larger than the noise.

Three ways: teacher-forced (one forward pass over prompt and golden continuation, judged at every
position), free-running through the cache, and the implementation's own generate. A position whose
golden margin is within the noise is a near-tie: inconclusive, neither right nor wrong. Once a near-tie
has gone the other way, the rest of a free run cannot be compared.

So generate is also compared with the implementation's own forward, beyond the golden tokens: each id
must be a likeliest one there. That needs no golden tokens, so it uses further prompts too: the fresh
one, those of two auxiliary models (of equal sizes, to catch caches and compiled code keyed by shape
alone) and, if the model is small enough, many fresh ones and one that fills the context.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt2_parity.contract.capability import Capability, TooLong
from gpt2_parity.contract.check import Check, Implied
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.limits import NOISE, NONE, Limit, near_tie
from gpt2_parity.contract.plan import CaseShape, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.auxiliary_models import looked_at
from gpt2_parity.implementation.loaded import Loaded, describe
from gpt2_parity.reference.distance import differing, rounded
from gpt2_parity.reference.records import Record, shape_of

MANY = 32  # prompts: with weights rounded to bfloat16, about one id in three hundred changes
ITSELF = "generate_by_forward"
BESIDES = "generate_besides"  # the model under test, while another one is loaded
KEPT = "kept"  # later calls must not overwrite ids that were returned
CACHE = "cache_kept"  # generate must not overwrite the cache of forward
REFUSED = "generate_after_refusal"  # generate must start afresh after a call that was refused
OTHERS = (auxiliary_models.SECOND, auxiliary_models.LOGITS)
NEAR_TIES = Limit(math.inf, "A near-tie is neither right nor wrong: such a row is inconclusive.")


def generated(loaded: Loaded, tokens: np.ndarray, n_new: int) -> np.ndarray:
    """Ids int32 [batch, n_new] by the implementation's generate, after tokens int32 [batch, n].

    Raises ContractBroken unless they are integers of that shape.
    """
    ids = np.array(loaded.impl.generate(loaded.model, np.array(tokens), n_new))
    if ids.shape != (shape := (len(tokens), n_new)) or not np.issubdtype(ids.dtype, np.integer):
        raise ContractBroken(f"generate returned {describe(ids)}, the contract says int32 {shape}")
    return ids


def call(loaded: Loaded, tokens: np.ndarray, n_new: int = 2) -> np.ndarray:
    """What generate returns for tokens int32 [batch, n], on the host, unchecked."""
    return np.array(loaded.impl.generate(loaded.model, np.array(tokens), n_new))


CAPABILITY = Capability(
    signature="generate(model, tokens, n_new)",
    returns="the greedy continuation, int32 [batch, n_new]",
    call=call,
    # after a full context, the first of two new tokens has no position
    too_long={"too_long": TooLong(0, {"n_new": 2}), "too_long_prompt": TooLong(1, {"n_new": 1})},
)


def offered(plan: Plan) -> bool:
    """Whether the implementation has a generate of its own."""
    return CAPABILITY in plan.offers


def expected(plan: Plan) -> Iterable[Key]:
    scopes = ["teacher_forced", "free_running"] + ["generate"] * offered(plan)
    for case in plan.cases:
        if case.n_new:
            yield from ((case.name, scope, m) for scope in scopes for m in ("wrong_tokens", "near_ties"))
        if is_held(case, plan):
            yield (case.name, ITSELF, "wrong_tokens")
    if offered(plan):
        yield from ((name, ITSELF, "wrong_tokens") for name in looked_at(plan, OTHERS))
        last = plan.cases[-1]
        yield from ((last.name, scope, "wrong_tokens") for scope in (BESIDES, REFUSED))
        yield (last.name, KEPT, "differing_share")
        if last.n > 1:
            yield (last.name, CACHE, "noise_units")


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        if record.arrays["greedy"].size:
            logits = teacher_forced(loaded, record)
            by_token = errors_by_token(loaded, record, logits[0])
            yield from _judge(loaded, record, "teacher_forced", choose(logits), by_token)
            yield from _judge(loaded, record, "free_running", free_running(loaded, record))
            if offered(plan):
                ids = generated(loaded, record.tokens, record.arrays["greedy"].shape[1])
                yield from _judge(loaded, record, "generate", ids)
        if is_held(shape_of(record), plan):
            yield by_forward(loaded, record, *prompts(record, plan))
    if offered(plan):
        yield from left_alone(loaded)
        yield after_refusal(loaded)
        yield from beside_others(loaded, looked_at(plan, OTHERS))


def half(loaded: Loaded) -> tuple[Record, np.ndarray]:
    """The last record and the first half of its tokens [batch, n], which leaves room for one more."""
    last = loaded.records[-1]
    return last, last.tokens[:, : (last.tokens.shape[1] + 1) // 2]


def left_alone(loaded: Loaded) -> Iterator[Measurement]:
    """A call of generate must not change ids that it returned before, nor a cache of forward."""
    last, first = half(loaded)
    rest = last.tokens[:, first.shape[1] :]
    held = loaded.impl.generate(loaded.model, np.array(first), 1)
    before = np.array(held)
    _, past = loaded.forward(first)
    generated(loaded, (first + 1) % loaded.hparams.n_vocab, 1)
    yield Measurement(last.name, KEPT, "differing_share", differing(np.array(held), before))
    if rest.size:
        got, _ = loaded.forward(rest, past)
        units = loaded.units(got, loaded.logits(last)[:, first.shape[1] :], last)
        yield Measurement(last.name, CACHE, "noise_units", units)


def after_refusal(loaded: Loaded) -> Measurement:
    """The next token after a call of generate without room, which it must refuse (bad_tokens checks)."""
    full = np.zeros((1, loaded.hparams.n_ctx), np.int32)
    with contextlib.suppress(Exception, SystemExit):
        loaded.impl.generate(loaded.model, full, 2)
    return by_forward(loaded, *half(loaded), 1)._replace(scope=REFUSED)


def beside_others(loaded: Loaded, names: Sequence[str]) -> Iterator[Measurement]:
    """The next token of the model under test beside another one, and whole texts of the others."""
    for name in names:
        other, record = auxiliary_models.beside(loaded, name)
        if name == OTHERS[0]:
            yield by_forward(loaded, *half(loaded), 1)._replace(scope=BESIDES)
        n_new = other.hparams.n_ctx - record.tokens.shape[1]
        yield by_forward(other, record, record.tokens, n_new)


def is_held(case: CaseShape, plan: Plan) -> bool:
    """Whether generate is compared with forward on a case."""
    if not offered(plan):
        return False
    if case.n == plan.hparams.n_ctx:
        return case.n > 1 and plan.affords(case.batch * case.n)
    return case.n_new > 0 or case == plan.cases[-1]


def prompts(record: Record, plan: Plan) -> tuple[np.ndarray, int]:
    """The prompts int32 [batch, n] for generate on a record, and the number of new tokens."""
    tokens, hparams = record.tokens, plan.hparams
    batch, n = tokens.shape
    if n == hparams.n_ctx:  # the first half, and as many new tokens as there is room for
        return tokens[:, : n // 2], n - n // 2
    n_new = min(plan.further, hparams.n_ctx - n)
    if shape_of(record) == plan.cases[-1] and plan.affords(MANY * (n + n_new)):
        more = np.random.default_rng(0).integers(0, hparams.n_vocab, (max(0, MANY - batch), n))
        tokens = np.concatenate([tokens, more.astype(np.int32)])
    return tokens, n_new


def teacher_forced(loaded: Loaded, record: Record) -> np.ndarray:
    """The logits [batch, n_new, n_vocab] that choose each new token, given the golden ones before it."""
    golden = record.arrays["greedy"]
    tokens = np.concatenate([record.tokens, golden[:, :-1]], axis=1)
    return loaded.forward(tokens)[0][:, -golden.shape[1] :]


def errors_by_token(loaded: Loaded, record: Record, logits: np.ndarray) -> Evidence:
    """The error of the margin and the true margin of each golden token of the first row, as evidence.

    logits [n_new, n_vocab]: the implementation's own. A margin is how far the golden token's logit is
    above any other. No more than it is golden at these positions, so its error is that of two logits.
    All in noise units.
    """
    golden, margins = record.arrays["greedy"][0], record.arrays["margins"][0]
    unit = record.noise(loaded.target.dtype)
    others = np.array(logits, np.float64)  # [n_new, n_vocab]
    chosen = np.take_along_axis(others, golden[:, None], axis=-1)[:, 0]
    np.put_along_axis(others, golden[:, None], -np.inf, axis=-1)
    own = chosen - others.max(axis=-1)
    return {
        "tokens": [loaded.text([int(i)]) for i in golden],
        "errors": rounded(np.abs(own - margins) / unit),
        "margins": rounded(margins / unit),
    }


def free_running(loaded: Loaded, record: Record) -> np.ndarray:
    """The ids [batch, n_new] chosen after its own earlier choices, decoded through the cache."""
    chosen: list[np.ndarray] = []
    tokens, past = record.tokens, None
    for _ in range(record.arrays["greedy"].shape[1]):
        logits, past = loaded.forward(tokens, past)
        tokens = choose(logits[:, -1:])
        chosen.append(tokens)
        tokens = np.maximum(tokens, 0)  # a valid id to continue with: -1 is wrong in any case
    return np.concatenate(chosen, axis=1)


def by_forward(loaded: Loaded, record: Record, tokens: np.ndarray, n_new: int) -> Measurement:
    """How many ids of generate are, by forward and given the ids before, less likely than another.

    tokens: prompts int32 [batch, n].
    """
    n = tokens.shape[1]
    only = generated(loaded, tokens, 1)  # a call for one token only, on the same prompt
    ids = generated(loaded, tokens, n_new)
    given = np.concatenate([tokens, ids[:, :-1].clip(0, loaded.hparams.n_vocab - 1)], axis=1)
    logits = loaded.forward(given)[0][:, n - 1 :]  # [batch, n_new, n_vocab]
    tie = near_tie(record.noise(loaded.target.dtype))
    wrong, wrong_alone = unlikely(ids, logits, tie), unlikely(only, logits[:, :1], tie)
    evidence: Evidence = {}
    if wrong.any():
        row, at = (int(i) for i in np.argwhere(wrong)[0])
        evidence = {"row": row, "new_token": at, "id": int(ids[row, at])}
        evidence["likeliest"] = int(logits[row, at].argmax())
    elif wrong_alone.any():
        row = int(np.argmax(wrong_alone))
        evidence = {"row": row, "asked_for_one_token": True, "id": int(only[row, 0])}
        evidence["likeliest"] = int(logits[row, 0].argmax())
    n_wrong = int(wrong.sum() + wrong_alone.sum())
    return Measurement(record.name, ITSELF, "wrong_tokens", n_wrong, evidence)


def unlikely(ids: np.ndarray, logits: np.ndarray, tie: float) -> np.ndarray:
    """Which ids [batch, n] are not tokens, or have a logit more than tie below the greatest: bool.

    logits [batch, n, n_vocab]; tie: see near_tie.
    """
    valid = (ids >= 0) & (ids < logits.shape[-1])
    chosen = np.take_along_axis(logits, np.where(valid, ids, 0)[..., None], axis=-1)[..., 0]
    return ~(valid & (chosen >= logits.max(axis=-1) - tie))  # NaN is never likely


def choose(logits: np.ndarray) -> np.ndarray:
    """The likeliest token int32 [batch, n] of logits [batch, n, n_vocab]; -1 (wrong) if any is NaN."""
    best = logits.argmax(axis=-1)
    return np.where(np.isnan(logits).any(axis=-1), -1, best).astype(np.int32)


def _judge(
    loaded: Loaded, record: Record, scope: str, ids: np.ndarray, by_token: Evidence | None = None
) -> Iterator[Measurement]:
    golden = record.arrays["greedy"]
    certified = record.arrays["margins"] > near_tie(record.noise(loaded.target.dtype))
    near_ties = int((~certified).sum())
    if scope != "teacher_forced":
        # compare up to a row's first difference: after it, the ids follow other tokens
        parted = np.cumsum(ids != golden, axis=1)
        certified = certified & ((parted == 0) | ((parted == 1) & (ids != golden)))
    wrong_at = certified & (ids != golden)
    wrong = int(wrong_at.sum())
    conclusive = bool(certified.any())
    evidence = compared(loaded, record, ids, wrong_at)
    if by_token:
        evidence["by_token"] = by_token
    yield Measurement(record.name, scope, "wrong_tokens", wrong, evidence, conclusive)
    evidence = {"near_ties": near_ties, "positions": golden.size}
    yield Measurement(record.name, scope, "near_ties", near_ties, evidence, conclusive=not near_ties)


def compared(loaded: Loaded, record: Record, ids: np.ndarray, wrong_at: np.ndarray) -> Evidence:
    """Evidence: the text chosen and, if it differs, the golden text, the first difference, its margin.

    ids int32 and wrong_at bool, [batch, n_new]. The row is the first that is wrong, or else the first
    that differs within the noise.
    """
    golden = record.arrays["greedy"]
    differs = wrong_at if wrong_at.any() else ids != golden
    row = int(differs.any(axis=1).argmax())
    got, right = ids[row].tolist(), golden[row].tolist()
    evidence: Evidence = {"text": spelled(loaded, got)}
    if not differs.any():
        return evidence
    at = int(differs[row].argmax())
    first: Evidence = {"row": row, "new_token": at}
    first["got"], first["golden"] = (spelled(loaded, ids[at : at + 1]) for ids in (got, right))
    first["margin"] = record.arrays["margins"][row, at]
    first["near_tie"] = near_tie(record.noise(loaded.target.dtype))
    return evidence | {"golden": spelled(loaded, right), "first_difference": first}


def spelled(loaded: Loaded, ids: list[int]) -> str | list[int]:
    """Ids as text, or as numbers if one of them is not a token (-1: chosen among NaN)."""
    known = all(0 <= i < loaded.hparams.n_vocab for i in ids)
    return loaded.text(ids) if known else ids


CHECK = Check(
    name="greedy",
    establishes="decoding chooses the golden tokens: teacher-forced, free-running, and by generate",
    expected=expected,
    measure=measure,
    limits={
        "wrong_tokens": NONE,
        "near_ties": NEAR_TIES,
        "differing_share": NONE,
        "noise_units": NOISE,
    },
    after="taps",
    blames="generate",
    blames_by_scope={"teacher_forced": "logits", "free_running": "cache"},
    precedence=80,
    look_at="the implementation's own generate loop: what it feeds back, and when",
    implied_by=(Implied(("logits",), "everywhere"),),
    auxiliary=True,
    capability=CAPABILITY,
)
