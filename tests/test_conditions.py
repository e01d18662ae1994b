"""The search sees faults that need a condition, and does not alarm where the path changes by shape."""

import random

import numpy as np
import pytest

import conditioned
import conditions
from by_shape import BY_SHAPE
from conditioned import Atom, Conditioned, Counted, Facts, History, Plain
from faults import named
from gpt2_parity.checks.search.calls import play
from gpt2_parity.checks.search.draw import Offer, trials
from gpt2_parity.checks.search.judge import judge
from gpt2_parity.checks.search.trial import Step, Trial
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.plan import KEPT

FAULTS, TRIALS, FOREVER = 12, 40, 1e9
HPARAMS = HParams(31, 12, 8, 2, 1)


def facts(**fields: int) -> Facts:
    """The facts of a first call of one token, but for the given ones."""
    sizes = dict.fromkeys(conditioned.RANGES, 1)
    named_facts = {name: fields.pop(name) for name in Facts._fields[1:] if name in fields}
    return Facts(sizes | fields, *[0] * 7)._replace(**named_facts)


def test_most_conditioned_faults_are_seen_within_a_few_trials_and_blamed_rightly():
    drawn = conditioned.draw(100)
    result = conditions.search(100, [next(drawn) for _ in range(FAULTS)], FOREVER, TRIALS)
    seen = [killed for killed in result.killed if killed]
    assert len(seen) >= FAULTS * 0.7
    assert not [killed for killed in seen if killed.blamed is False]
    assert result.alarms == []


def test_a_fault_that_is_never_at_work_is_not_seen():
    fault = conditioned.ConditionedFault(
        "", "one axis", frozenset(), lambda: conditioned.plant(named("relu")), Atom("batch", ">", 500)
    )
    assert conditions.search(100, [fault], FOREVER, 20).killed == [None]


def test_seeds_draw_other_faults_and_the_same_seed_the_same():
    first, again, other = (
        [fault.name for fault, _ in zip(conditioned.draw(seed), range(5), strict=False)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("condition", "met", "unmet"),
    [
        (Atom("queries", ">", 7), facts(queries=8), facts(queries=7)),
        (Atom("keys", "between", 5, 7), facts(keys=7), facts(keys=8)),
        (Atom("queries", "%", 7, 3), facts(queries=10), facts(queries=11)),
        (Counted("call", "==", 9), facts(call=9), facts(call=10)),
        (Counted("call", "every", 9), facts(call=17), facts(call=9)),
        (Counted("shared", ">=", 4), facts(shared=5), facts(shared=3)),
    ],
)
def test_conditions(condition, met, unmet):
    assert condition(met)
    assert not condition(unmet)


def test_what_came_before_a_call():
    history = History()
    right = Conditioned(Plain(), conditioned.never)
    model = right.load(
        conditioned.synthetic.generate(HPARAMS, 0), HPARAMS, device="cpu", dtype="float32"
    )
    one, other = np.array([[1, 2, 3, 4]], np.int32), np.array([[1, 2, 9, 9]], np.int32)
    chunk = np.array([[5, 6]], np.int32)
    _, after_one = right.forward(model, one)
    _, after_other = right.forward(model, other)
    right.forward(model, chunk, after_one)
    right.forward(model, chunk, after_one)
    right.forward(model, chunk, after_other)
    right.forward(model, one)
    log = right.log
    assert [each.shared for each in log] == [0, 2, 0, 0, 0, 2]
    assert [each.continued for each in log] == [0, 0, 0, 1, 0, 0]
    assert [each.adopted for each in log] == [0, 0, 0, 0, 2, 0]
    assert [each.again for each in log] == [0, 0, 0, 0, 0, 1]
    assert [each.call for each in log] == [*range(6)]
    assert history.facts(HPARAMS, one, None, 0).sizes["keys"] == 4


def test_steps_of_one_text_are_pieces_of_it():
    steps = (
        Step(batch=3, n=7, ids="text"),
        Step(batch=2, n=4, ids="text"),
        Step(past=1, batch=2, n=3, ids="text"),
    )
    tokens = Trial(HPARAMS, steps, (), 5).tokens()
    assert (tokens[1] == tokens[0][:2, :4]).all()
    assert (tokens[2] == tokens[0][:2, 4:7]).all()
    fewer = Trial(HPARAMS, steps[1:2], (), 5).tokens()
    assert (fewer[0] == tokens[1]).all()  # a trial that is made smaller keeps its text


def test_every_trial_is_possible():
    offers = [Offer(["generate", "loss_and_grads"]), Offer((), taps=False, branches=False)]
    for offer in offers:
        for _, trial in zip(range(150), trials(3, offer), strict=False):
            assert trial.possible()
            continued = [step.past for step in trial.steps if step.past >= 0]
            assert offer.branches or len(continued) == len({*continued})


@pytest.mark.parametrize("name", BY_SHAPE)
def test_kernels_that_take_another_path_for_other_shapes_are_right(name):
    under = conditions.loaded(Plain.with_(name, **BY_SHAPE[name]))
    steps = [Step(batch=3, n=41, ids="text"), Step(past=0, batch=3, n=9, ids="text")]
    steps += [Step(past=1, batch=3, ids="text"), Step(n=1, ids="text"), Step(batch=2, n=6, ids="text")]
    taps = not BY_SHAPE[name].keys() & {"TAPS"}
    trial = Trial(
        HParams(97, 64, 48, 3, 2), tuple(steps), (), random.Random(name).randrange(2**31), taps
    )
    judged = judge(play(under, trial), KEPT)
    assert not [found for found in judged.found if found.wrong]


def test_an_implementation_that_has_numpy_raise_does_not_stop_the_judge():
    def weights_and_raise(params, hparams, dtype):
        np.seterr(all="raise")
        return Plain.converted(params, hparams, dtype)

    wrapped = {"converted": weights_and_raise, "softmax": quiet_softmax}
    under = conditions.loaded(Plain.with_("raises", **wrapped))
    trial = Trial(HPARAMS, (Step(n=9),), ("gelu_inputs", "attention_scores"), 1, tapped=True)
    with np.errstate():
        judged = judge(play(under, trial), KEPT)
    assert not [found for found in judged.found if found.wrong]


def quiet_softmax(scores, at):
    with np.errstate(all="ignore"):
        return Plain.softmax(scores, at)
