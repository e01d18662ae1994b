"""The one module that writes prose: what a row says, and what is wrong with an implementation and why.

Everywhere else a fact stays data: a status, a mistake, evidence. Here it becomes a sentence, in the
terminal, in reports and in the failure messages of pytest alike.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.architecture import kind_of
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.mistakes import registry
from gpt2_parity.verdict.attribution import DECODE, collapse, introduces, own_blame

# -- one row


def number(value: Any, digits: int = 3) -> str:
    """A number from evidence; NaN and infinities are text there already."""
    return value if isinstance(value, str) else f"{value:.{digits}g}"


def _operation(e: Mapping[str, Any]) -> str:
    return f"at {e['at']}: got {number(e['got'], 9)}, right is {number(e['right'], 9)}"


def _looked_up(e: Mapping[str, Any]) -> str:
    channel = f", channel {e['channel']}" if "channel" in e else ""
    return f"token {e['token']} at position {e['position']}{channel}"


def _precision(e: Mapping[str, Any]) -> str:
    wider = ": wider than declared" if e.get("wider") else ""
    return f"measured {e['measured']}, declared {e['declared']}{wider}"


def quoted(text: str | list[int]) -> str:
    """A generated text in quotes, or ids that are not all tokens."""
    return repr(text) if isinstance(text, str) else f"ids {text}"


def _generated(e: Mapping[str, Any]) -> str:
    if "golden" not in e:
        return quoted(e["text"])
    return f"{quoted(e['text'])}, golden {quoted(e['golden'])}; {first_difference(e)}"


def first_difference(e: Mapping[str, Any]) -> str:
    """Where a generated text first differs from golden's, and whether noise could explain that."""
    first = e["first_difference"]
    return (
        f"first difference at token {first['new_token']} of row {first['row']}: {quoted(first['got'])} "
        f"for {quoted(first['golden'])}, golden margin {number(first['margin'])}, "
        f"noise could bridge {number(first['near_tie'])}"
    )


def _by_forward(e: Mapping[str, Any]) -> str:
    likeliest = f"forward's likeliest is {e['likeliest']}"
    if e.get("asked_for_one_token"):
        return f"when asked for one token: id {e['id']} in row {e['row']}, {likeliest}"
    return f"first at new token {e['new_token']} of row {e['row']}: id {e['id']}, {likeliest}"


def _call(e: Mapping[str, Any]) -> str:
    shape = e.get("tokens_of_shape")
    ids = f"tokens of shape {tuple(shape)}" if shape else f"tokens {e['tokens']}"
    return ids if e["function"] == "forward" else f"{ids} in {e['function']}"


# The key that shows what evidence is about, the other keys that belong to it, and the words. What is not
# here is shown as its name and its value.
PHRASES: tuple[tuple[str, tuple[str, ...], Callable[[Mapping[str, Any]], str]], ...] = (
    ("greatest_difference", (), lambda e: f"greatest difference {number(e['greatest_difference'])}"),
    ("at", ("got", "right"), _operation),
    ("recomputed_from", (),
     lambda e: f"recomputed from {', '.join(e['recomputed_from']) or 'the tokens'}"),
    ("token", ("position", "channel"), _looked_up),
    ("length", (), lambda e: f"{e['length']} tokens"),
    ("cut_at", (), lambda e: f"cut at {e['cut_at']}"),
    ("measured", ("declared", "wider"), _precision),
    ("overwritten", (), lambda e: ", ".join(e["overwritten"])),
    ("near_ties", ("positions",),
     lambda e: f"{e['near_ties']} of {e['positions']} positions are within the noise"),
    ("text", ("golden", "first_difference"), _generated),
    ("likeliest", ("asked_for_one_token", "id", "row", "new_token"), _by_forward),
    ("accepted", (), lambda e: f"{_call(e['accepted'])} were accepted"),
    ("refused_with", (), lambda e: f"refused: {e['refused_with']}"),
    ("refused", ("good_tokens_fail",),
     lambda e: f"after {_call(e['refused'])} were refused, good tokens fail: {e['good_tokens_fail']}"),
)  # fmt: skip
ELSEWHERE = {
    "version_1",
    "version_1_diagnosis",
    "explained",
    "nearest",
    "wrong_from",
    "inherited",
    "known",
    "beyond",
    "error",
    "reason",
}


