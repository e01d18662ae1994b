"""Finding implementations: by name in impls/, by module name, or by the path of a file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from harness.contract import CannotJudge

IMPLS = Path(__file__).parent.parent / "impls"
PREFIX = "gpt2_"
REQUIRED = ("targets", "load", "forward", "numpy")


class Found(NamedTuple):
    """An implementation that has been located but not imported."""

    name: str  # as shown in results
    where: str  # "impls.gpt2_numpy", another module's name, or the path of a .py file

    def load(self) -> ModuleType:
        """Import it. Raises CannotJudge where a function of the contract is missing."""
        module = _import_file(Path(self.where)) if self.where.endswith(".py") else _import(self.where)
        if missing := [name for name in REQUIRED if not callable(getattr(module, name, None))]:
            raise CannotJudge(
                f"{self.where}: not an implementation; it lacks {', '.join(missing)}() "
                "(the contract is harness/contract.py: Implementation)"
            )
        return module


def names() -> list[str]:
    """Names of the implementations in impls/."""
    return sorted(path.stem.removeprefix(PREFIX) for path in IMPLS.glob(f"{PREFIX}*.py"))


def find(name: str) -> Found:
    """Locate NAME in impls/, PATH.py, or a module. Raises CannotJudge where there is none."""
    if name in names():
        return Found(name, f"impls.{PREFIX}{name}")
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise CannotJudge(f"implementation {name}: no such file")
        return Found(path.stem, str(path))
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise CannotJudge(
            f"implementation {name!r}: not one of {', '.join(names())}, "
            "not an importable module and not the path of a .py file"
        )
    return Found(name, name)


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    name = f"parity_impl_{path.stem}"  # never shadows an installed module of the file's name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CannotJudge(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
