"""Greedy decoding chooses the golden tokens, wherever the margin lets honest rounding decide.

Three ways: teacher-forced (one forward pass over prompt and golden continuation, judged at every
position), free-running through the cache, and the implementation's own generate. A position whose
golden margin is within the noise is a near-tie: inconclusive, neither right nor wrong. After a
near-tie has gone the other way, what a free run chooses next can no longer be compared. So generate is
also held against its own forward, further than golden goes: each id must be a likeliest one there. That
needs no golden, so fresh prompts are asked for too, those of two other models (of equal sizes, for who
keeps a prompt's cache, or what was compiled) and, where the model is small enough, many of them and a
text that fills the context.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_parity.contract.limits import near_tie
from gpt2_parity.contract.plan import CaseShape, Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.distance import differing
from gpt2_parity.reference.records import Record, shape_of

MANY = 32  # prompts: with weights rounded to bfloat16 an id in some three hundred is another
ITSELF = "generate_by_forward"
BESIDES = "generate_besides"  # of the first model, while another one is loaded
KEPT = "kept"  # whether later calls leave alone the ids that one has returned
CACHE = "cache_kept"  # and generate the cache of forward
REFUSED = "generate_after_refusal"  # whether it begins anew where one broke off
OTHERS = (auxiliary_models.SECOND, auxiliary_models.LOGITS)


def expected(plan: Plan) -> Iterable[Key]:
    scopes = ["teacher_forced", "free_running"] + ["generate"] * plan.generates
    for case in plan.cases:
        if case.n_new:
            yield from ((case.name, scope, m) for scope in scopes for m in ("wrong_tokens", "near_ties"))
        if is_held(case, plan):
            yield (case.name, ITSELF, "wrong_tokens")
    if plan.generates:
        yield from ((name, ITSELF, "wrong_tokens") for name in OTHERS)
        last = plan.cases[-1]
        yield from ((last.name, scope, "wrong_tokens") for scope in (BESIDES, REFUSED))
        yield (last.name, KEPT, "differing_share")
        if last.n > 1:
            yield (last.name, CACHE, "noise_units")


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        if record.arrays["greedy"].size:
            yield from _judge(loaded, record, "teacher_forced", teacher_forced(loaded, record))
            yield from _judge(loaded, record, "free_running", free_running(loaded, record))
            if plan.generates:
                ids = loaded.generated(record.tokens, record.arrays["greedy"].shape[1])
                yield from _judge(loaded, record, "generate", ids)
        if is_held(shape_of(record), plan):
            yield by_forward(loaded, record, *prompts(record, plan))
    if plan.generates:
        yield from left_alone(loaded)
        yield after_refusal(loaded)
        yield from beside_others(loaded)


def half(loaded: Loaded) -> tuple[Record, np.ndarray]:
    """The last record, and so much of its tokens that there is room for another one."""
    last = loaded.records[-1]
    return last, last.tokens[:, : (last.tokens.shape[1] + 1) // 2]


def left_alone(loaded: Loaded) -> Iterator[Measurement]:
    """What is held while generate is asked about other tokens: ids of its own, and a cache."""
    last, first = half(loaded)
    rest = last.tokens[:, first.shape[1] :]
    held = loaded.impl.generate(loaded.model, np.array(first), 1)
    before = np.array(held)
    _, past = loaded.forward(first)
    loaded.generated((first + 1) % loaded.hparams.n_vocab, 1)
    yield Measurement(last.name, KEPT, "differing_share", differing(np.array(held), before))
    if rest.size:
        got, _ = loaded.forward(rest, past)
        units = loaded.units(got, loaded.logits(last)[:, first.shape[1] :], last)
        yield Measurement(last.name, CACHE, "noise_units", units)


def after_refusal(loaded: Loaded) -> Measurement:
    """The next token after a text for which there was no room; that it is refused bad_tokens sees to."""
    full = np.zeros((1, loaded.hparams.n_ctx), np.int32)
    with contextlib.suppress(Exception, SystemExit):
        loaded.impl.generate(loaded.model, full, 2)
    return by_forward(loaded, *half(loaded), 1)._replace(scope=REFUSED)


def beside_others(loaded: Loaded) -> Iterator[Measurement]:
    """The first model's next token while another one is loaded, and the others' whole texts."""
    for name in OTHERS:
        with auxiliary_models.beside(loaded, name) as (other, record):
            if name == OTHERS[0]:
                yield by_forward(loaded, *half(loaded), 1)._replace(scope=BESIDES)
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
    n_new = min(plan.further, hparams.n_ctx - n)
    if shape_of(record) == plan.cases[-1] and plan.affords(MANY * (n + n_new)):
        more = np.random.default_rng(0).integers(0, hparams.n_vocab, (max(0, MANY - batch), n))
        tokens = np.concatenate([tokens, more.astype(np.int32)])
    return tokens, n_new


def teacher_forced(loaded: Loaded, record: Record) -> np.ndarray:
    """The choice at each position [batch, n_new], given the golden tokens before it."""
    golden = record.arrays["greedy"]
    tokens = np.concatenate([record.tokens, golden[:, :-1]], axis=1)
    return choose(loaded.forward(tokens)[0][:, -golden.shape[1] :])


def free_running(loaded: Loaded, record: Record) -> np.ndarray:
    """Ids [batch, n_new] chosen from its own earlier choices, decoding through the cache."""
    chosen: list[np.ndarray] = []
    tokens, past = record.tokens, None
    for _ in range(record.arrays["greedy"].shape[1]):
        logits, past = loaded.forward(tokens, past)
        tokens = choose(logits[:, -1:])
        chosen.append(tokens)
        tokens = np.maximum(tokens, 0)  # something to go on with: the verdict on -1 is certain
    return np.concatenate(chosen, axis=1)


def by_forward(loaded: Loaded, record: Record, tokens: np.ndarray, n_new: int) -> Measurement:
    """How many ids of generate forward, given those before, finds less likely than another."""
    n = tokens.shape[1]
    only = loaded.generated(tokens, 1)  # no more than that, and the prompt unspoilt
    ids = loaded.generated(tokens, n_new)
    given = np.concatenate([tokens, ids[:, :-1].clip(0, loaded.hparams.n_vocab - 1)], axis=1)
    logits = loaded.forward(given)[0][:, n - 1 :]  # [batch, n_new, n_vocab]
    tie = near_tie(record.noise(loaded.target.dtype))
    wrong, wrong_alone = unlikely(ids, logits, tie), unlikely(only, logits[:, :1], tie)
    detail = ""
    if wrong.any():
        row, at = (int(i) for i in np.argwhere(wrong)[0])
        detail = f"first at new token {at} of row {row}: id {ids[row, at]}, "
        detail += f"forward's likeliest is {logits[row, at].argmax()}"
    elif wrong_alone.any():
        row = int(np.argmax(wrong_alone))
        detail = f"when asked for one token: id {only[row, 0]} in row {row}, "
        detail += f"forward's likeliest is {logits[row, 0].argmax()}"
    n_wrong = int(wrong.sum() + wrong_alone.sum())
    return Measurement(record.name, ITSELF, "wrong_tokens", n_wrong, detail)


def unlikely(ids: np.ndarray, logits: np.ndarray, tie: float) -> np.ndarray:
    """Which ids [batch, n] are no tokens, or less likely by more than a tie than another is."""
    valid = (ids >= 0) & (ids < logits.shape[-1])
    chosen = np.take_along_axis(logits, np.where(valid, ids, 0)[..., None], axis=-1)[..., 0]
    return ~(valid & (chosen >= logits.max(axis=-1) - tie))  # NaN is not likely


def choose(logits: np.ndarray) -> np.ndarray:
    """The likeliest token at each position, int32; -1, which is never right, where any is NaN."""
    best = logits.argmax(axis=-1)
    return np.where(np.isnan(logits).any(axis=-1), -1, best).astype(np.int32)


def _judge(loaded: Loaded, record: Record, scope: str, ids: np.ndarray) -> Iterator[Measurement]:
    golden = record.arrays["greedy"]
    certified = record.arrays["margins"] > near_tie(record.noise(loaded.target.dtype))
    near_ties = int((~certified).sum())
    if scope != "teacher_forced":
        # compare up to a row's first difference: what follows it answers another question
        parted = np.cumsum(ids != golden, axis=1)
        certified = certified & ((parted == 0) | ((parted == 1) & (ids != golden)))
    wrong_at = certified & (ids != golden)
    wrong = int(wrong_at.sum())
    conclusive = bool(certified.any())
    detail = tell(loaded, record, ids, wrong_at)
    yield Measurement(record.name, scope, "wrong_tokens", wrong, detail, conclusive)
    detail = f"{near_ties} of {golden.size} positions are within the noise"
    yield Measurement(record.name, scope, "near_ties", near_ties, detail)


def tell(loaded: Loaded, record: Record, ids: np.ndarray, wrong_at: np.ndarray) -> str:
    """The text chosen; where it departs from golden, golden's text, the first such place, its margin.

    Of a batch it is the first row that is wrong, or else the first that differs within the noise.
    """
    golden = record.arrays["greedy"]
    differs = wrong_at if wrong_at.any() else ids != golden
    row = int(differs.any(axis=1).argmax())
    got, right = ids[row].tolist(), golden[row].tolist()
    detail = spelled(loaded, got)
    if not differs.any():
        return detail
    at = int(differs[row].argmax())
    instead, rightly = (spelled(loaded, ids[at : at + 1]) for ids in (got, right))
    margin, tie = record.arrays["margins"][row, at], near_tie(record.noise(loaded.target.dtype))
    return (
        f"{detail}, golden {spelled(loaded, right)}; first difference at token {at} of row {row}: "
        f"{instead} for {rightly}, golden margin {margin:.3g}, noise could bridge {tie:.3g}"
    )


def spelled(loaded: Loaded, ids: list[int]) -> str:
    """Ids as a text in quotes; as numbers, where one of them is no token (-1: chosen among NaN)."""
    known = all(0 <= i < loaded.hparams.n_vocab for i in ids)
    return repr(loaded.text(ids)) if known else f"ids {ids}"
