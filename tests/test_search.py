"""The search: what it draws, that honest code passes, and that faults with a condition do not."""

import itertools
import json
import random

import numpy as np
import pytest

from examine import FLOAT32
from faults import Plain
from gpt2_parity.checks import search
from gpt2_parity.checks.search import calls, draw, narrow, truth
from gpt2_parity.checks.search.envelope import spans
from gpt2_parity.checks.search.trial import GENERATE, GRADIENTS, REFUSED, Step, Trial, paths
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.plan import IN_PLACE, Asked
from gpt2_parity.implementation.extremes import EXTREMES, weights
from gpt2_parity.reference import oracle
from gpt2_parity.run import in_process
from gpt2_parity.verdict import explain

SMALL = HParams(n_vocab=31, n_ctx=40, n_embd=8, n_head=2, n_layer=1)
EVERYTHING = draw.Offer(offers=("generate", "loss_and_grads"))


class Counted:
    """A budget of steps instead of seconds: no verdict here depends on the machine."""

    RATE = 100  # steps a second

    def __init__(self, seconds):
        self.left = seconds * self.RATE

    @property
    def spent(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    monkeypatch.setattr(search, "Budget", Counted)
    monkeypatch.setattr(search, "ENOUGH", 1)


def searched(module, prepared, seconds=0.001, seed=1):
    """The rows of the check search on a module, in this process. seconds: hundreds of trials."""
    state = prepared.state(module.__name__, "micro")
    state.asked = Asked(only=("search",), search=seconds, seed=seed)
    in_process.measure(state, module, FLOAT32, prepared)
    return state.rows


def failed(rows):
    return {row.scope for row in rows if row.verdict == "fail"}


# ---- what is drawn


def test_the_same_seed_draws_the_same_trials_and_another_one_others():
    first, again, other = ([*itertools.islice(draw.trials(seed, EVERYTHING), 40)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_trial_is_possible_and_survives_json():
    for trial in itertools.islice(draw.trials(3, EVERYTHING), 120):
        assert trial.possible()
        assert Trial.of(json.loads(json.dumps(trial.as_json()))) == trial


def test_what_is_not_offered_is_not_asked():
    offer = draw.Offer(offers=(), taps=False, branches=False, refuses=False)
    for trial in itertools.islice(draw.trials(4, offer), 120):
        assert not trial.tapped
        assert not {GENERATE, GRADIENTS, REFUSED} & {step.kind for step in trial.steps}
        used = [step.past for step in trial.steps if step.past >= 0]
        assert len(used) == len(set(used))


def test_all_pairs_of_strata_are_combined():
    names, rows = [*draw.AXES], []
    combined = draw.combinations(random.Random(1))
    rows = [*itertools.islice(combined, 200)]
    for a, b in itertools.combinations(names, 2):
        strata = {(i, j) for i in range(len(draw.AXES[a])) for j in range(len(draw.AXES[b]))}
        seen = {
            (i, j)
            for row in rows
            for i, some in enumerate(draw.AXES[a])
            for j, others in enumerate(draw.AXES[b])
            if row[a] in some and row[b] in others
        }
        assert seen == strata, (a, b)


def test_the_stated_bounds_are_reached():
    trials = [*itertools.islice(draw.trials(5, EVERYTHING), 700)]
    assert max(trial.hparams.n_head for trial in trials) >= 25
    assert max(trial.hparams.n_vocab for trial in trials) >= 50257
    assert max(step.batch for trial in trials for step in trial.steps) >= 64
    assert max(max(trial.lengths()) for trial in trials) >= 1025
    assert max(trial.hparams.n_embd for trial in trials) >= 768


@pytest.mark.parametrize(
    ("steps", "hparams"),
    [
        ((Step(n=41),), SMALL),
        ((Step(n=30), Step(past=0, n=11)), SMALL),
        ((Step(batch=2), Step(past=0, batch=3)), SMALL),
        ((Step(GENERATE, n=3), Step(past=0)), SMALL),
        ((Step(GRADIENTS, n=1),), SMALL),
        ((Step(n=0),), SMALL),
        ((), SMALL),
        ((Step(),), SMALL._replace(n_embd=9)),
        ((Step(),), SMALL._replace(n_embd=2)),
    ],
)
def test_an_impossible_trial_is_known(steps, hparams):
    assert not Trial(hparams, steps).possible()


def test_the_paths_of_a_tree_of_caches():
    steps = [Step(n=3), Step(past=0), Step(past=0, n=2), Step(past=2)]
    assert paths(steps) == [[0], [0, 1], [0, 2], [0, 2, 3]]


def test_equal_beginnings_are_equal_and_the_rest_is_not():
    trial = Trial(SMALL, (Step(batch=2, n=9), Step(batch=3, n=5, like=0), Step(batch=2, n=9)))
    first, like, other = trial.tokens()
    assert np.array_equal(first[:2, :5], like[:2])
    assert not np.array_equal(first, other)


# ---- weights and truth


@pytest.mark.parametrize(
    ("extreme", "quantity", "low", "high"),
    [
        ("gelu_inputs", "GELU inputs", -50, 50),
        ("attention_scores", "attention scores", -70, 100),
        ("residuals", "residuals", 1, 9e3),
        ("variances", "variances", 1e-11, 1e6),
        ("means", "residuals", 1, 1e3),
    ],
)
def test_an_extreme_reaches_its_range(extreme, quantity, low, high):
    hparams = HParams(n_vocab=40, n_ctx=40, n_embd=64, n_head=8, n_layer=1)
    tokens = np.arange(40, dtype=np.int32)[None]
    params = weights(hparams, (extreme,), 3, "float32")
    least, greatest = truth.truth(params, hparams, tokens, "float32").ranges[quantity]
    assert least <= low
    assert greatest >= high


def test_no_extreme_overflows_float16():
    tokens = np.arange(40, dtype=np.int32)[None]
    hparams = HParams(n_vocab=40, n_ctx=40, n_embd=64, n_head=8, n_layer=2)
    for extreme in EXTREMES:
        params = weights(hparams, (extreme,), 3, "float16")
        assert not truth.outside(truth.truth(params, hparams, tokens, "float16"), "float16"), extreme


def test_the_truth_of_a_beginning_is_that_of_the_whole_text():
    params = weights(SMALL, (), 3, "float32")
    text = np.random.default_rng(1).integers(0, 31, (3, 12)).astype(np.int32)
    whole, part = truth.truths(params, SMALL, [text, text[:2, :7]], "float32")
    np.testing.assert_allclose(part.logits, oracle.forward(params, SMALL, text[:2, :7]), rtol=1e-12)
    assert part.logits.base is whole.logits


# ---- verdicts


def test_honest_code_passes_and_says_what_was_seen(prepared):
    rows = searched(Plain(), prepared, seconds=0.2)
    assert failed(rows) == set()
    [envelope] = [row.evidence["envelope"] for row in rows if "envelope" in row.evidence]
    assert envelope["calls"] > 50
    assert envelope["axes"]["batch"][-1][1] > 8
    assert 0 < envelope["rarest_race"] < 0.1


def conditioned(condition, **replaced):
    """Plain, with other functions where condition(at, x) holds."""

    def when(name):
        right = vars(Plain)[name].__func__

        def either(x, *rest):
            return (replaced[name] if condition(rest[-1], x) else right)(x, *rest)

        return either

    return Plain.with_("conditioned", **{name: when(name) for name in replaced})


def seeing(scores, at):
    return scores  # no mask


def nothing(x, *rest):
    return x * 0


CASES = {
    "few queries after a cache": (
        lambda at, x: at.n_past >= 16 and 5 <= x.shape[2] <= 7,
        {"mask": seeing},
        "attn/heads",
        "fails for queries 5 to 7",
    ),
    "more heads": (
        lambda at, x: x.shape[1] > 8,
        {"softmax": nothing},
        "attn/heads",
        "passes for 4 to 8",
    ),
    "many rows": (
        lambda at, x: x.shape[0] > 16,
        {"gelu": nothing},
        "mlp/gelu",
        "fails for batch 17 to 20, 24, 31 to 33",
    ),
    "a value": (
        lambda at, x: float(x.max()) > 20,
        {"gelu": lambda x, at: np.where(x > 20, np.nan, x)},
        "mlp/gelu",
        "smallest trial",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_with_a_condition_is_blamed_and_its_condition_told(prepared, name):
    condition, replaced, operation, said = CASES[name]
    rows = searched(conditioned(condition, **replaced), prepared, seconds=0.6)
    assert f"h*/{operation}" in failed(rows)
    [row] = [row for row in rows if row.scope == f"h*/{operation}"]
    assert row.blame == f"h*/{operation}"
    assert said in explain.detail(row)


def test_what_fails_without_taps_only_is_blamed_on_the_call(prepared):
    fault = conditioned(lambda at, x: at.tap is None and x.shape[0] > 8, head=nothing)
    rows = searched(fault, prepared, seconds=0.4)
    assert {"prefill"} <= failed(rows) <= {"prefill", "decode"}
    assert {row.blame for row in rows if row.verdict == "fail"} <= {"forward", "cache"}


def test_a_cache_of_blocks_without_what_came_before_them_is_found(prepared):
    """Blocks of 16 tokens are found again by their own tokens and place."""

    class Blocks(Plain):
        __name__ = "blocks"

        def forward(self, model, tokens, past=None, tap=None):
            if past is not None or tap is not None or len(tokens) > 1:
                return super().forward(model, tokens, past, tap)
            parts, cache, store = [], None, self.memory.setdefault(id(model), {})
            for at in range(0, tokens.shape[1], 16):
                block = tokens[:, at : at + 16]
                logits, cache = super().forward(model, block, cache)
                parts.append(store.setdefault((at, block.tobytes()), logits))
            return np.concatenate(parts, axis=1), cache

    assert "prefill" in failed(searched(Blocks(), prepared, seconds=0.5))


def test_what_always_fails_ends_the_search_at_once(prepared, monkeypatch):
    monkeypatch.setattr(search, "ENOUGH", 2)
    rows = searched(Plain.with_("zero", gelu=nothing), prepared, seconds=60)
    [row] = [row for row in rows if row.scope == "h*/mlp/gelu"]
    assert row.verdict == "fail"
    assert row.evidence["search"]["trials"] == 2
    assert "condition" not in row.evidence["search"]


def test_a_rare_fault_is_told_to_be_rare(prepared):
    class Rare(Plain):
        __name__ = "rare"
        calls = 0

        def forward(self, model, tokens, past=None, tap=None):
            self.calls += 1
            logits, present = super().forward(model, tokens, past, tap)
            return (logits + (self.calls == 60)), present

    rows = searched(Rare(), prepared, seconds=0.2)
    assert failed(rows)
    texts = [explain.detail(row) for row in rows if row.verdict == "fail"]
    assert any("did not fail again" in text for text in texts)


def test_what_fails_no_more_once_it_is_smaller_is_told_to_be_rare(prepared, monkeypatch):
    monkeypatch.setattr(
        search, "smallest", lambda trial, *_: trial._replace(steps=(Step(),), extremes=())
    )
    fault = conditioned(lambda at, x: at.n_past > 2 and x.shape[0] > 3, gelu=nothing)
    rows = searched(fault, prepared, seconds=0.6)
    assert "error" not in {row.status for row in rows}
    assert any("did not fail again" in explain.detail(row) for row in rows if row.verdict == "fail")


def test_an_error_for_valid_sizes_is_a_failure(prepared):
    class Picky(Plain):
        __name__ = "picky"

        def forward(self, model, tokens, past=None, tap=None):
            if len(tokens) > 4:
                raise RuntimeError("batch too large")
            return super().forward(model, tokens, past, tap)

    rows = searched(Picky(), prepared, seconds=0.2)
    [row] = [row for row in rows if row.scope == "prefill"]
    assert (row.verdict, row.status) == ("fail", "infinite")
    assert "batch too large" in explain.detail(row)


def test_sizes_that_are_refused_at_load_are_told_and_not_counted_as_right(prepared):
    class Even(Plain):
        __name__ = "even"

        def load(self, params, hparams, *, device, dtype):
            if hparams.n_head > 5:
                raise ValueError("five heads at most")
            return super().load(params, hparams, device=device, dtype=dtype)

    rows = searched(Even(), prepared, seconds=0.2)
    assert failed(rows) == set()
    [envelope] = [row.evidence["envelope"] for row in rows if "envelope" in row.evidence]
    assert envelope["n_refused"] > 0
    assert "five heads at most" in envelope["refused"][0]
    assert max(high for _, high in envelope["axes"]["n_head"]) <= 5


def test_nothing_that_could_be_loaded_is_no_pass(prepared):
    class Never(Plain):
        __name__ = "never"

        def load(self, params, hparams, *, device, dtype):
            if hparams.n_embd != prepared.hparams.n_embd or hparams.n_ctx != prepared.hparams.n_ctx:
                raise ValueError("micro only")
            return super().load(params, hparams, device=device, dtype=dtype)

    rows = searched(Never(), prepared)
    assert {row.status for row in rows} == {"missing"}
    assert {row.verdict for row in rows} == {"fail"}


def test_an_accepted_bad_id_in_a_history_is_a_failure(prepared):
    class Clamping(Plain):
        __name__ = "clamping"
        refuse = staticmethod(lambda tokens, n_past, hparams: None)

        def embed(self, tokens, wte, wpe, at):
            return wte[np.clip(tokens, 0, len(wte) - 1)] + wpe[at.n_past : at.n_past + tokens.shape[1]]

    rows = searched(Clamping(), prepared, seconds=0.2)
    assert failed(rows) & {"prefill", "decode"}
    assert any("accepted a bad id" in explain.detail(row) for row in rows)


def test_a_cache_in_place_is_continued_in_one_way_only(prepared):
    class InPlace(Plain):
        __name__ = "in_place"
        CACHE = IN_PLACE

        def forward(self, model, tokens, past=None, tap=None):
            if past is not None and getattr(past, "used", False):
                raise RuntimeError("continued twice")
            logits, present = super().forward(model, tokens, past, tap)
            if past is not None:
                past.used = True
            return logits, type("Used", (list,), {})(present)

    assert failed(searched(InPlace(), prepared, seconds=0.2)) == set()


def test_without_a_budget_nothing_is_searched(prepared):
    state = prepared.state("plain", "micro")
    state.asked = Asked(only=("search",))
    in_process.measure(state, Plain(), FLOAT32, prepared)
    assert [row for row in state.rows if row.check == "search"] == []


# ---- narrowing


def test_the_smallest_trial_keeps_what_is_needed():
    steps = (Step(batch=5, n=20), Step(past=0, batch=5, n=6), Step(batch=2, n=3), Step(past=1, batch=5))
    trial = Trial(SMALL._replace(n_layer=4, n_ctx=200), steps, ("means",), seed=4)

    def fails(each):
        return any(
            step.past >= 0 and each.steps[step.past].n >= 16 and 5 <= step.n <= 7 for step in each.steps
        )

    least = narrow.smallest(trial, fails, narrow.Budget(30))
    assert least.steps == (Step(n=16), Step(past=0, n=5))
    assert least.hparams == HParams(n_vocab=2, n_ctx=21, n_embd=4, n_head=1, n_layer=1)
    assert least.extremes == ()
    found = {each["axis"]: each for each in narrow.conditions(least, 1, fails, narrow.Budget(30))}
    assert set(found) == {"queries", "tokens in the cache"}
    assert found["queries"]["fails"] == [5, 6, 7]
    assert {1, 4, 8} <= set(found["queries"]["passes"])


def test_a_condition_on_the_weights_is_told():
    trial = Trial(SMALL, (Step(),), ("gelu_inputs", "means"))
    found = narrow.conditions(trial, 0, lambda each: "means" in each.extremes, narrow.Budget(30))
    assert found == [{"axis": "weights", "fails": ["means"], "passes": ["gelu_inputs"]}]


def test_values_are_joined_into_spans():
    assert spans({1, 2, 3, 7, 9, 10}) == [[1, 3], [7, 7], [9, 10]]
    assert explain.listed([1, 2, 3, 5, 8, 9]) == "1 to 3, 5, 8, 9"


# ---- blame


def test_what_the_local_check_has_blamed_is_not_blamed_again(prepared):
    wrong = Plain.with_("zero", gelu=nothing)
    state = prepared.state("zero", "micro")
    state.asked = Asked(only=("local", "search"), search=0.001, seed=1)
    in_process.measure(state, wrong, FLOAT32, prepared)
    blamed = {row.blame for row in state.rows if row.verdict == "fail" and row.check == "local"}
    assert blamed == {f"h{i}/mlp/gelu" for i in range(4)}
    inherited = {row.blame for row in state.rows if row.check == "search" and row.verdict == "fail"}
    assert inherited == {"h*/mlp/gelu"}
    [findings] = explain.findings(state.rows).values()
    assert [finding.where for finding in findings if "introduces" in finding.claim] == ["h*/mlp/gelu"]


def test_a_model_that_is_not_loaded_is_told(prepared):
    class Never(Plain):
        def load(self, params, hparams, *, device, dtype):
            raise NotImplementedError("no")

    from gpt2_parity.implementation.loaded import Loaded

    with pytest.raises(calls.NotLoaded, match="no"):
        calls.play(Loaded(Never(), None, FLOAT32, {}, SMALL, []), Trial(SMALL, (Step(),)))
