"""Compare the activations at every tap with the record."""

from collections.abc import Iterable, Iterator

from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.check import Check
from gpt2_parity.contract.limits import NOISE
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.reference.distance import max_abs


def expected(plan: Plan) -> Iterable[Key]:
    return [(case.name, name, "noise_units") for case in plan.cases for name in plan.taps]


def measure(loaded: Loaded, plan: Plan) -> Iterator[Measurement]:
    for record in loaded.records:
        taps = loaded.prefill(record).taps
        for name, value in taps.items():
            difference = max_abs(value[:, record.arrays["positions"]], record.tap(name))
            units = difference / record.noise(loaded.target.dtype, name)
            yield Measurement(
                record.name, name, "noise_units", units, {"greatest_difference": difference}
            )


def untapped(plan: Plan) -> list[str]:
    """The taps that this implementation does not offer."""
    return [name for name in tap_names(plan.hparams.n_layer) if name not in plan.taps]


CHECK = Check(
    name="activations",
    establishes="the result of every operation in every layer agrees with the float64 truth",
    expected=expected,
    measure=measure,
    limits={"noise_units": NOISE},
    after="logits",
    blames="activations",
    precedence=100,
    look_at="constants (epsilon, scale): every operation is within its own rounding, but together they "
    "are not",
    unseen=untapped,
)
