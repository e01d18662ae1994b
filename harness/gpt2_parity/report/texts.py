"""The greedy texts of all implementations, each with its first difference from golden."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

from gpt2_parity.contract.rows import Row, label
from gpt2_parity.verdict import explain


class Text(NamedTuple):
    """A generated text, split where it first differs from golden, and who generated it."""

    same: str  # as in golden
    other: str  # the rest
    who: list[str]
    verdict: str
    note: str


def texts(rows: Iterable[Row]) -> dict[str, list[Text]]:
    """The greedy texts by case; identical ones once, with all implementations that generated them."""
    by_case: dict[str, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        # rows that are compared with forward instead of golden have no text
        if row.check == "greedy" and row.metric == "wrong_tokens" and (detail := explain.detail(row)):
            by_case[row.case][detail, row.verdict].append(row)
    return {
        case: [text_of(detail, verdict, alike) for (detail, verdict), alike in same.items()]
        for case, same in by_case.items()
    }


def text_of(detail: str, verdict: str, rows: list[Row]) -> Text:
    """The text that some rows have in common; detail: explain.detail of each of them."""
    evidence = rows[0].evidence
    if not isinstance(evidence.get("text"), str) or rows[0].status != "measured":
        return Text("", "", who(rows), verdict, detail)
    generated = evidence["text"]
    if "golden" not in evidence:
        return Text(generated, "", who(rows), verdict, "as golden")
    try:
        same = common_beginning(generated, evidence["golden"])
        rest = explain.quoted(evidence["golden"][len(same) :])
        note = f"{explain.first_difference(evidence)}. Golden continues: {rest}"
    except (KeyError, TypeError, ValueError):  # another check's evidence by the same names
        return Text("", "", who(rows), verdict, detail)
    return Text(same, generated[len(same) :], who(rows), verdict, note)


def common_beginning(one: str, other: Any) -> str:
    """The longest text with which both begin."""
    pairs = zip(one, other, strict=False)
    return "".join(character for character, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def who(rows: list[Row]) -> list[str]:
    """The implementations that generated a text, grouped by how: teacher-forced, free-running, ..."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(explain.check_name(row.scope))
    together: dict[str, list[str]] = defaultdict(list)
    for name, scopes in by_label.items():
        together[", ".join(scopes)].append(name)
    return [f"{', '.join(labels)}: {scopes}" for scopes, labels in together.items()]
