"""All checks, in order of execution: those of this folder and those of installed packages.

A package adds a check by an entry point of the group ``gpt2_parity.checks`` that names a module with a
CHECK. The order follows from the field ``after`` of each check.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from importlib import metadata

from gpt2_parity import checks as package
from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.check import Check

GROUP = "gpt2_parity.checks"


def found() -> list[Check]:
    """The declarations of this folder and of installed packages, unordered."""
    names = [each.name for each in pkgutil.iter_modules(package.__path__) if each.name != "registry"]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    modules += [point.load() for point in metadata.entry_points(group=GROUP)]
    return [module.CHECK for module in modules]


def in_order(checks: Iterable[Check]) -> dict[str, Check]:
    """Checks by name, each one later than the check that its field ``after`` names.

    Checks that declare themselves last come at the end.

    Raises ValueError for two checks of one name, and if ``after`` names a check that does not exist.
    """
    both = sorted(checks, key=lambda check: check.name)
    if len({check.name for check in both}) < len(both):
        raise ValueError(f"two checks have the same name: {[check.name for check in both]}")
    waiting = [check for check in both if not check.last]
    ordered: dict[str, Check] = {}

    def place(after: str) -> None:
        for check in [each for each in waiting if each.after == after]:
            ordered[check.name] = check
            place(check.name)

    place("")
    if lost := [check.name for check in waiting if check.name not in ordered]:
        raise ValueError(f"checks {lost} come after a check that does not exist")
    return ordered | {check.name: check for check in both if check.last}


CHECKS: dict[str, Check] = in_order(found())
CAPABILITIES: tuple[Capability, ...] = tuple(
    check.capability for check in CHECKS.values() if check.capability
)


def beginning_with(first: Iterable[str]) -> dict[str, Check]:
    """All checks, some of them first; those that declare themselves last stay at the end."""
    early = {name: CHECKS[name] for name in first if name in CHECKS and not CHECKS[name].last}
    return early | CHECKS


def by_precedence() -> list[Check]:
    """The checks that blame a mechanism, in the order in which mechanisms are blamed."""
    return sorted((check for check in CHECKS.values() if check.blames), key=lambda c: c.precedence)
