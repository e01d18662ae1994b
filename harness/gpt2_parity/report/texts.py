"""Greedy texts side by side, each with its first difference from golden."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

from gpt2_parity.contract.rows import Row, label

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""


TOLD = re.compile(
    rf"(?P<text>{QUOTED})(?:, golden (?P<golden>{QUOTED}); first difference (?P<difference>.*))?",
    re.DOTALL,
)


class Text(NamedTuple):
    """What was said, by whom, up to where it is golden's, and how it departs."""

    same: str
    other: str
    who: list[str]
    verdict: str
    note: str


def texts(rows: Iterable[Row]) -> dict[str, list[Text]]:
    """By case: the greedy texts, those that are the same once, with all who said it."""
    by_case: dict[str, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        # what is held against forward, and not against golden, has no text
        if row.check == "greedy" and row.metric == "wrong_tokens" and row.detail:
            by_case[row.case][row.detail, row.verdict].append(row)
    return {
        case: [text_of(detail, verdict, found) for (detail, verdict), found in said.items()]
        for case, said in by_case.items()
    }


def text_of(detail: str, verdict: str, rows: list[Row]) -> Text:
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row.scope.replace("_", " "))
    together: dict[str, list[str]] = defaultdict(list)
    for name, scopes in by_label.items():
        together[", ".join(scopes)].append(name)
    who = [f"{', '.join(labels)}: {scopes}" for scopes, labels in together.items()]
    found = TOLD.fullmatch(detail)
    if not found:
        return Text("", "", who, verdict, detail)
    said = str(ast.literal_eval(found["text"]))
    if not found["golden"]:
        return Text(said, "", who, verdict, "as golden")
    golden = str(ast.literal_eval(found["golden"]))
    same = "".join(
        c for c, _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, golden, strict=False))
    )
    note = f"first difference {found['difference']}. Golden goes on: {golden[len(same) :]!r}"
    return Text(same, said[len(same) :], who, verdict, note)
