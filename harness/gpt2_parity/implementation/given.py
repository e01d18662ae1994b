"""What a caller passes as an implementation, and how another process can find it again."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation import discovery, signatures
from gpt2_parity.implementation.discovery import Found


class Given(NamedTuple):
    """An implementation: its location, and the module or object itself if one was passed.

    found.module is "" if it exists only in the memory of this process.
    """

    found: Found
    loaded: Any = None


def locate(implementation: Any) -> Given:
    """Locate an implementation: a name, MODULE[:attr], PATH.py[:attr], a Path, a module or an object.

    Raises CannotJudge for a name or path that does not exist, and for an object that has none of the
    functions of the contract.
    """
    if isinstance(implementation, str):
        return Given(discovery.find(implementation))
    if isinstance(implementation, os.PathLike):
        text = os.fspath(implementation)
        if not discovery.split(text)[0].endswith(".py"):
            raise CannotJudge(f"implementation {text}: not the path of a .py file")
        return Given(discovery.find(text))
    if isinstance(implementation, ModuleType):
        found = _of_module(implementation) or Found(implementation.__name__, "")
        return Given(found, implementation)
    if not any(hasattr(implementation, name) for name in signatures.REQUIRED):
        raise CannotJudge(
            f"implementation {implementation!r:.100}: expected a name, a path, a module, or "
            f"an object with the functions {', '.join(signatures.REQUIRED)}"
        )
    return Given(_of_object(implementation), implementation)


def locate_all(implementations: Any) -> list[Given]:
    """Locate one implementation, or each of a list or tuple of them.

    Raises CannotJudge if there is none, and if two would have the same name in the results.
    """
    several = isinstance(implementations, (list, tuple)) and not hasattr(implementations, "forward")
    given = [locate(each) for each in (implementations if several else [implementations])]
    if not given:
        raise CannotJudge("no implementation was given")
    discovery.refuse_namesakes([one.found for one in given], [_text(one) for one in given])
    return given


def refuse_memory(given: Sequence[Given]) -> None:
    """Raise CannotJudge for an implementation that no other process can find."""
    for one in given:
        if not one.found.module:
            raise CannotJudge(
                f"implementation {one.found.name!r}: it lives only in this process; a worker process "
                "cannot find it. Put it into a .py file (as a module, or at its top level), "
                "or pass isolated=False to check it in this process, without protection from crashes"
            )


def _text(given: Given) -> str:
    return given.found.argument or repr(given.loaded)


def _of_module(module: ModuleType) -> Found | None:
    """A module by its path if it stands alone, by its name if it belongs to a package; else None."""
    file = getattr(module, "__file__", None)
    if not (isinstance(file, str) and file.endswith(".py") and Path(file).is_file()):
        return None
    if not module.__spec__ or (not module.__spec__.parent and not hasattr(module, "__path__")):
        return discovery.find(os.path.abspath(file))
    name = module.__spec__.name
    return Found(name, name)


def _of_object(value: Any) -> Found:
    """An object by a module, in a file, that has it as an attribute."""
    for module in _modules(value):
        for attribute in _names(value, module):
            if found := _of_module(module):
                return Found(attribute.rpartition(".")[2], found.module, attribute)
    name = getattr(value, "__name__", None)
    return Found(name if isinstance(name, str) else type(value).__name__, "")


def _modules(value: Any) -> Iterator[ModuleType]:
    """All imported modules, first the one that the object or its class names as its own."""
    own = sys.modules.get(str(getattr(value, "__module__", "")))
    for module in (own, *list(sys.modules.values())):
        if isinstance(module, ModuleType):
            yield module


def _names(value: Any, module: ModuleType) -> Iterator[str]:
    """The names by which a module refers to this very object: Backend, or Outer.Inner."""
    yield from (name for name, held in list(vars(module).items()) if held is value)
    qualified = getattr(value, "__qualname__", "")
    if isinstance(qualified, str) and "." in qualified:
        try:
            if functools.reduce(getattr, qualified.split("."), module) is value:
                yield qualified
        except AttributeError:
            return