def seen(evidence: Mapping[str, Any]) -> str:
    """What a check saw, in words."""
    left = {key: value for key, value in evidence.items() if key not in ELSEWHERE}
    words = []
    for key, others, phrase in PHRASES:
        if key in left:
            words.append(phrase(left))
            left = {name: value for name, value in left.items() if name not in (key, *others)}
    words += [f"{name.replace('_', ' ')} {value}" for name, value in left.items()]
    return "; ".join(words)


UNEXPECTED = {
    "unknown_name": "measured but not expected: names must match exactly",
    "not_promised": "measured but not expected: it is tapped, but TAPS does not promise it",
}
MISSING = {"input_not_tapped": "missing: an input of it was not tapped"}
NOT_MEASURED = "missing: promised, but never tapped or measured"


def detail(row: Row) -> str:
    """What there is to say about a row besides its figures; "" where there is nothing."""
    words = _known(row) + _told(row)
    return " ".join(words)


def _known(row: Row) -> list[str]:
    e = row.evidence
    if "known" in e:
        return [f"known: {e['known']['reason']}."]
    if "beyond" in e:
        beyond = e["beyond"]
        return [
            f"beyond the {beyond['at_most']:g} limits that line {beyond['line']} of the ledger allows."
        ]
    return []


def _told(row: Row) -> list[str]:
    e = row.evidence
    if "version_1" in e:  # read from an old file
        return [e["version_1"]]
    words = seen(e)
    match row.status:
        case "nan":
            told = ["NaN: a comparison with NaN is no agreement.", words]
        case "infinite":
            told = ["infinite.", words]
        case "missing":
            told = [MISSING.get(e.get("reason", ""), NOT_MEASURED)]
        case "unexpected":
            told = [f"measured {e['times']} times" if "times" in e else UNEXPECTED[e["reason"]]]
        case "lost":
            told = [f"missing: {e['error']}"]
        case "error":
            told = [f"missing: {e['error']}"] if row.metric else [ended(row)]
        case "not_asked":
            told = [_not_asked(row)]
        case _:
            told = [words]
    return [text for text in told if text]


def ended(row: Row) -> str:
    """What ended a run, a check or a target early, and when."""
    e = row.evidence
    if "stale" in e:
        stale = e["stale"]
        return f"line {stale['line']} is out of date: no failure of {' | '.join(stale['id'])}; remove it"
    if e.get("since"):
        return f"raises at whatever it is asked since the check {check_name(e['since'])}: {e['error']}"
    during = f" (during the check {check_name(e['during'])})" if e.get("during") else ""
    return f"{e['error']}{during}"


def _not_asked(row: Row) -> str:
    if row.verdict == "skipped":
        offered = ", ".join(row.evidence.get("offered", ()))
        return f"skipped: {row.device}-{row.dtype} is not offered (offered: {offered})"
    if row.check == "weights":
        return "no tap embed: only of a model as small as micro is every row of wte and wpe looked up"
    return "no tap: an error in this operation could not be localised"


def check_name(name: str) -> str:
    """A check's name in prose."""
    return name.replace("_", " ")


def measured(row: Row) -> str:
    """What was measured and what was allowed, in a few words."""
    if row.value is None:
        return detail(row) or "not measured"
    allowed = "" if row.limit is None else f", allowed {row.limit:g}"
    return f"{row.value:.4g} {row.metric.replace('_', ' ')}{allowed}"


def measured_and_seen(row: Row) -> str:
    """What was measured, with the detail."""
    words = detail(row)
    return measured(row) if row.value is None or not words else f"{measured(row)} ({words})"


def location(row: Row) -> str:
    """Where a row was measured: check, case and scope."""
    return " ".join(part for part in (row.check, row.case, row.scope) if part)


def cause(row: Row) -> str:
    """The known mistake that explains a row, in words; "" where none does."""
    return registry.text_of(row.mistake) if row.mistake else ""


