"""The loss and its gradient by every weight agree with the float64 truth.

Runs if an implementation offers ``loss_and_grads``: on the last case that has a token to predict, on the
longest if the model is small enough (a loss computed in pieces may be wrong where they meet), and on two
auxiliary models, one of which has large logits. In the backward pass an error reaches every weight
before it, so the first wrong gradient, counted from the loss, shows where it enters. wpe and wte are
used first, so they come last.
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
from gpt2_parity.implementation.auxiliary_models import looked_at
from gpt2_parity.implementation.loaded import Loaded, describe
from gpt2_parity.reference import gradient, noise, truth
from gpt2_parity.reference.distance import differing, max_abs
from gpt2_parity.reference.records import FRESH, Record

METRIC = "noise_units"
GRADIENT = Limit(
    16.0,
    "Noise units as for logits, but of many small arrays, each with a unit from eight draws. Honest "
    "float32 was at up to 4.8, float16 on outliers at 9.3 in one of 60 seeds; faults are in the 100s.",
)
AFTER = "forward_after"  # forward must still give the same logits: dropout off, for example
OTHERS = (auxiliary_models.SECOND, auxiliary_models.LOGITS)
KEPT = "kept"  # later calls must not overwrite earlier results
PASSES = 3 * (1 + noise.DRAWS)  # the cost of forward and backward, exact and per draw, in forward passes


def loss_and_grads(loaded: Loaded, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The "loss" [] and the gradients by checkpoint name, on the host, for tokens int32 [batch, n].

    Raises ContractBroken for a result that is not such a pair, an unknown name or a misshapen gradient.
    """
    return gradients(loaded, loaded.impl.loss_and_grads(loaded.model, np.array(tokens)))


def gradients(loaded: Loaded, returned: Any) -> dict[str, np.ndarray]:
    """What loss_and_grads returned, as the function above returns it, with the same exceptions."""
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
    """The names of the cases to examine: the longest affordable one, and the last one."""
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
        *((case, name, METRIC) for case in looked_at(plan, OTHERS) for name in others),
        *((cases[-1], *key) for key in besides),
    ]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    cases = examined(plan)
    records = {record.name: record for record in loaded.records}
    if not cases:
        return
    last = records[cases[-1]]
    loaded.logits(last)  # kept now, in case this check runs first and its calls spoil something
    # later calls are judged: gradients that accumulate from call to call are right only once
    held = loaded.impl.loss_and_grads(loaded.model, (last.tokens + 1) % loaded.hparams.n_vocab)
    before = gradients(loaded, held)
    for case in cases[:-1]:
        yield from way_back(loaded, records[case])
    for name in looked_at(plan, OTHERS):
        other, record = auxiliary_models.beside(loaded, name)
        if name == OTHERS[0]:  # the model under test, while another one is loaded
            yield from way_back(loaded, last, keep=plan.affords(PASSES * last.tokens.size))
        yield from way_back(other, record)
    after = gradients(loaded, held)
    overwritten = [name for name, given in before.items() if differing(after[name], given)]
    share = len(overwritten) / len(before)
    yield Measurement(last.name, KEPT, "differing_share", share, {"overwritten": overwritten[:3]})
    units = loaded.units(loaded.forward(last.tokens)[0], loaded.logits(last), last)
    yield Measurement(last.name, AFTER, METRIC, units)


def truths(loaded: Loaded, record: Record, keep: bool) -> Iterator[tuple[str, np.ndarray, float]]:
    """The loss and every gradient of a record, each with its noise unit; kept where that is cheap."""
    arguments = (loaded.params, loaded.hparams, record.tokens, loaded.target.dtype)
    if not keep or (record.name == FRESH and loaded.folder is None):
        return gradient.measure(*arguments, seed=0)
    return truth.gradients(*arguments, loaded.folder if record.name == FRESH else None)


def way_back(loaded: Loaded, record: Record, keep: bool = True) -> Iterator[Measurement]:
    """Measure the loss on a record's tokens and its gradients, from the last layer to the first.

    keep: whether their truth is kept for other workers; that of a large model fills the disk.
    """
    given, first = loss_and_grads(loaded, record.tokens), ""
    for name, want, unit in truths(loaded, record, keep):
        if name not in given:
            continue  # the judge reports it as missing
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
    look_at="the backward pass: the mean over all predicted tokens, both uses of wte, detached tensors",
    auxiliary=True,
    capability=CAPABILITY,
)
