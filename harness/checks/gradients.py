"""The loss and its gradient by every weight agree with the float64 truth.

Asked of implementations that offer ``loss_and_grads``, on the last case of more than one token. On
the way back from the loss an error reaches every weight before it, so where it comes in is where it
is met first; wpe and wte, which are used first, are met last.
"""

from collections.abc import Iterable, Iterator

from harness import gradient
from harness.contract import parameter_shapes
from harness.limits import limit
from harness.numerics import max_abs
from harness.subject import Key, Measurement, Plan, Subject

METRIC = "noise_units"
AFTER = "forward_after"  # whether forward is still what it was, dropout off, say


def examined(plan: Plan) -> str | None:
    """The case that is looked at: the last that has a token to predict."""
    names = [case.name for case in plan.cases if case.n > 1]
    return names[-1] if plan.differentiates and names else None


def expected(plan: Plan) -> Iterable[Key]:
    case = examined(plan)
    names = ("loss", *parameter_shapes(plan.hparams), AFTER) if case else ()
    return [(case or "", name, METRIC) for name in names]


def measure(subject: Subject, plan: Plan) -> Iterator[Measurement]:
    case = examined(plan)
    if case is None:
        return
    record = next(record for record in subject.records if record.name == case)
    subject.logits(record)  # before anything is spoilt, though this check be the first in its process
    # the second call is judged: gradients that pile up from call to call are right only once
    subject.loss_and_grads((record.tokens + 1) % subject.hparams.n_vocab)
    given = subject.loss_and_grads(record.tokens)
    dtype, first = subject.target.dtype, ""
    for name, want, unit in gradient.measure(subject.params, subject.hparams, record.tokens, dtype, 0):
        if name not in given:
            continue  # the judge finds it missing
        difference = max_abs(given[name], want)
        found = Measurement(
            case, name, METRIC, difference / unit, f"greatest difference {difference:.3g}"
        )
        allowed = limit("gradients", name, METRIC)
        if allowed is not None and not found.value <= allowed.most:
            first = first or name
            found = found._replace(
                diagnosis=f"on the way back from the loss it is wrong from {first} on"
            )
        yield found
    units = subject.units(subject.forward(record.tokens)[0], subject.logits(record), record)
    yield Measurement(case, AFTER, METRIC, units)
