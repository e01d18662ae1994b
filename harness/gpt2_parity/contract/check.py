"""The declaration of a check.

The rest of the package derives from these declarations: how optional functions are called, the skeleton
of ``parity new``, the calls that bad_tokens makes, the table of limits, the order of mechanisms and the
hints. A test compares the README's table of checks with them. tests/test_capability.py has a complete
example of a check with a capability, from outside the package.

A measurement's evidence is a small JSON object. Keys that verdict/explain.py knows (PHRASES) become
sentences; any other is shown as its name and its value.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.limits import Limit, LimitByKind
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement


class Implied(NamedTuple):
    """When failures of a check follow from those of other checks, and so are not blamed separately.

    when: "fails"       another check fails in any case
          "everywhere"  it fails in all of its cases
          "elsewhere"   it fails in a case that this check does not examine
          "as large"    this check's values are at most a few times those of the other check
    """

    by: tuple[str, ...]
    when: str = "fails"
    scope: str = ""  # applies only if all failures of this check have this scope
    metric: str = ""  # likewise for the metric


class OwnBlame(NamedTuple):
    """A metric whose failures are blamed separately, whatever else fails."""

    blame: str = ""  # what is blamed; empty: the scope of the row
    needs_value: bool = True  # True: a missing or NaN value is not blamed in this way


class Check(NamedTuple):
    """One check. It measures; verdict/judge.py judges.

    expected(plan) gives every (case, scope, metric) that it will measure, before anything is measured.
    measure(loaded, plan) yields the measurements. An expected measurement that is missing is a failure.
    """

    name: str
    establishes: str  # what a pass shows, in one line
    expected: Callable[[Plan], Iterable[Key]]
    measure: Callable[[Any, Plan], Iterator[Measurement]]
    limits: Mapping[str, Limit | LimitByKind]  # by metric; a metric without one cannot be judged
    after: str = ""  # the check that it follows; the most informative checks run first
    last: bool = False  # runs after all others: it may leave the process unusable
    blames: str = ""  # the mechanism that is at fault if no single operation is; empty: none
    blames_by_scope: Mapping[str, str] = {}  # by first failing scope, where that is more specific
    # If several mechanisms fail, the one with the lowest precedence is at fault: determinism 10, taps
    # 20, weights 30, causality 40, batch 50, kv_cache 60, lengths 70, greedy 80, logits 90, activations
    # 100, gradients 110, sizes 120, overflow 130, bad_tokens 140. A new capability fits in 101 to 119.
    precedence: int = 0
    look_at: str = ""  # completes the sentence "Look at ..."
    look_at_by_kind: Mapping[str, str] = {}  # the same by kind of operation, if one is at fault
    own_blame: Mapping[str, OwnBlame] = {}  # by metric
    implied_by: tuple[Implied, ...] = ()
    auxiliary: bool = False  # its cases on auxiliary models show nothing if the check sizes fails
    capability: Capability | None = None
    unseen: Callable[[Plan], Iterable[str]] | None = None  # scopes that missing taps hide
