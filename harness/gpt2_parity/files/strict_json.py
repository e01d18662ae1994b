"""A strict JSON reader: UTF-8, no duplicate names, no NaN or Infinity. All else is a ValueError.

Python's own reader accepts duplicate names (the last one wins), NaN, Infinity and UTF-16, and raises
RecursionError for deep nesting.
"""

import json
from pathlib import Path
from typing import Any, NoReturn, TypeVar

# bytes. What we write is far smaller; the limit keeps a hostile file from filling memory.
MOST = 2**28

Form = TypeVar("Form")


def read(path: Path) -> Any:
    """The document in a file. Raises OSError, or ValueError where it is not strict JSON."""
    with path.open("rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise ValueError(f"it has more than {MOST} bytes")
    return loads(data)


def loads(data: bytes) -> Any:
    """The document in UTF-8 bytes. Raises ValueError where they are not strict JSON."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def convert(document: Any, form: type[Form]) -> Form:
    """A parsed document as an instance of a type: a msgspec.Struct, a TypedDict, and so on.

    Raises ValueError, naming the place in the document, where it does not fit the type. The document is
    parsed by loads, since msgspec's own parser accepts duplicate names.
    """
    import msgspec  # 60 ms, which the start of a benchmark's worker need not pay

    return msgspec.convert(document, form)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return document


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