def diagnosis(row: Row) -> str:
    """Why a row fails, as far as it is known: "erf instead of tanh GELU explains it: ..."."""
    e = row.evidence
    if "version_1_diagnosis" in e:  # read from an old file
        return str(e["version_1_diagnosis"])
    if row.mistake:
        return f"{cause(row)} {effect(row)}".strip()
    if "wrong_from" in e:
        return f"on the way back from the loss it is wrong from {e['wrong_from']} on"
    if "inherited" in e:
        return "inherited: its input is not finite"
    if (nearest := e.get("nearest")) is None:
        return ""
    if not nearest:
        return "no known mistake applies"
    text = registry.text_of(nearest["mistake"])
    if row.check == "local":
        falls = f"{number(nearest['before'])} to {number(nearest['after'])}"
        return f"no known mistake explains it (nearest: {text}: {falls})"
    return f"no known mistake, made in every layer, explains it (nearest: {text}: {_falls(nearest)})"


def effect(row: Row) -> str:
    """How well the mistake explains a row: what is left of the error if it is assumed."""
    explained = row.evidence.get("explained")
    if explained is None:
        return "explains it"
    if "noise_units" in explained:
        units = number(explained["noise_units"], 2)
        return f"explains it: made in every layer, {_falls(explained)}, {units} noise units"
    before, after = number(explained["before"]), number(explained["after"], 2)
    return f"explains it: {before} rounding units fall to {after}"


def _falls(facts: Mapping[str, Any]) -> str:
    before, after = number(facts["before"], 2), number(facts["after"], 2)
    return f"the difference at a typical position falls from {before} to {after}"


def notes(rows: Iterable[Row]) -> list[str]:
    """What a reader must know although it passes: known failures, and products that are too wide."""
    rows = list(rows)
    wide = Counter((label(row), seen(row.evidence)) for row in rows if _passes_too_wide(row))
    known = Counter(
        (label(row), row.check, str(row.evidence.get("known", {}).get("reason", "")))
        for row in rows
        if row.verdict == "known"
    )
    told = [
        f"{name} {check}: known: {why} ({n} measurements)" for (name, check, why), n in known.items()
    ]
    return told + [f"{name} precision: {words} ({n} products)" for (name, words), n in wide.items()]


def _passes_too_wide(row: Row) -> bool:
    return row.verdict == "pass" and bool(row.evidence.get("wider"))


# -- what is wrong with an implementation


class Finding(NamedTuple):
    """One thing that is wrong, in parts; ``text`` puts them together."""

    where: str  # the operation (h*/mlp/gelu) or the mechanism (cache) at fault; "" for what inherits
    claim: str
    size: str
    look: str  # where to look
    worst: Row | None  # the measurement that shows it best
    why: str = ""  # the diagnosis; "" where none was looked for

    @property
    def mistake(self) -> str:
        """The id of the known mistake that explains it, or ""."""
        return self.worst.mistake if self.worst else ""

    @property
    def cause(self) -> str:
        """The known mistake that explains it in words, or ""."""
        return cause(self.worst) if self.worst else ""

    @property
    def effect(self) -> str:
        """How well that explains it."""
        return effect(self.worst) if self.worst else ""

    @property
    def text(self) -> str:
        """The paragraph."""
        why = f"Why: {self.why}." if self.why else ""
        look = f"Look at {self.look}." if self.look else ""
        lead = f"{self.where} {self.claim}".strip()
        return " ".join(part for part in (lead, self.size, why, look) if part)


