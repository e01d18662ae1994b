"""What a fault is, how to declare one, and how to plant one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .edits import Edit, edited, load, written
from .plain import Plain

Function = Callable[..., Any]


class Fault(NamedTuple):
    """A planted mistake and the verdict that it must get.

    Functions replace some of Plain's; if a specimen is given, edits change its text instead.
    """

    name: str
    blame: frozenset[str]  # patterns of scopes; one that ends in "?" may be below rounding there
    diagnosis: str  # "" where no known mistake fits exactly
    trips: frozenset[str]  # checks that must fail, besides any others
    replaced: Mapping[str, Any] = {}
    specimen: Path | None = None
    edits: Sequence[Edit] = ()
    dtype: str = "float32"
    device: str = "cpu"


FAULTS: list[Fault] = []
IN_LAYER: list[Fault] = []  # of one layer each, for a model of the official shape
ON_CUDA: list[Fault] = []  # of a GPU alone: nox -s faults -- --device cuda

BLACK_BOX = {"TAPS": (), "show": lambda x, at: x}  # taps nothing


def put(name: str, *, blame: str, diagnosis: str = "", trips: str = "", **replaced: Any) -> None:
    """Add a fault that replaces these functions of Plain; blame and trips are separated by spaces."""
    FAULTS.append(Fault(name, frozenset(blame.split()), diagnosis, frozenset(trips.split()), replaced))


def put_edits(
    name: str,
    specimen: Path,
    *edits: Edit,
    blame: str,
    diagnosis: str = "",
    trips: str = "",
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """Add a fault that edits the text of a specimen to the list of its device."""
    shelf = FAULTS if device == "cpu" else ON_CUDA
    words = frozenset(blame.split()), diagnosis, frozenset(trips.split())
    shelf.append(Fault(name, *words, {}, specimen, edits, dtype, device))


def fault(
    name: str, *, replaces: str = "", alters: str = "", **words: str
) -> Callable[[Function], Function]:
    """Decorate a function that replaces one of Plain's, or that alters what it rightly returns."""
    assert bool(replaces) != bool(alters), name

    def keep(function: Function) -> Function:
        put(name, **words, **{replaces or alters: function if replaces else altered(alters, function)})
        return function

    return keep


def altered(operation: str, change: Function) -> Function:
    """Plain's operation, with its result changed."""
    right = getattr(Plain, operation)
    return lambda *args, **kwargs: change(right(*args, **kwargs))


def only_at(name: str, operation: str, wrong: Function) -> Function:
    """Plain's operation, replaced in one place."""
    right = getattr(Plain, operation)
    return lambda *args: (wrong if args[-1].name == name else right)(*args)


def named(name: str) -> Fault:
    """The fault of that name in FAULTS."""
    return next(found for found in FAULTS if found.name == name)


def source(found: Fault) -> str:
    """The fault as the text of a module. Raises ValueError where an edit does not apply."""
    if found.specimen:
        return edited(found.name, found.specimen, found.edits)
    return DOOR.format(tests=str(Path(__file__).parent.parent), name=found.name)


def write(found: Fault, folder: Path) -> Path:
    """The fault as a file, for commands that are given paths."""
    return written(found.name, source(found), folder)


DOOR = """import sys

sys.path.append({tests!r})

from faults import named, plant

planted = plant(named({name!r}))
TAPS, targets, load, numpy = planted.TAPS, planted.targets, planted.load, planted.numpy
forward, generate = planted.forward, planted.generate
weights, WEIGHTS = planted.weights, planted.WEIGHTS
"""


def plant(found: Fault, folder: Path | None = None) -> Any:
    """The faulty implementation; one that is made of edits is written to folder."""
    if found.specimen:
        return load(found.name, source(found), folder)
    return Plain.with_(found.name, **found.replaced)
