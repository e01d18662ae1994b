"""What a process has really imported: files of the user's own by hash, and distributions by version.

An implementation is more than the file that was named: what it imports from beside it decides the
verdict as well. Libraries that are opened without an import, as by ctypes, are not seen.
"""

import functools
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest
from gpt2_parity.implementation.discovery import MODULE_PREFIX
from gpt2_parity.implementation.extras import DISTRIBUTION, normalized

PACKAGE = Path(__file__).parent.parent
INSTALLED = ("site-packages", "dist-packages")  # folders of distributions
STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
GENERATED = "__autograph_generated_file"  # TensorFlow writes such modules, under a new name each time

Files = dict[str, dict[str, str]]  # by name, such as "layers/norm.py": path, sha256
Packages = dict[str, dict[str, str]]  # by distribution: version, file

_hashes: "WeakKeyDictionary[ModuleType, str]" = (
    WeakKeyDictionary()
)  # when first seen: Python keeps the code


def now(error: BaseException | None = None) -> dict[str, Any]:
    """Own files and distributions that this process has imported so far, as JSON.

    error: what importing raised; the files in its traceback are among the own ones.
    """
    return {"files": files() | (_in_traceback(error) if error else {}), "packages": packages()}


def files() -> Files:
    """Modules outside the standard library, installed distributions and this package, by file."""
    found: Files = {}
    for name, module, path in _modules():
        if not is_own(path) and not name.startswith(MODULE_PREFIX):
            continue
        shown = _name_of(name, path)
        if found.get(shown, {}).get("path", str(path)) != str(path):  # two files would have one name
            shown = f"{shown} ({name})"
        if sha256 := _hash_of(module, path):
            found[shown] = {"path": str(path), "sha256": sha256}
    return found


def is_own(path: Path) -> bool:
    """Whether a file is neither of Python, nor installed, nor of this package."""
    inside = path.is_relative_to(PACKAGE) or any(path.is_relative_to(each) for each in STANDARD)
    return not inside and not set(INSTALLED) & set(path.parts)


def _modules() -> Iterator[tuple[str, ModuleType, Path]]:
    """Imported modules with their names and files."""
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or name.startswith(GENERATED):
            continue
        held = vars(module)  # asking the module could import more
        file, spec = held.get("__file__"), held.get("__spec__")
        # what has no spec was not imported: compilers execute what they wrote as such modules
        if spec is not None and isinstance(file, str):
            yield name, module, Path(file)


def _name_of(name: str, path: Path) -> str:
    """A name that is the same on every machine: the module's, as a path."""
    if name.startswith(MODULE_PREFIX):
        return path.name
    packages = name.split(".")
    parents = packages if path.stem == "__init__" else packages[:-1]
    return "/".join([*parents, path.name])


def _hash_of(module: ModuleType, path: Path) -> str:
    """SHA-256 of a module's file when it was first seen here; "" where it cannot be read."""
    if module not in _hashes:
        _hashes[module] = sha256_of(path)
    return _hashes[module]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; "" where it cannot be read."""
    try:
        return digest.sha256(path)
    except CannotJudge:
        return ""


def _in_traceback(error: BaseException) -> Files:
    """Own files in which importing failed, which are no modules any more."""
    named = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        named.append(error.filename)
    paths = [Path(name) for name in named if name.endswith(".py")]
    return {
        path.name: {"path": str(path), "sha256": sha256}
        for path in paths
        if is_own(path) and (sha256 := sha256_of(path))
    }


def packages() -> Packages:
    """Distributions of which a module is imported: their version, and the file of the topmost module."""
    by_top: dict[str, list[Path]] = {}
    for name, _, path in _modules():
        by_top.setdefault(name.partition(".")[0], []).append(path)
    found: Packages = {}
    for top, paths in by_top.items():
        for owner in owners(top, paths):
            first = min(paths, key=lambda path: (len(path.parts), path.stem != "__init__", str(path)))
            found.setdefault(normalized(owner), {"version": _version(owner), "file": shown(first)})
    return {name: found[name] for name in sorted(found) if name != DISTRIBUTION}


def versions() -> dict[str, str]:
    """Versions of the imported distributions."""
    return {name: found["version"] for name, found in packages().items()}


def owners(top: str, paths: Iterable[Path]) -> list[str]:
    """The distributions that a top-level module belongs to; of several, those that have these files."""
    names = sorted(set(_distributions().get(top, ())))
    if len(names) < 2:
        return names
    imported = {path.resolve() for path in paths}
    return [name for name in names if imported & _files_of(name)]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


@functools.cache
def _version(name: str) -> str:
    return metadata.version(name)


@functools.cache
def _files_of(name: str) -> set[Path]:
    listed = metadata.files(name) or ()
    return {Path(str(file.locate())).resolve() for file in listed if file.suffix in (".py", ".so")}


def shown(path: Path) -> str:
    """A path that shows nobody's folders: from site-packages on, or from the home folder."""
    for i, part in enumerate(path.parts):
        if part in INSTALLED:
            return "/".join(path.parts[i:])
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def without_paths(data: dict[str, Any]) -> dict[str, Any]:
    """An event for another machine, on which the paths of own files mean nothing."""
    if "imported" not in data:
        return data
    own = {name: {"sha256": file["sha256"]} for name, file in data["imported"]["files"].items()}
    return data | {"imported": data["imported"] | {"files": own}}
