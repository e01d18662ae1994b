"""Greedy texts side by side, each with its first difference from golden."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

from gpt2_parity.contract.rows import Row, label
from gpt2_parity.verdict import explain


class Text(NamedTuple):
    """What was generated, by whom, up to where it is golden's, and how it departs."""

    same: str
    other: str
    who: list[str]
    verdict: str
    note: str


def texts(rows: Iterable[Row]) -> dict[str, list[Text]]:
    """By case: the greedy texts, those that are the same once, with all who generated them."""
    by_case: dict[str, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        # what is compared with forward, and not with golden, has no text
        if row.check == "greedy" and row.metric == "wrong_tokens" and (words := explain.detail(row)):
            by_case[row.case][words, row.verdict].append(row)
    return {
        case: [text_of(words, verdict, found) for (words, verdict), found in same.items()]
        for case, same in by_case.items()
    }


def text_of(words: str, verdict: str, rows: list[Row]) -> Text:
    """The text that some rows have in common; words: their detail."""
    evidence = rows[0].evidence
    if not isinstance(evidence.get("text"), str) or rows[0].status != "measured":
        return Text("", "", who(rows), verdict, words)
    generated = evidence["text"]
    if "golden" not in evidence:
        return Text(generated, "", who(rows), verdict, "as golden")
    same = common_beginning(generated, evidence["golden"])
    goes_on = explain.quoted(evidence["golden"][len(same) :])
    note = f"{explain.first_difference(evidence)}. Golden goes on: {goes_on}"
    return Text(same, generated[len(same) :], who(rows), verdict, note)


def common_beginning(one: str, other: Any) -> str:
    """The longest text with which both begin."""
    pairs = zip(one, other, strict=False)
    return "".join(character for character, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def who(rows: list[Row]) -> list[str]:
    """Who generated it and how, those that did it in the same ways together."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(explain.check_name(row.scope))
    together: dict[str, list[str]] = defaultdict(list)
    for name, scopes in by_label.items():
        together[", ".join(scopes)].append(name)
    return [f"{', '.join(labels)}: {scopes}" for scopes, labels in together.items()]
