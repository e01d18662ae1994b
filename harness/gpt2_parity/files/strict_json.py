"""JSON as this project writes it. Whatever else a file may hold is a ValueError, never a surprise.

Python's own reader lets through names that come twice (the last one wins), NaN and Infinity, and
UTF-16, and answers deep nesting with a RecursionError.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

# bytes: results and headers are far smaller, and memory must not depend on who wrote the file
MOST = 2**28


def read(path: Path) -> Any:
    """The document in a file. Raises OSError where it cannot be read, ValueError where it is no JSON."""
    with path.open("rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise ValueError(f"it has more than {MOST} bytes")
    return loads(data)


def loads(data: bytes) -> Any:
    """The document in UTF-8 bytes. Raises ValueError for whatever is not strict JSON."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
