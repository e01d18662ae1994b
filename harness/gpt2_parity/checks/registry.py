"""All checks, in order of execution: those of this folder, and those that installed packages add.

A package adds checks by an entry point in the group ``gpt2_parity.checks`` that names a module with a
CHECK. The order follows from what each check says it comes after.
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
    """The declarations of this folder and of installed packages, in no order."""
    names = [each.name for each in pkgutil.iter_modules(package.__path__) if each.name != "registry"]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    modules += [point.load() for point in metadata.entry_points(group=GROUP)]
    return [module.CHECK for module in modules]


def in_order(checks: Iterable[Check]) -> dict[str, Check]:
    """Checks by name, each after the one that it says it comes after.

    Raises ValueError for a name that is there twice, and for a check that comes after none of them.
    """
    waiting = sorted(checks, key=lambda check: check.name)
    if len({check.name for check in waiting}) < len(waiting):
        raise ValueError(f"two checks have the same name: {[check.name for check in waiting]}")
    ordered: dict[str, Check] = {}

    def place(after: str) -> None:
        for check in [each for each in waiting if each.after == after]:
            ordered[check.name] = check
            place(check.name)

    place("")
    if lost := [check.name for check in waiting if check.name not in ordered]:
        raise ValueError(f"checks {lost} come after a check that there is not")
    return ordered


CHECKS: dict[str, Check] = in_order(found())
CAPABILITIES: tuple[Capability, ...] = tuple(
    check.capability for check in CHECKS.values() if check.capability
)


def by_precedence() -> list[Check]:
    """The checks that stand for a mechanism, the one that is at fault first among several first."""
    return sorted((check for check in CHECKS.values() if check.blames), key=lambda c: c.precedence)
