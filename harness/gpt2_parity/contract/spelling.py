"""What was probably meant by a name that does not exist."""

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, as the end of a sentence: "; did you mean micro?", or ""."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
