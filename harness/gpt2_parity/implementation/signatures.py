"""Whether an implementation has the functions of the contract; all that is missing is reported together.

This module only checks that the functions can be called as they will be. implementation/loaded.py checks
what they return.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.dtypes import DTYPES
from gpt2_parity.contract.interface import CannotJudge, ContractBroken, Target
from gpt2_parity.contract.plan import CHECKPOINT, QUANTIZED, SLOW
from gpt2_parity.model import weight_layout


class Function(NamedTuple):
    """One function of the contract, and how it will be called."""

    signature: str
    gives: str
    arguments: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


REQUIRED = {
    "targets": Function("targets()", 'the (device, dtype) pairs that run here, as [("cpu", "float32")]'),
    "load": Function(
        "load(params, hparams, *, device, dtype)",
        "the model; params are float32 arrays by checkpoint name, w as [n_in, n_out]",
        ("params", "hparams"),
        ("device", "dtype"),
    ),
    "forward": Function(
        "forward(model, tokens, past=None, tap=None)",
        "(logits [batch, n, n_vocab] of every position of tokens [batch, n], cache)",
        ("model", "tokens", "past", "tap"),
    ),
    "numpy": Function("numpy(x)", "x on the host, as a NumPy array", ("x",)),
}
WITHOUT_CACHE = Function(
    "forward(model, tokens)",
    "logits [batch, n, n_vocab] of every position of tokens [batch, n]",
    ("model", "tokens"),
)
CACHES = (None, "in place")  # values of CACHE, beside its absence
GUIDE = "parity new NAME writes a commented skeleton"


def check(impl: Any, capabilities: Sequence[Capability] = ()) -> list[Target]:
    """The targets that an implementation offers, after checking its functions.

    capabilities: the optional functions, which are checked if they are defined.

    Raises ContractBroken, with all complaints in one text.
    """
    cache = getattr(impl, "CACHE", "")
    required = REQUIRED | ({"forward": WITHOUT_CACHE} if cache is None else {})
    complaints = [
        text for name, function in required.items() if (text := complaint(impl, name, function))
    ]
    if cache and cache not in CACHES:
        complaints.append(f'CACHE is {cache!r:.50}; expected None (there is none) or "in place"')
    reloads = getattr(impl, "RELOADS", SLOW)
    if reloads != SLOW:
        complaints.append(f'RELOADS is {reloads!r:.50}; expected "{SLOW}" (load compiles), or none')
    complaints += [
        text
        for each in capabilities
        if getattr(impl, each.name, None) is not None
        and (text := complaint(impl, each.name, function_of(each)))
    ]
    declared = getattr(impl, "WEIGHTS", CHECKPOINT)
    if declared not in (CHECKPOINT, QUANTIZED):
        complaints.append(f'WEIGHTS is {declared!r:.50}; expected "{QUANTIZED}" or "{CHECKPOINT}"')
    elif declared == QUANTIZED and getattr(impl, "weights", None) is None:
        complaints.append(
            f'WEIGHTS is "{QUANTIZED}", so it must have weights(model), which returns them'
        )
    try:
        weight_layout.of(impl)
    except CannotJudge as error:
        complaints.append(str(error))
    if complaints:
        raise ContractBroken(f"not yet an implementation: {'; '.join(complaints)}. {GUIDE}")
    return offered(impl.targets())


def function_of(capability: Capability) -> Function:
    """How a capability will be called."""
    positional, keywords = capability.arguments
    return Function(capability.signature, capability.returns, tuple(positional), tuple(keywords))


def complaint(impl: Any, name: str, function: Function) -> str:
    """What is wrong with one function; "" if nothing."""
    value = getattr(impl, name, None)
    if value is None:
        return f"it lacks {function.signature}, which returns {function.gives}"
    if not callable(value):
        return f"{name} is no function but {type(value).__name__}; expected {function.signature}"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some compiled functions have none
        return ""
    try:
        signature.bind(*function.arguments, **dict.fromkeys(function.keywords))
    except TypeError as error:
        return f"{name}{signature} cannot be called as {function.signature} ({error})"
    return ""


def accepts(function: Any, name: str) -> bool:
    """Whether a function can be called with an argument of that name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some compiled functions have none
        return True
    return any(each.name == name or each.kind == each.VAR_KEYWORD for each in parameters)


def offered(targets: Any) -> list[Target]:
    """The targets that targets() returned.

    Raises ContractBroken unless they are distinct (device, dtype) pairs with known dtypes.
    """
    try:
        pairs = [tuple(pair) for pair in targets]
    except TypeError as error:
        raise ContractBroken(
            f"targets() returned {targets!r:.100}; {REQUIRED['targets'].gives}"
        ) from error
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise ContractBroken(f"targets() offers {pair!r:.100}; expected (device, dtype) as strings")
        if pair[1] not in DTYPES:
            raise ContractBroken(
                f"targets() offers dtype {pair[1]!r:.50}; supported are {', '.join(DTYPES)}"
            )
    if len(set(pairs)) != len(pairs):
        raise ContractBroken(f"targets() offers the same target twice: {pairs!r:.200}")
    return [Target(*pair) for pair in pairs]