def paragraphs(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Paragraphs by implementation and target, one for each thing that introduces error."""
    return {name: [finding.text for finding in found] for name, found in findings(rows).items()}


def findings(rows: Iterable[Row]) -> dict[str, list[Finding]]:
    """What is wrong, by implementation and target: what introduces error comes first."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    layers = set()
    for row in rows:
        if row.scope[:1] == "h" and "/" in row.scope:
            layers.add(row.scope.partition("/")[0])
        if row.verdict == "fail":
            by_run[label(row)].append(row)
    return {name: found_in(failed, len(layers)) for name, failed in by_run.items()}


def found_in(failed: list[Row], layers: int) -> list[Finding]:
    """The findings of one run."""
    groups: dict[tuple[str, bool, str], list[Row]] = defaultdict(list)
    rest = []
    ends = [row for row in failed if row.check == "process"]
    lost = [row for row in failed if row.status == "lost"] if ends else []
    for row in failed:
        if row in lost or row in ends:
            continue
        if introduces(row):
            leaf = row.scope.partition("/")[2] or kind_of(row.scope)
            groups[leaf + " segment" * is_segment(row), in_decode_only(row), row.mistake].append(row)
        else:
            rest.append(row)
    found = [crash(ends[0], lost)] if ends else []
    found += [operation(group, layers) for group in groups.values()]
    alone: dict[str, list[Row]] = defaultdict(list)
    inherited = []
    for row in rest:
        apart = row.check in ("bad_tokens", "load") or (row.check != "precision" and own_blame(row))
        if apart or not found:
            alone[row.blame or row.check].append(row)
        else:
            inherited.append(row)
    found += [mechanism(blame, group) for blame, group in alone.items()]
    if inherited:
        checks = ", ".join(dict.fromkeys(check_name(row.check) for row in inherited))
        claim = f"{len(inherited)} more failures inherit it ({checks})."
        found.append(Finding("", claim, "", "", None))
    return found


def in_decode_only(row: Row) -> bool:
    """An operation that is right in prefill."""
    return row.blame == row.scope + DECODE


def is_segment(row: Row) -> bool:
    """Judged together with all that comes between the nearest taps before it and here."""
    return row.metric.startswith("segment")


def crash(end: Row, lost: list[Row]) -> Finding:
    """The worker's end, with what was lost by it."""
    claim = f"ended before it was done: {len(lost)} measurements are lost." if lost else "failed."
    return Finding("process", claim, f"It {ended(end)}.", "", end)


def operation(group: list[Row], layers: int) -> Finding:
    """One operation (or segment) in one or several layers that computes wrongly from its own input."""
    worst = max(group, key=severity)
    scopes = ", ".join(collapse((row.blame for row in group), layers))
    if worst.status == "missing":
        claim = f"is promised, by TAPS or by the first call, but was not tapped (case {worst.case})."
        return Finding(scopes, claim, "", "", worst)
    words = detail(worst)
    where = f" (case {worst.case}, {words})" if words else f" (case {worst.case})"
    if worst.value is None:
        size = f"Its result is no number or never came at {worst.scope}{where}."
    else:
        unit = "its own noise" if is_segment(worst) else "rounding units"
        size = (
            f"At worst, {worst.scope} is off by {worst.value:.3g} {unit}{where}; "
            f"honest rounding stays below {worst.limit:g}."
        )
    claim = "introduces an error: it is wrong even given its own input."
    look = hint_for_kind(kind_of(worst.scope))
    if is_segment(worst):  # its last operation need not be the one
        claim = (
            "is wrong: something between the nearest taps before it and this one introduces an error."
        )
        look = (
            "all that lies between; tap more of it, and the verdict can name the operation that is wrong"
        )
    return Finding(scopes, claim, size, look, worst, diagnosis(worst))


def severity(row: Row) -> float:
    """NaN is worse than any number, and what never came shows least."""
    if row.status == "nan":
        return math.inf
    return -1.0 if row.value is None else row.value


def mechanism(blame: str, group: list[Row]) -> Finding:
    """A failure that no single operation explains, shown by the check that it is named after."""
    telling = [row for row in group if row.check in CHECKS and CHECKS[row.check].blames == blame]
    worst = max(telling or group, key=severity)
    words = detail(worst)
    if worst.check == "load":
        return Finding("", f"It could not be started: {words.rstrip('.')}.", "", "", worst)
    where = " ".join(part for part in (check_name(worst.check), worst.case, worst.scope) if part)
    size = words
    if worst.value is not None:
        size = f"{worst.value:.3g} {worst.metric.replace('_', ' ')}, allowed {worst.limit:g}. {words}"
    why = next((text for row in [worst, *group] if (text := diagnosis(row))), "")
    count = f", in {len(group)} measurements" if len(group) > 1 else ""
    size = f"At worst: {where}: {size.strip().rstrip('.')}."
    return Finding(blame, f"is at fault{count}.", size, hint(blame, group), worst, why)


def hint(blame: str, group: list[Row]) -> str:
    """Where to look for a mechanism that is at fault."""
    tapped = any(row.check == "activations" for row in group)
    if blame == "logits" and tapped:  # and no operation was found wrong
        blame = "activations"
    looks = {check.blames: check.look_at for check in CHECKS.values() if check.blames}
    return looks.get(blame, "")


def hint_for_kind(kind: str) -> str:
    """Where to look for an operation that is wrong by itself."""
    return CHECKS["local"].look_at_by_kind[kind]
