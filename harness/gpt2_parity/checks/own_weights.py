"""The weights that a model multiplies with are the checkpoint's, or are declared and near them.

Runs if an implementation offers ``weights(model)``. Without a declaration no weight may differ from the
checkpoint's by more than rounding. With WEIGHTS = "quantized" they may, as far as quantising explains;
then all other checks judge the model by its own weights, and what these cost is measured here against
the checkpoint: in the logits of all cases, and in the perplexity of the golden texts.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_parity.contract.architecture import parameter_shapes
from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.check import Check, OwnBlame
from gpt2_parity.contract.limits import NONE, REPORTED
from gpt2_parity.contract.plan import QUANTIZED, Key, Plan
from gpt2_parity.contract.rows import Evidence, Measurement
from gpt2_parity.implementation import own_weights
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference import distance, grids, oracle, parallel
from gpt2_parity.reference.records import Record

CASE = "own_weights"
ALL = "all_cases"  # of what the weights cost
COSTS = ("kl_nats", "top1_changed_share", "perplexity")
DIFFERENCE = "relative_difference"

CAPABILITY = Capability(
    signature=own_weights.SIGNATURE,
    returns="the weights it multiplies with, dequantized: arrays with the names and shapes of params",
    call=lambda loaded: loaded.own_weights(),
    too_long={},
)


def expected(plan: Plan) -> Iterable[Key]:
    if CAPABILITY not in plan.offers:
        return []
    metric = DIFFERENCE if plan.weights == QUANTIZED else "differing_share"
    each = [(CASE, name, metric) for name in parameter_shapes(plan.hparams)]
    return [*each, *((ALL, "logits", cost) for cost in COSTS)]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    if CAPABILITY not in plan.offers:
        return
    own = loaded.own_weights()
    declared = plan.weights == QUANTIZED
    names = list(parameter_shapes(plan.hparams))
    yield from parallel.each(lambda name: compared(loaded, name, own[name], declared), names)
    yield from costs(loaded)


def compared(loaded: Loaded, name: str, own: np.ndarray, declared: bool) -> Measurement:
    """One weight beside the checkpoint's; own: like it, [n, m] or [n]."""
    want = loaded.checkpoint[name]
    wrong = own_weights.differing(own, want, loaded.target.dtype)
    share, far = float(wrong.mean()), own_weights.relative_difference(own, want)
    evidence: Evidence = {}
    if share:
        evidence = {"weights_differ": share, "relative_difference": far, "grid": grid(name, own)}
    if declared:
        return Measurement(CASE, name, DIFFERENCE, far, evidence)
    return Measurement(CASE, name, "differing_share", share, evidence)


def grid(name: str, own: np.ndarray) -> Evidence:
    """The grid that a weight lies on, as JSON; empty if it is on none, or a vector."""
    if own.ndim < 2:
        return {}
    found = grids.grid_of(own, inputs=0 if name.endswith("/w") else 1)
    return found._asdict() if found else {}


def costs(loaded: Loaded) -> Iterator[Measurement]:
    """How far the model is from the checkpoint: over all positions of all cases together."""
    found = [apart(loaded, record) for record in loaded.golden]
    kl, changed = (np.concatenate([each[i] for each in found]) for i in range(2))
    n = {"over_positions": kl.size}
    yield Measurement(ALL, "logits", "kl_nats", float(kl.mean()), n | {"greatest": float(kl.max())})
    yield Measurement(ALL, "logits", "top1_changed_share", float(changed.mean()), n)
    texts = [record for record in loaded.golden if record.arrays["greedy"].size] or loaded.golden
    both = [surprise(loaded, record) for record in texts]
    own, right = (np.concatenate([each[i] for each in both]) for i in range(2))
    evidence = {"over_tokens": own.size, "of_the_checkpoint": float(np.exp(right.mean()))}
    yield Measurement(ALL, "logits", "perplexity", float(np.exp(own.mean())), evidence)


def apart(loaded: Loaded, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """KL divergence (nats) from the checkpoint, and whether the likeliest token differs: [batch * n]."""
    got, want = loaded.logits(record), record.logits
    return distance.divergences(got, want), (got.argmax(-1) != want.argmax(-1)).ravel()


def surprise(loaded: Loaded, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood (nats) of each token of a golden text but the first: [batch * (n - 1)].

    By the model, and by the checkpoint in float64. The text is the record's tokens and their golden
    continuation.
    """
    tokens = np.concatenate([record.tokens, record.arrays["greedy"]], axis=1)
    both = loaded.forward(tokens)[0], oracle.forward(loaded.checkpoint, loaded.hparams, tokens)
    one, other = (
        -np.take_along_axis(distance.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1).ravel()
        for logits in both
    )
    return one, other


CHECK = Check(
    name="own_weights",
    establishes="the weights it multiplies with are the checkpoint's, or declared quantized and near",
    expected=expected,
    measure=measure,
    limits={
        "differing_share": NONE,
        DIFFERENCE: own_weights.DIFFERENCE,
        **dict.fromkeys(COSTS, REPORTED),
    },
    after="precision",
    blames="weights",
    precedence=25,
    look_at='what weights(model) returns; if it is meant to differ, declare WEIGHTS = "quantized"',
    own_blame={"differing_share": OwnBlame("weights"), DIFFERENCE: OwnBlame("weights")},
    capability=CAPABILITY,
)
