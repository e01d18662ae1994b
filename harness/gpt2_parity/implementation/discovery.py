"""Finding implementations: by name in impls/, by module name, or by the path of a file."""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.spelling import meant
from gpt2_parity.files import shipped

IMPLS = shipped.folder("impls")
PREFIX = "gpt2_"  # file names of specimens, which are our own code
BASELINES = ("naive",)  # slow on purpose: verified and timed only where they are named
MODULE_PREFIX = "parity_impl_"  # of the names of files as modules, so that they shadow none
ENGINE = "engine_"  # file names of adapters, which load our weights into other people's engines


class Found(NamedTuple):
    """An implementation that has been located but not imported."""

    name: str  # as shown in results
    module: str  # the absolute path of a .py file, or the dotted name of a module
    attribute: str = ""  # in that module, such as "Backend" or "registry.gpt2"; empty: the module itself

    @property
    def is_file(self) -> bool:
        return self.module.endswith(".py")

    def load(self) -> Any:
        """The module, or the object in it. Raises whatever importing it raises, or AttributeError."""
        found: Any = (
            _import_file(Path(self.module)) if self.is_file else importlib.import_module(self.module)
        )
        try:
            return (
                functools.reduce(getattr, self.attribute.split("."), found) if self.attribute else found
            )
        except AttributeError as error:
            raise AttributeError(f"{self.module} has no {self.attribute} ({error})") from error

    @property
    def argument(self) -> str:
        """The value of --impl that names it. A path in the working folder is relative to it.

        So the command in a report works elsewhere and shows nobody's folders.
        """
        if self.is_file and not self.attribute and Path(self.module).parent == IMPLS:
            return Path(self.module).stem.removeprefix(PREFIX).removeprefix(ENGINE)
        suffix = f":{self.attribute}" if self.attribute else ""
        return self.module.removeprefix(f"{Path.cwd()}/") + suffix

    def source(self) -> Path | None:
        """The file that holds it, found without importing it; None if it is not a single file."""
        if self.is_file:
            return Path(self.module)
        spec = _spec(self.module)
        return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def split(argument: str) -> tuple[str, str]:
    """MODULE:attribute or PATH.py:attribute as two parts; the attribute is "" if none is named."""
    head, colon, attribute = argument.rpartition(":")
    if colon and attribute.replace(".", "").isidentifier():
        return head, attribute
    return argument, ""


def names() -> list[str]:
    """Names of the specimens in impls/."""
    return sorted(path.stem.removeprefix(PREFIX) for path in IMPLS.glob(f"{PREFIX}*.py"))


def default_names() -> list[str]:
    """The specimens that are verified where none is named: all but the baselines."""
    return [name for name in names() if name not in BASELINES]


def engines() -> list[str]:
    """Names of the engines in impls/, which are verified only if they are named."""
    return sorted(path.stem.removeprefix(ENGINE) for path in IMPLS.glob(f"{ENGINE}*.py"))


def find(name: str) -> Found:
    """Locate NAME in impls/, PATH.py[:attribute] or MODULE[:attribute].

    Raises CannotJudge if there is none.
    """
    for prefix, shipped_names in ((PREFIX, names()), (ENGINE, engines())):
        if name in shipped_names:  # before an installed module of that name, such as transformers
            return Found(name, str(IMPLS / f"{prefix}{name}.py"))
    module, attribute = split(name)
    if module.endswith(".py"):
        path = _file(name, module)
        return Found(attribute or path.stem, str(path), attribute)
    try:
        spec = _spec(module)
    except (ImportError, ValueError):  # a finder raises these for what is no module name
        spec = None
    if spec is None:
        shipped_names = names() + engines()
        raise CannotJudge(
            f"implementation {name!r}: not one of {', '.join(shipped_names)}, "
            f"not an importable module and not the path of a .py file{meant(name, shipped_names)}"
        )
    return Found(attribute or module, module, attribute)


def _file(name: str, text: str) -> Path:
    try:
        path = Path(text).resolve()
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long; a loop of links; a null byte
        raise CannotJudge(f"implementation {name}: no such file ({error})") from error
    raise CannotJudge(f"implementation {name}: no such file{meant(text, beside(Path(text)))}")


def beside(path: Path) -> list[str]:
    """The Python files in the folder of a file that does not exist, as they would be named."""
    with contextlib.suppress(OSError):
        return [str(path.with_name(other.name)) for other in path.parent.glob("*.py")]
    return []


def find_all(arguments: Sequence[str]) -> list[Found]:
    """Locate each. Raises CannotJudge if two would have the same name in the results."""
    found = [find(argument) for argument in arguments]
    refuse_namesakes(found, arguments)
    return found


def refuse_namesakes(found: Sequence[Found], arguments: Sequence[str]) -> None:
    """Raise CannotJudge if two would have the same name in the results; arguments name them."""
    for one in found:
        same = [arguments[i] for i, other in enumerate(found) if other.name == one.name]
        if len(same) > 1:
            raise CannotJudge(
                f"implementations {' and '.join(same)}: all would be {one.name!r} in the results; "
                "name each once, and give their files different names"
            )


def _spec(name: str) -> ModuleSpec | None:
    """The spec of a module, or None. Nothing is imported, not even its parent package."""
    spec: ModuleSpec | None = None
    folders: list[str] | None = None
    parts = name.split(".")
    for i, part in enumerate(parts, 1):
        if not part or "\0" in part:
            return None
        full = ".".join(parts[:i])
        # None is the target: the import system passes one, and asv's finder has no default for it
        found = (finder.find_spec(full, folders, None) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or (spec.submodule_search_locations is None and i < len(parts)):
            return None
        folders = spec.submodule_search_locations
    return spec


def _import_file(path: Path) -> ModuleType:
    name = MODULE_PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CannotJudge(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # last, unlike a script's: its json.py must not shadow json
        sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module
