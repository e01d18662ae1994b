"""Finding implementations: by name in impls/, by module name, or by the path of a file."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from harness.contract import CannotJudge

IMPLS = Path(__file__).parent.parent / "impls"
PREFIX = "gpt2_"  # a specimen, ours to the last line
ENGINE = "engine_"  # somebody else's engine, fed from our weights


class Found(NamedTuple):
    """An implementation that has been located but not imported."""

    name: str  # as shown in results
    # "impls.gpt2_numpy", another module's name, or the path of a .py file; then :attr, if any
    where: str

    def load(self) -> Any:
        """The module, or the object in it that attr names. Raises whatever importing it does."""
        where, attr = split(self.where)
        found: Any = _import_file(Path(where)) if where.endswith(".py") else _import(where)
        try:
            return functools.reduce(getattr, attr.split("."), found) if attr else found
        except AttributeError as error:
            raise AttributeError(f"{where} has no {attr} ({error})") from error

    @property
    def argument(self) -> str:
        """What to give to --impl to name it: from the working folder where it lies in there,

        so that the command in a report is of use to others and shows nobody's folders.
        """
        if self.where.startswith(f"{IMPLS.name}."):
            return self.name
        return self.where.removeprefix(f"{Path.cwd()}/")

    def source(self) -> Path | None:
        """The file that it is in, found without importing it; None where it is not in one file."""
        where, _ = split(self.where)
        if where.endswith(".py"):
            return Path(where)
        spec = _spec(where)
        return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def split(where: str) -> tuple[str, str]:
    """MODULE:attr or PATH.py:attr as (MODULE or PATH.py, attr); attr is "" where none is named."""
    head, colon, attr = where.rpartition(":")
    if colon and attr.replace(".", "").isidentifier():
        return head, attr
    return where, ""


def names() -> list[str]:
    """Names of the specimens in impls/: what is verified where nothing is named."""
    return sorted(path.stem.removeprefix(PREFIX) for path in IMPLS.glob(f"{PREFIX}*.py"))


def engines() -> list[str]:
    """Names of the engines in impls/: verified only where they are named."""
    return sorted(path.stem.removeprefix(ENGINE) for path in IMPLS.glob(f"{ENGINE}*.py"))


def find(name: str) -> Found:
    """Locate NAME in impls/, PATH.py[:attr] or MODULE[:attr]. Raises CannotJudge where there is none."""
    for prefix, shipped in ((PREFIX, names()), (ENGINE, engines())):
        if name in shipped:  # before any installed module of that name, such as transformers
            return Found(name, f"impls.{prefix}{name}")
    where, attr = split(name)
    suffix = f":{attr}" if attr else ""
    if where.endswith(".py"):
        try:
            path = Path(where).resolve()
            there = path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # too long; a loop of links; a null byte
            raise CannotJudge(f"implementation {name}: no such file ({error})") from error
        if not there:
            raise CannotJudge(f"implementation {name}: no such file")
        return Found(attr or path.stem, f"{path}{suffix}")
    try:
        spec = _spec(where)
    except (ImportError, ValueError):  # a finder's way to say that this is no name
        spec = None
    if spec is None:
        raise CannotJudge(
            f"implementation {name!r}: not one of {', '.join(names() + engines())}, "
            "not an importable module and not the path of a .py file"
        )
    return Found(attr or where, name)


def find_all(names: Sequence[str]) -> list[Found]:
    """Locate each. Raises CannotJudge where two would be shown under one name."""
    found = [find(name) for name in names]
    for one in found:
        same = [names[i] for i, other in enumerate(found) if other.name == one.name]
        if len(same) > 1:
            raise CannotJudge(
                f"implementations {' and '.join(same)}: all would be {one.name!r} in the results; "
                "name each once, and give their files different names"
            )
    return found


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is. Nothing is imported, not even its package: its code could do anything here."""
    spec: ModuleSpec | None = None
    folders: list[str] | None = None
    parts = name.split(".")
    for i, part in enumerate(parts, 1):
        if not part or "\0" in part:
            return None
        full = ".".join(parts[:i])
        # None: the import system names the target too, and asv's finder has no default for it
        found = (finder.find_spec(full, folders, None) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or (spec.submodule_search_locations is None and i < len(parts)):
            return None
        folders = spec.submodule_search_locations
    return spec


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    name = f"parity_impl_{path.stem}"  # never shadows an installed module of the file's name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CannotJudge(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # as for a script, but last: its json.py is not ours
        sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module
