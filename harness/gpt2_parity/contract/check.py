"""What a check declares: all that the rest of the package derives from it.

Conformance, the skeleton of ``parity new``, the questions of bad_tokens, the table of limits, the order
of mechanisms, the hints and the tables of the documents all come from these declarations.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.limits import Limit, LimitByKind
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement


class Implied(NamedTuple):
    """When failures of a check follow from those of another check, and so are not evidence of their own.

    when: "fails"       the other check fails at all
          "everywhere"  it fails in all of its cases
          "elsewhere"   it fails in a case that this check does not look at
          "as large"    this check's values are no larger than a few times those of the other
    """

    by: tuple[str, ...]
    when: str = "fails"
    scope: str = ""  # only where all failures of this check have this scope
    metric: str = ""  # likewise, this metric


class OwnBlame(NamedTuple):
    """A metric whose failure is a fault of its own, whatever else is wrong."""

    blame: str = ""  # empty: the scope of the row
    needs_value: bool = True  # a value that is missing or NaN shows no fault of this kind


class Check(NamedTuple):
    """One check. It measures; verdict/judge.py judges.

    expected(plan) gives every (case, scope, metric) that it will measure, fixed beforehand.
    measure(loaded, plan) yields the measurements. One that was expected and did not come is a failure.
    """

    name: str
    establishes: str  # what a pass shows, in one line
    expected: Callable[[Plan], Iterable[Key]]
    measure: Callable[[Any, Plan], Iterator[Measurement]]
    limits: Mapping[str, Limit | LimitByKind]  # by metric; a metric without one cannot be judged
    after: str = ""  # the check that is made before it; the most telling come first
    blames: str = ""  # the mechanism at fault where no single operation is; empty: none
    blames_by_scope: Mapping[str, str] = {}  # where the first failing scope says more
    precedence: int = 0  # of several failing mechanisms, the one with the least is at fault
    look_at: str = ""  # where to look
    look_at_by_kind: Mapping[str, str] = {}  # likewise, where an operation is at fault
    own_blame: Mapping[str, OwnBlame] = {}  # by metric
    implied_by: tuple[Implied, ...] = ()
    auxiliary: bool = False  # its cases of auxiliary models mean nothing where the check of sizes fails
    capability: Capability | None = None
    unseen: Callable[[Plan], Iterable[str]] | None = None  # scopes that the missing taps leave unseen
