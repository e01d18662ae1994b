"""The loss and its gradient by every weight agree with the float64 truth.

Asked of implementations that offer ``loss_and_grads``, on the last case that has a token to predict,
on the longest, where the model is small enough (a loss taken in pieces goes wrong between them), and
of two other models, one of which has large logits. On the way back from the loss an error reaches every
weight before it, so where it comes in is where it is met first; wpe and wte, which are used first, are
met last.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import parameter_shapes
from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.check import Check
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.limits import NONE, Limit
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation import auxiliary_models
from gpt2_parity.implementation.loaded import Loaded, describe
from gpt2_parity.reference import gradient, noise
from gpt2_parity.reference.distance import differing, max_abs
from gpt2_parity.reference.records import Record

METRIC = "noise_units"
GRADIENT = Limit(
    16.0,
    "Noise units, as for logits, but of many small arrays, each with the unit of eight draws: honest "
    "float32 was seen to reach 4.8, and float16 on outliers 9.3 in one of 60 seeds; faults are at 100s.",
)
AFTER = "forward_after"  # whether forward is still what it was, dropout off, say
OTHERS = (auxiliary_models.SECOND, auxiliary_models.LOGITS)
KEPT = "kept"  # whether later calls leave alone what one has returned
PASSES = 3 * (1 + noise.DRAWS)  # forward, that the way there and back costs, exact and in every draw


def loss_and_grads(loaded: Loaded, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The "loss" [] and the gradients by checkpoint name, on the host, for tokens int32 [batch, n].

    Raises ContractBroken for a result that is no such pair, an unknown name or a misshapen gradient.
    """
    return gradients(loaded, loaded.impl.loss_and_grads(loaded.model, np.array(tokens)))


def gradients(loaded: Loaded, returned: Any) -> dict[str, np.ndarray]:
    """What loss_and_grads returned, on the host. Raises ContractBroken likewise."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not isinstance(returned[1], Mapping):
        raise ContractBroken(
            f"loss_and_grads returned {describe(returned)}, "
            "the contract says (loss, gradients by checkpoint name)"
        )
    loss, grads = returned
    shapes = parameter_shapes(loaded.hparams)
    if unknown := [name for name in grads if name not in shapes]:
        raise ContractBroken(
            f"loss_and_grads gave a gradient by {unknown[0]!r}, which is not the name of a weight"
        )
    given = {"loss": np.array(float(loss))}
    for name, value in grads.items():
        given[name] = loaded.array(f"the gradient by {name}", value, shapes[name], "that of its weight")
    return given


CAPABILITY = Capability(
    signature="loss_and_grads(model, tokens)",
    returns="the mean next-token cross entropy (nats), and its gradients by checkpoint name",
    call=lambda loaded, tokens: float(loaded.impl.loss_and_grads(loaded.model, np.array(tokens))[0]),
)


def examined(plan: Plan) -> list[str]:
    """The cases that are looked at, those fixed for good before the fresh one."""
    cases = [case for case in plan.cases if case.n > 1]
    if CAPABILITY not in plan.offers or not cases:
        return []
    small = [case for case in cases if plan.affords(PASSES * case.batch * case.n)]
    longest = max(small, key=lambda case: case.n, default=cases[-1])
    return list(dict.fromkeys((longest.name, cases[-1].name)))


def expected(plan: Plan) -> Iterable[Key]:
    cases = examined(plan)
    if not cases:
        return []
    names = ("loss", *parameter_shapes(plan.hparams))
    others = ("loss", *parameter_shapes(auxiliary_models.SIZES))
    besides = ((AFTER, METRIC), (KEPT, "differing_share"))
    return [
        *((case, name, METRIC) for case in cases for name in names),
        *((case, name, METRIC) for case in OTHERS for name in others),
        *((cases[-1], *key) for key in besides),
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    cases = examined(plan)
    records = {record.name: record for record in loaded.records}
    if not cases:
        return
    last = records[cases[-1]]
    loaded.logits(last)  # before anything is spoilt, though this check be the first in its process
    # later calls are judged: gradients that pile up from call to call are right only once
    held = loaded.impl.loss_and_grads(loaded.model, (last.tokens + 1) % loaded.hparams.n_vocab)
    before = gradients(loaded, held)
    for case in cases[:-1]:
        yield from way_back(loaded, records[case])
    for name in OTHERS:
        with auxiliary_models.beside(loaded, name) as (other, record):
            if name == OTHERS[0]:  # of the first model, while another one is loaded
                yield from way_back(loaded, last)
            yield from way_back(other, record)
    after = gradients(loaded, held)
    overwritten = [name for name, given in before.items() if differing(after[name], given)]
    share = len(overwritten) / len(before)
    yield Measurement(last.name, KEPT, "differing_share", share, {"overwritten": overwritten[:3]})
    units = loaded.units(loaded.forward(last.tokens)[0], loaded.logits(last), last)
    yield Measurement(last.name, AFTER, METRIC, units)


def way_back(loaded: Loaded, record: Record) -> Iterator[Measurement]:
    """The loss of a record's tokens and its gradients, the last first."""
    given, first = loss_and_grads(loaded, record.tokens), ""
    truth = gradient.measure(loaded.params, loaded.hparams, record.tokens, loaded.target.dtype, seed=0)
    for name, want, unit in truth:
        if name not in given:
            continue  # the judge finds it missing
        difference = max_abs(given[name], want)
        units = difference / unit
        evidence: Evidence = {"greatest_difference": difference}
        if not units <= GRADIENT.most:
            first = first or name
            evidence |= {"wrong_from": first}
        yield Measurement(record.name, name, METRIC, units, evidence)


CHECK = Check(
    name="gradients",
    establishes="the loss and its gradient by every weight agree with the float64 truth",
    expected=expected,
    measure=measure,
    limits={METRIC: GRADIENT, "differing_share": NONE},
    after="overflow",
    blames="gradients",
    precedence=110,
    look_at="the way back: the mean over all predicted tokens, both uses of wte, what is cut off",
    auxiliary=True,
    capability=CAPABILITY,
)
