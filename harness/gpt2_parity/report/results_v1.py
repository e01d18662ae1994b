"""Read results.json of schema 1, which this project wrote until 2026-11, with facts in sentences.

The sentences are parsed as far as reports need it, and otherwise kept as text.
"""

from types import GenericAlias
from typing import Any, get_type_hints

import msgspec

from gpt2_parity.contract.rows import Evidence, Results, Row

SCHEMA = 1
EXPLAINS = " explains it: "
STATUS = {
    "missing: ": "missing",
    "NaN": "nan",
    "infinite. ": "infinite",
    "measured but not": "unexpected",
}


NEW = ("status", "mistake", "evidence")
FIELDS = [(name, kind) for name, kind in get_type_hints(Row).items() if name not in NEW]
OldRow = msgspec.defstruct(
    "OldRow", [*FIELDS, ("diagnosis", str), ("detail", str)], forbid_unknown_fields=True
)
OldDocument = msgspec.defstruct(
    "OldDocument", [("environment", dict[str, Any]), ("rows", GenericAlias(list, (OldRow,)))]
)


def converted(document: dict[str, Any]) -> Results:
    """The results in a document of schema 1. Raises msgspec.ValidationError for a malformed one."""
    found: Any = msgspec.convert(document, OldDocument)
    return Results([row_of(entry) for entry in found.rows], found.environment)


def row_of(entry: Any) -> Row:
    """A current row from one of schema 1."""
    fields = msgspec.structs.asdict(entry)
    old, why = fields.pop("detail"), fields.pop("diagnosis")
    mistake = why.partition(":")[0] if EXPLAINS in why else ""
    return Row(**fields, status=status(entry), mistake=mistake, evidence=evidence(old, why))


def status(entry: Any) -> str:
    """The status of a measurement, found from the beginning of its sentence."""
    if entry.value is not None:
        return "measured"
    if entry.verdict in ("unlocalised", "skipped"):
        return "not_asked"
    matching = (name for start, name in STATUS.items() if entry.detail.startswith(start))
    return next(matching, "measured" if entry.verdict == "pass" else "error")


def evidence(old: str, why: str) -> Evidence:
    """The sentences, unchanged, as evidence."""
    found: Evidence = {"version_1": old} if old else {}
    return found | ({"version_1_diagnosis": why} if why else {})
