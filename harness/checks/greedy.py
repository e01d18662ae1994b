"""Greedy decoding chooses the golden tokens, wherever the margin lets honest rounding decide.

Three ways: teacher-forced (one forward pass over prompt and golden continuation, judged at every
position), free-running through the cache, and the implementation's own generate. A position whose
golden margin is within the noise is a near-tie: inconclusive, neither right nor wrong. After a
near-tie has gone the other way, what a free run chooses next can no longer be compared. So generate is
also held against its own forward, further than golden goes: each id must be a likeliest one there. That
needs no golden, so fresh prompts are asked for too, a second model's, and, where the model is small
enough, many of them and a text that fills the context.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from harness import second_model
from harness.golden import Record
from harness.limits import near_tie
from harness.subject import CaseShape, Key, Measurement, Plan, Subject, shape_of

FURTHER = 64  # tokens that generate is asked for once more: caches that grow have grown by then
MANY = 32  # prompts: with weights rounded to bfloat16 an id in some three hundred is another
ITSELF = "generate_by_forward"


def expected(plan: Plan) -> Iterable[Key]:
    scopes = ["teacher_forced", "free_running"] + ["generate"] * plan.generates
    for case in plan.cases:
        if case.n_new:
            yield from ((case.name, scope, m) for scope in scopes for m in ("wrong_tokens", "near_ties"))
        if is_held(case, plan):
            yield (case.name, ITSELF, "wrong_tokens")
    if plan.generates:
        yield (second_model.CASE, ITSELF, "wrong_tokens")


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    for record in subject.records:
        if record.arrays["greedy"].size:
            yield from _judge(subject, record, "teacher_forced", teacher_forced(subject, record))
            yield from _judge(subject, record, "free_running", free_running(subject, record))
            if plan.generates:
                ids = subject.generated(record.tokens, record.arrays["greedy"].shape[1])
                yield from _judge(subject, record, "generate", ids)
        if is_held(shape_of(record), plan):
            yield by_forward(subject, record, *prompts(record, plan))
    if plan.generates:  # of other sizes, and to the end of its context
        with second_model.beside(subject) as (other, record):
            n_new = other.hparams.n_ctx - record.tokens.shape[1]
            yield by_forward(other, record, record.tokens, n_new)


def is_held(case: CaseShape, plan: Plan) -> bool:
    """Whether generate is held against forward on a case."""
    if not plan.generates:
        return False
    if case.n == plan.hparams.n_ctx:
        return case.n > 1 and plan.affords(case.batch * case.n)
    return case.n_new > 0 or case == plan.cases[-1]


def prompts(record: Record, plan: Plan) -> tuple[np.ndarray, int]:
    """What generate is given, and how many tokens it is asked for."""
    tokens, hparams = record.tokens, plan.hparams
    batch, n = tokens.shape
    if n == hparams.n_ctx:  # half of it, and as many as there is room for
        return tokens[:, : n // 2], n - n // 2
    n_new = min(FURTHER, hparams.n_ctx - n)
    if shape_of(record) == plan.cases[-1] and plan.affords(MANY * (n + n_new)):
        more = np.random.default_rng(0).integers(0, hparams.n_vocab, (max(0, MANY - batch), n))
        tokens = np.concatenate([tokens, more.astype(np.int32)])
    return tokens, n_new


def teacher_forced(subject: Subject, record: Record) -> np.ndarray:
    """The choice at each position [batch, n_new], given the golden tokens before it."""
    golden = record.arrays["greedy"]
    tokens = np.concatenate([record.tokens, golden[:, :-1]], axis=1)
    return choose(subject.forward(tokens)[0][:, -golden.shape[1] :])


def free_running(subject: Subject, record: Record) -> np.ndarray:
    """Ids [batch, n_new] chosen from its own earlier choices, decoding through the cache."""
    chosen: list[np.ndarray] = []
    tokens, past = record.tokens, None
    for _ in range(record.arrays["greedy"].shape[1]):
        logits, past = subject.forward(tokens, past)
        tokens = choose(logits[:, -1:])
        chosen.append(tokens)
        tokens = np.maximum(tokens, 0)  # something to go on with: the verdict on -1 is certain
    return np.concatenate(chosen, axis=1)


def by_forward(subject: Subject, record: Record, tokens: np.ndarray, n_new: int) -> Measurement:
    """How many ids of generate forward, given those before, finds less likely than another."""
    n = tokens.shape[1]
    subject.generated(tokens, 1)  # no more than that, and the prompt unspoilt
    ids = subject.generated(tokens, n_new)
    valid = (ids >= 0) & (ids < subject.hparams.n_vocab)
    given = np.concatenate([tokens, np.where(valid, ids, 0)[:, :-1]], axis=1)
    logits = subject.forward(given)[0][:, n - 1 :]  # [batch, n_new, n_vocab]
    chosen = np.take_along_axis(logits, np.where(valid, ids, 0)[..., None], axis=-1)[..., 0]
    near = chosen >= logits.max(axis=-1) - near_tie(record.noise(subject.target.dtype))  # no NaN is
    wrong = ~(valid & near)
    detail = ""
    if wrong.any():
        row, at = (int(i) for i in np.argwhere(wrong)[0])
        detail = f"first at new token {at} of row {row}: id {ids[row, at]}, "
        detail += f"forward's likeliest is {logits[row, at].argmax()}"
    return Measurement(record.name, ITSELF, "wrong_tokens", int(wrong.sum()), detail)


def choose(logits: np.ndarray) -> np.ndarray:
    """The likeliest token at each position, int32; -1, which is never right, where any is NaN."""
    best = logits.argmax(axis=-1)
    return np.where(np.isnan(logits).any(axis=-1), -1, best).astype(np.int32)


def _judge(subject: Subject, record: Record, scope: str, ids: np.ndarray) -> Iterator[Measurement]:
    golden = record.arrays["greedy"]
    certified = record.arrays["margins"] > near_tie(record.noise(subject.target.dtype))
    near_ties = int((~certified).sum())
    if scope != "teacher_forced":
        # compare up to a row's first difference: what follows it answers another question
        parted = np.cumsum(ids != golden, axis=1)
        certified = certified & ((parted == 0) | ((parted == 1) & (ids != golden)))
    wrong_at = certified & (ids != golden)
    wrong = int(wrong_at.sum())
    conclusive = bool(certified.any())
    detail = tell(subject, record, ids, wrong_at)
    yield Measurement(record.name, scope, "wrong_tokens", wrong, detail, conclusive)
    detail = f"{near_ties} of {golden.size} positions are within the noise"
    yield Measurement(record.name, scope, "near_ties", near_ties, detail)


def tell(subject: Subject, record: Record, ids: np.ndarray, wrong_at: np.ndarray) -> str:
    """The text chosen; where it departs from golden, golden's text, the first such place, its margin.

    Of a batch it is the first row that is wrong, or else the first that differs within the noise.
    """
    golden = record.arrays["greedy"]
    differs = wrong_at if wrong_at.any() else ids != golden
    row = int(differs.any(axis=1).argmax())
    got, right = ids[row].tolist(), golden[row].tolist()
    detail = spelled(subject, got)
    if not differs.any():
        return detail
    at = int(differs[row].argmax())
    instead, rightly = (spelled(subject, ids[at : at + 1]) for ids in (got, right))
    margin, tie = record.arrays["margins"][row, at], near_tie(record.noise(subject.target.dtype))
    return (
        f"{detail}, golden {spelled(subject, right)}; first difference at token {at} of row {row}: "
        f"{instead} for {rightly}, golden margin {margin:.3g}, noise could bridge {tie:.3g}"
    )


def spelled(subject: Subject, ids: list[int]) -> str:
    """Ids as a text in quotes; as numbers, where one of them is no token (-1: chosen among NaN)."""
    known = all(0 <= i < subject.hparams.n_vocab for i in ids)
    return repr(subject.text(ids)) if known else f"ids {ids}"
