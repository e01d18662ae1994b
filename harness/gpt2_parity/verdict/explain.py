"""The one module that writes prose: what a row shows, and what is wrong with an implementation and why.

Everywhere else a fact stays data: a status, a mistake, evidence. Here it becomes a sentence. The
terminal, the reports and pytest's failure messages all use these sentences.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.checks.search.envelope import spans
from gpt2_parity.contract.architecture import graph, kind_of
from gpt2_parity.contract.dtypes import UNIT_ROUNDOFF
from gpt2_parity.contract.rows import Row, label
from gpt2_parity.mistakes import registry
from gpt2_parity.verdict.attribution import (
    DECODE,
    broken,
    collapse,
    introduced,
    introduces,
    n_layer,
    own_blame,
)

# -- one row


def number(value: Any, digits: int = 3) -> str:
    """A number from evidence as text; NaN and infinities are already text there."""
    return value if isinstance(value, str) else f"{value:.{digits}g}"


def _operation(e: Mapping[str, Any]) -> str:
    return f"at {e['at']}: got {number(e['got'], 9)}, expected {number(e['right'], 9)}"


def _looked_up(e: Mapping[str, Any]) -> str:
    channel = f", channel {e['channel']}" if "channel" in e else ""
    return f"token {e['token']} at position {e['position']}{channel}"


def _precision(e: Mapping[str, Any]) -> str:
    wider = ": wider than declared" if e.get("wider") else ""
    return f"measured {e['measured']}, declared {e['declared']}{wider}"


def quoted(text: str | list[int]) -> str:
    """A generated text in quotes, or its ids if not all of them are tokens."""
    return repr(text) if isinstance(text, str) else f"ids {text}"


def _generated(e: Mapping[str, Any]) -> str:
    return f"{quoted(e['text'])}, golden {quoted(e['golden'])}; {first_difference(e)}"


def first_difference(e: Mapping[str, Any]) -> str:
    """Where a generated text first differs from golden's, and whether noise could explain that."""
    first = e["first_difference"]
    return (
        f"first difference at token {first['new_token']} of row {first['row']}: got "
        f"{quoted(first['got'])}, expected {quoted(first['golden'])} (golden margin "
        f"{number(first['margin'])}, noise explains up to {number(first['near_tie'])})"
    )


def _by_forward(e: Mapping[str, Any]) -> str:
    chosen = f"got id {e['id']}, the argmax of forward is {e['likeliest']}"
    if e.get("asked_for_one_token"):
        return f"with n_new = 1, row {e['row']}: {chosen}"
    return f"first difference at new token {e['new_token']} of row {e['row']}: {chosen}"


def _call(e: Mapping[str, Any]) -> str:
    shape = e.get("tokens_of_shape")
    ids = f"tokens of shape {tuple(shape)}" if shape else f"tokens {e['tokens']}"
    return ids if e["function"] == "forward" else f"{ids} in {e['function']}"


def searched(facts: Mapping[str, Any]) -> str:
    """What a search says about a failure: its condition, and the smallest trial that shows it."""
    if not facts["failed"]:
        return f"{facts['trials']} trials, seed {facts['seed']}"
    parts = [f"{facts['failed']} of {facts['trials']} trials failed, seed {facts['seed']}"]
    if "corpus" in facts:
        parts.append(f"of the corpus: {facts['corpus']}")
    if facts.get("not_again"):
        parts.append("the same calls did not fail again: it is rare, or depends on what came before")
    parts += conditions(facts)
    if "trial" in facts:
        parts.append(f"smallest trial: {calls(facts['trial'])}")
    return "; ".join(parts)


def conditions(facts: Mapping[str, Any]) -> list[str]:
    """The conditions of a failure that a search found: "fails for queries 5 to 7, passes for 4, 8"."""
    return [
        f"fails for {each['axis']} {listed(each['fails'])}, passes for {listed(each['passes'])}"
        for each in facts.get("condition", ())
    ]


def drawn(rows: Iterable[Row]) -> dict[str, str]:
    """What a search drew, by implementation and target."""
    found = {}
    for row in rows:
        if row.check == "search" and (facts := row.evidence.get("search")):
            replayed = f"{facts['replayed']} of the corpus, " if "replayed" in facts else ""
            found[label(row)] = (
                f"{facts['trials']} trials ({replayed}seed {facts['seed']}) of {facts['calls']} calls, "
                f"{facts['failed']} failed"
            )
    return found


def listed(values: list[Any]) -> str:
    """Values as text, runs of whole numbers as 5 to 7; at most the first and last few."""
    if not all(isinstance(value, int) for value in values):
        return ", ".join(map(str, values))
    return spanned(spans(set(values)))


def spanned(runs: Sequence[Sequence[int]], most: int = 6) -> str:
    """Runs of whole numbers, each [first, last], as text; of more than most, the first and last."""
    texts = [str(a) if a == b else f"{a} to {b}" if b > a + 1 else f"{a}, {b}" for a, b in runs]
    return ", ".join(texts if len(texts) <= most else [*texts[: most - 3], "...", *texts[-2:]])


def calls(trial: Mapping[str, Any]) -> str:
    """The model and the calls of a trial: n_embd 4, ...: forward [1, 16]."""
    sizes = ", ".join(f"{name} {value}" for name, value in trial["hparams"].items())
    made = []
    for i, step in enumerate(trial["steps"]):
        call = f"{step.get('kind', 'forward')} [{step.get('batch', 1)}, {step.get('n', 1)}]"
        past = step.get("past", -1)
        made.append(
            call
            + (
                f" after call {past + 1}"
                if past >= 0 and past != i - 1
                else " with its cache"
                if past >= 0
                else ""
            )
        )
    extremes = f" and {', '.join(trial['extremes'])}" if trial["extremes"] else ""
    return f"{sizes}{extremes}: {', '.join(made)}"


class Phrase(NamedTuple):
    """How evidence with certain keys is worded."""

    keys: tuple[str, ...]  # all of them must be there
    word: Callable[[Mapping[str, Any]], str]
    optional: tuple[str, ...] = ()  # more keys that it words


CACHE_IS_TOKENS = (
    "the cache is the tokens so far, so these keys were computed anew and are not those tapped before; "
    "declare CACHE = None"
)
IN_PLACE = (
    "the cache was written in place: continued in one way, it no longer serves for another; "
    'if that is meant, declare CACHE = "in place"'
)


def _weights(e: Mapping[str, Any]) -> str:
    share = f"{100 * e['weights_differ']:.3g} % of them differ from the checkpoint's"
    return f"{share}, a row or column by up to {number(e['relative_difference'])}; {grid(e['grid'])}"


SCALES = {
    "tensor": "one scale for all",
    "column": "one scale for each column",
    "row": "one scale for each row",
}


def grid(found: Mapping[str, Any]) -> str:
    """The grid that weights lie on, as text: "8 bits, one scale for each column"."""
    if not found:
        return "on no known grid"
    scales = SCALES.get(found["by"], f"one scale for each group of {found['group']} inputs")
    return f"{found['bits']} bits, {scales}"


# Evidence that no phrase fits is shown as its name and its value.
PHRASES = (
    Phrase(
        ("greatest_difference",), lambda e: f"greatest difference {number(e['greatest_difference'])}"
    ),
    Phrase(("at", "got", "right"), _operation),
    Phrase(
        ("recomputed_from",),
        lambda e: f"recomputed from {', '.join(e['recomputed_from']) or 'the tokens'}",
    ),
    Phrase(("token", "position"), _looked_up, ("channel",)),
    Phrase(("cache_is_tokens",), lambda e: CACHE_IS_TOKENS),
    Phrase(("in_place",), lambda e: IN_PLACE),
    Phrase(("weights_differ", "relative_difference", "grid"), _weights),
    Phrase(("length",), lambda e: f"{e['length']} tokens"),
    Phrase(("cut_at",), lambda e: f"cut at {e['cut_at']}"),
    Phrase(("measured", "declared"), _precision, ("wider", "as_coarse_as")),
    Phrase(("overwritten",), lambda e: ", ".join(e["overwritten"])),
    Phrase(
        ("near_ties", "positions"),
        lambda e: f"{e['near_ties']} of {e['positions']} positions are within the noise",
    ),
    Phrase(("text", "golden", "first_difference"), _generated),
    Phrase(("text",), lambda e: quoted(e["text"])),
    Phrase(("likeliest", "id", "row", "new_token"), _by_forward),
    Phrase(("likeliest", "id", "row", "asked_for_one_token"), _by_forward),
    Phrase(("search",), lambda e: searched(e["search"])),
    Phrase(("accepted",), lambda e: f"{_call(e['accepted'])} were accepted"),
    Phrase(("refused_with",), lambda e: f"refused: {e['refused_with']}"),
    Phrase(
        ("refused", "good_tokens_fail"),
        lambda e: f"after {_call(e['refused'])} were refused, good tokens fail: {e['good_tokens_fail']}",
    ),
)
ELSEWHERE = {  # keys that other functions word, or that only figures show
    "by_token",
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
    "envelope",
}


def seen(evidence: Mapping[str, Any]) -> str:
    """A check's evidence as text."""
    left = {key: value for key, value in evidence.items() if key not in ELSEWHERE}
    parts = []
    for phrase in PHRASES:
        if left.keys() >= set(phrase.keys):
            try:
                parts.append(phrase.word(left))
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # another check's evidence, which means something else by these names
            worded = (*phrase.keys, *phrase.optional)
            left = {name: value for name, value in left.items() if name not in worded}
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in left.items()]
    return "; ".join(parts)


UNEXPECTED = {
    "unknown_name": "measured but not expected: names must match exactly",
    "not_promised": "measured but not expected: TAPS does not list this tap",
}
MISSING = {"input_not_tapped": "missing: one of its inputs was not tapped"}
NOT_MEASURED = "missing: expected, but never tapped or measured"


def detail(row: Row) -> str:
    """Everything about a row besides its figures; "" if there is nothing."""
    return " ".join(_known(row) + _observed(row))


def _known(row: Row) -> list[str]:
    e = row.evidence
    if "known" in e:
        return [f"known: {e['known']['reason']}."]
    if "beyond" in e:
        beyond = e["beyond"]
        return [
            f"larger than line {beyond['line']} of the ledger allows (at most {beyond['at_most']:g})."
        ]
    return []


def _observed(row: Row) -> list[str]:
    e = row.evidence
    if "version_1" in e:  # read from an old file
        return [e["version_1"]]
    evidence = seen(e)
    match row.status:
        case "nan":
            parts = ["NaN: a comparison with NaN never passes.", evidence]
        case "infinite":
            parts = ["infinite.", evidence]
        case "missing":
            parts = [MISSING.get(e.get("reason", ""), NOT_MEASURED)]
        case "unexpected":
            parts = [f"measured {e['times']} times" if "times" in e else UNEXPECTED[e["reason"]]]
        case "lost":
            parts = [f"missing: {e['error']}"]
        case "error":
            parts = [f"missing: {e['error']}"] if row.metric else [ended(row)]
        case "not_asked":
            parts = [_not_asked(row)]
        case _:
            parts = [evidence]
    return [text for text in parts if text]


SECOND_MODEL = "(this check loads a second model beside the first, and both must go on working)"


def ended(row: Row) -> str:
    """What ended a run, a check or a target early, and when; or which ledger entry is out of date."""
    e = row.evidence
    if "stale" in e:
        stale = e["stale"]
        return (
            f"line {stale['line']} of the ledger is out of date: "
            f"{' | '.join(stale['id'])} no longer fails; remove the line"
        )
    if e.get("since"):
        beside = f" {SECOND_MODEL}" if e["since"] in ("sizes", "overflow") else ""
        return f"has raised on every call since the check {check_name(e['since'])}: {e['error']}{beside}"
    during = f" (during the check {check_name(e['during'])})" if e.get("during") else ""
    return f"{e['error']}{during}"


def _not_asked(row: Row) -> str:
    if left_out(row):
        return f'not looked at: {row.case} was not loaded, because RELOADS = "{row.evidence["reloads"]}"'
    if row.verdict == "skipped":
        offered = ", ".join(row.evidence.get("offered", ()))
        return f"skipped: {row.device}-{row.dtype} is not offered (offered: {offered})"
    if row.check == "weights":
        return "no tap embed: every row of wte and wpe is checked only in models as small as micro"
    return "no tap: an error in this operation could not be localised"


def check_name(name: str) -> str:
    """A check's name as prose has it: "kv cache"."""
    return name.replace("_", " ")


def measured(row: Row) -> str:
    """What was measured and what was allowed: "126 rounding units, allowed 16"."""
    if row.value is None:
        return detail(row) or "not measured"
    allowed = "" if row.limit is None else f", allowed {row.limit:g}"
    return f"{row.value:.4g} {row.metric.replace('_', ' ')}{allowed}"


def measured_and_seen(row: Row) -> str:
    """What was measured, with the detail."""
    text = detail(row)
    return measured(row) if row.value is None or not text else f"{measured(row)} ({text})"


def location(row: Row) -> str:
    """Where a row was measured: check, case and scope."""
    case = "" if row.case == row.check else row.case  # a search has one case, of that name
    return " ".join(part for part in (row.check, case, row.scope) if part)


def cause(row: Row) -> str:
    """The text of the known mistake that explains a row; "" if none does."""
    return registry.text_of(row.mistake) if row.mistake else ""


def diagnosis(row: Row) -> str:
    """Why a row fails, such as "erf instead of tanh GELU explains it: ..."; "" if that is not known."""
    e = row.evidence
    if "version_1_diagnosis" in e:  # read from an old file
        return str(e["version_1_diagnosis"])
    if row.mistake:
        return f"{cause(row)} {effect(row)}".strip()
    if "wrong_from" in e:
        return f"in the backward pass, gradients are wrong from {e['wrong_from']} on"
    if "inherited" in e:
        return "inherited: its input is not finite"
    if (nearest := e.get("nearest")) is None:
        return ""
    if not nearest:
        return "no known mistake explains it"
    text = registry.text_of(nearest["mistake"])
    if row.check == "local":
        falls = f"{number(nearest['before'])} rounding units fall to {number(nearest['after'])}"
        return f"no known mistake explains it (nearest: {text}: {falls})"
    return f"no known mistake, made in every layer, explains it (nearest: {text}: {_falls(nearest)})"


def effect(row: Row) -> str:
    """How well the known mistake explains a row: how much error remains if it is assumed."""
    explained = row.evidence.get("explained")
    if explained is None:
        return "explains it"
    if "correlation" in explained:
        correlation, times = (number(explained[key], 2) for key in ("correlation", "beyond_chance"))
        return (
            "explains it: the errors are as large as that makes them, and their correlation of "
            f"{correlation} is {times} times what chance gives"
        )
    if "noise_units" in explained:
        units = number(explained["noise_units"], 2)
        place = f"at {explained['at']} " if "at" in explained else ""
        falls = _falls(explained)
        return f"explains it: if it is made {place}in every layer, {falls} ({units} noise units)"
    before, after = number(explained["before"]), number(explained["after"], 2)
    return f"explains it: {before} rounding units fall to {after}"


def _falls(facts: Mapping[str, Any]) -> str:
    before, after = number(facts["before"], 2), number(facts["after"], 2)
    return f"the difference of the logits falls from {before} to {after}"


def notes(rows: Iterable[Row]) -> list[str]:
    """What to mention although it does not fail: known failures, and products wider than declared."""
    rows = list(rows)
    wide = Counter((label(row), _precision(row.evidence)) for row in rows if _passes_too_wide(row))
    wide_logits = dict.fromkeys(
        (label(row), _precision(row.evidence))
        for row in rows
        if row.check == "logits" and row.evidence.get("wider")
    )
    known = Counter(
        (label(row), row.check, str(row.evidence.get("known", {}).get("reason", "")))
        for row in rows
        if row.verdict == "known"
    )
    lines = list(own_weights(rows))
    lines += [
        f"{name} {check}: known: {why} ({n} measurements)" for (name, check, why), n in known.items()
    ]
    lines += [f"{name} logits: {text}" for name, text in wide_logits]
    lines += [f"{name} precision: {text} ({n} products)" for (name, text), n in wide.items()]
    return lines + [f"{name}: {text}" for name, text in not_looked_at(rows).items()]


def left_out(row: Row) -> bool:
    """Whether a measurement was not made because loading is slow."""
    return row.verdict == "skipped" and "reloads" in row.evidence


def not_looked_at(rows: Iterable[Row]) -> dict[str, str]:
    """By implementation and target: the cases of each check that were left out; only where some were."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        if left_out(row):
            found.setdefault(label(row), {}).setdefault(row.check, {})[row.case] = None
    return {
        name: 'not looked at, because RELOADS = "slow": '
        + "; ".join(f"{check} on {', '.join(cases)}" for check, cases in checks.items())
        for name, checks in found.items()
    }


def own_weights(rows: list[Row]) -> Iterable[str]:
    """For each target with own weights: that they are not the checkpoint's, and what they cost."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.check == "own_weights":
            by_run[label(row)].append(row)
    failed = {label(row) for row in rows if row.verdict == "fail"}
    for name, own in by_run.items():
        differing = [row for row in own if "weights_differ" in row.evidence]
        grids = Counter(grid(row.evidence["grid"]) for row in differing)
        kinds = "; ".join(f"{n}: {text}" for text, n in grids.items())
        lead = "has weights that" if name in failed else "computes its own weights rightly; they"
        what = f"are not the checkpoint's. {len(differing)} arrays differ ({kinds})"
        if differing:
            yield f"{name} {lead} {what}. {cost(own)}"


def with_own_weights(rows: Iterable[Row]) -> list[str]:
    """The targets that were judged by weights of their own, which differ from the checkpoint's."""
    own = [row for row in rows if row.check == "own_weights" and row.metric == "relative_difference"]
    return list(dict.fromkeys(label(row) for row in own if "weights_differ" in row.evidence))


def cost(own: Iterable[Row]) -> str:
    """What a model's own weights cost, from the rows of the check own_weights."""
    rows = {row.metric: row for row in own if row.scope == "logits" and row.value is not None}
    if not rows.keys() >= {"kl_nats", "top1_changed_share", "perplexity"}:
        return "What they cost was not measured."
    kl, top, perplexity = (rows[name] for name in ("kl_nats", "top1_changed_share", "perplexity"))
    return (
        f"At {kl.evidence['over_positions']} positions: KL {number(kl.value)} nats on average and "
        f"{number(kl.evidence['greatest'])} at most; another likeliest token at "
        f"{100 * float(top.value or 0):.3g} %; perplexity of the golden texts "
        f"{number(perplexity.value, 5)}, with the checkpoint's weights "
        f"{number(perplexity.evidence['of_the_checkpoint'], 5)}."
    )


def _passes_too_wide(row: Row) -> bool:
    return row.check == "precision" and row.verdict == "pass" and bool(row.evidence.get("wider"))


# -- what is wrong with an implementation


class Finding(NamedTuple):
    """One thing that is wrong, in parts; ``text`` puts them together."""

    where: str  # the operation (h*/mlp/gelu) or mechanism (cache) at fault; "" for inherited failures
    claim: str
    size: str
    look: str  # where to look
    worst: Row | None  # the measurement that shows it best
    why: str = ""  # the diagnosis, if there is one

    @property
    def mistake(self) -> str:
        """The id of the known mistake that explains the finding, or ""."""
        return self.worst.mistake if self.worst else ""

    @property
    def cause(self) -> str:
        """The text of that mistake, or ""."""
        return cause(self.worst) if self.worst else ""

    @property
    def effect(self) -> str:
        """How well that mistake explains the finding."""
        return effect(self.worst) if self.worst else ""

    @property
    def several(self) -> bool:
        """Whether it names several operations."""
        return ", " in self.where

    @property
    def text(self) -> str:
        """All parts as one paragraph."""
        why = f"Why: {self.why}." if self.why else ""
        look = f"Look at {self.look}." if self.look else ""
        lead = f"{self.where}{': each' if self.several else ''} {self.claim}".strip()
        return " ".join(part for part in (lead, self.size, why, look) if part)


def paragraphs(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Paragraphs by implementation and target: one for each finding, what introduces an error first."""
    return {name: [each.text for each in wrong] for name, wrong in findings(rows).items()}


def findings(rows: Iterable[Row]) -> dict[str, list[Finding]]:
    """What is wrong, by implementation and target; what introduces an error comes first."""
    rows = list(rows)
    by_run: dict[str, list[Row]] = defaultdict(list)
    products: Counter[str] = Counter()
    for row in rows:
        products[label(row)] += row.check == "precision"
        if row.verdict == "fail":
            by_run[label(row)].append(row)
    layers = n_layer(rows)
    return {name: found_in(failed, layers, products[name]) for name, failed in by_run.items()}


def found_in(failed: list[Row], layers: int, products: int) -> list[Finding]:
    """The findings for one implementation and target, from its failures, one for each cause.

    products: how many matrix products the check "precision" has examined.
    """
    groups: dict[tuple[str, bool, str], list[Row]] = defaultdict(list)
    rest = []
    coarse, failed = coarser(failed, layers, products)
    ends = [row for row in failed if row.check == "process"]
    lost = [row for row in failed if row.status == "lost"] if ends else []
    which = {id(row) for row in introduced(failed)}
    for row in failed:
        if row in lost or row in ends:
            continue
        if id(row) in which:
            groups[cause_of(row)].append(row)
        else:
            rest.append(row)
    found = [crash(ends[0], lost)] if ends else []
    found += coarse
    found += [operation(group, layers) for group in groups.values()]
    alone: dict[str, list[Row]] = defaultdict(list)
    inherited = []
    own = broken(failed)
    for row in rest:
        apart = row.check in ("load", *own) or (row.check != "precision" and own_blame(row))
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


def cause_of(row: Row) -> tuple[str, bool, str]:
    """What failing operations have in common if they have one cause: a mistake, or else their kind."""
    if row.mistake:
        return "", False, row.mistake
    leaf = row.scope.partition("/")[2] or kind_of(row.scope)
    return leaf + " segment" * is_segment(row), in_decode_only(row), ""


def coarser(failed: list[Row], layers: int, products: int) -> tuple[list[Finding], list[Row]]:
    """A finding if most products are computed in one coarser precision; and the failures that it leaves.

    Operations whose error is what that precision causes belong to it: they are not told again.
    """
    by_dtype: dict[str, list[Row]] = defaultdict(list)
    for row in failed:
        if row.check == "precision" and row.evidence.get("as_coarse_as"):
            by_dtype[row.evidence["as_coarse_as"]].append(row)
    dtype, group = max(by_dtype.items(), key=lambda each: len(each[1]), default=("", []))
    if len(group) <= max(1, products / 2):
        return [], failed
    own = [row for row in failed if introduces(row) and as_coarse_as(row, dtype)]
    if len({row.mistake for row in own}) == 1 and own[0].mistake:
        return [], failed  # one mistake explains all: it says more than a precision
    worst = max(group, key=severity)
    scopes = ", ".join(collapse((row.scope for row in group), layers))
    claim = (
        f"is computed in {worst.evidence['measured']}, declared {worst.evidence['declared']}: "
        f"{len(group)} of {products} products."
    )
    size = f"At worst, {worst.scope} loses {worst.value:.3g} bits; {worst.limit:g} are allowed."
    wrong = {row.scope for row in group}
    if others := collapse((row.scope for row in own if row.scope not in wrong), layers):
        size += f" The errors of {', '.join(others)} are as large as that precision makes them."
    why = next((text for row in own if row.mistake and (text := diagnosis(row))), "")
    look = CHECKS["precision"].look_at
    kept = [row for row in failed if row not in own and row not in group]
    return [Finding(scopes, claim, size, look, worst, why)], kept


def as_coarse_as(row: Row, dtype: str) -> bool:
    """Whether the error of an operation is within its limit at a coarser dtype."""
    if row.value is None or row.limit is None or is_segment(row) or row.dtype not in UNIT_ROUNDOFF:
        return False
    return row.value * UNIT_ROUNDOFF[row.dtype] / UNIT_ROUNDOFF[dtype] <= row.limit


def in_decode_only(row: Row) -> bool:
    """Whether a row blames an operation that is right in prefill."""
    return row.blame == row.scope + DECODE


def is_segment(row: Row) -> bool:
    """Whether a row judges all operations between the nearest preceding taps and its scope together."""
    return row.metric.startswith("segment")


def crash(end: Row, lost: list[Row]) -> Finding:
    """The worker process ended early, or nothing worked any more; these rows were lost with it."""
    missing = f"{len(lost)} measurements are missing."
    if end.evidence.get("since"):
        return Finding("", f"It {ended(end)}.", missing if lost else "", "", end)
    return Finding(
        "process", f"ended early: {missing}" if lost else "failed.", f"It {ended(end)}.", "", end
    )


def operation(group: list[Row], layers: int) -> Finding:
    """One operation (or segment), in one or several layers, that is wrong given its own input."""
    worst = max(group, key=lambda row: severity(row) / (row.limit or 1.0))
    scopes = ", ".join(collapse((row.blame for row in group), layers))
    if worst.status == "missing":
        claim = f"is expected, by TAPS or by the first call, but was not tapped (case {worst.case})."
        return Finding(scopes, claim, "", "", worst)
    text = detail(worst)
    where = f" (case {worst.case}, {text})" if text else f" (case {worst.case})"
    if worst.value is None:
        size = f"At worst, the result of {worst.scope} is missing or not finite{where}."
    else:
        unit = "times its own noise" if is_segment(worst) else "rounding units"
        size = (
            f"At worst, {worst.scope} is off by {worst.value:.3g} {unit}{where}; "
            f"rounding alone stays below {worst.limit:g}."
        )
    claim = "introduces an error: given its own input, its result is wrong."
    look = hint_for_kind(kind_of(worst.scope))
    if is_segment(worst):  # any of its operations may be the wrong one
        claim = "is wrong: an operation between the preceding taps and this one introduces an error."
        look = "everything between these taps; with more taps, the verdict can name the operation"
    return Finding(scopes, claim, size, look, worst, diagnosis(worst))


def severity(row: Row) -> float:
    """A key to sort failures by: NaN is above any number, a missing value below."""
    if row.status == "nan":
        return math.inf
    return -1.0 if row.value is None else row.value


def mechanism(blame: str, group: list[Row]) -> Finding:
    """A failure that no single operation explains, shown by the check that blames this mechanism."""
    own = [row for row in group if row.check in CHECKS and CHECKS[row.check].blames == blame]
    worst = max(own or group, key=severity)
    text = detail(worst)
    if worst.check == "load":
        return Finding("", f"It could not be started: {text.rstrip('.')}.", "", "", worst)
    case = f"case {worst.case}" if worst.case else ""
    where = ", ".join(part for part in (f"check {check_name(worst.check)}", case, worst.scope) if part)
    size = text
    if worst.value is not None:
        size = f"{worst.value:.3g} {worst.metric.replace('_', ' ')}, allowed {worst.limit:g}"
        size += f"; {text}" if text else ""
    why = next((text for row in [worst, *group] if (text := diagnosis(row))), "")
    count = f": {len(group)} measurements fail" if len(group) > 1 else ""
    size = f"At worst ({where}): {size.strip().rstrip('.')}."
    look = "" if worst.status == "error" else hint(blame, group)  # nothing was computed
    return Finding(blame, f"is at fault{count}.", size, look, worst, why)


def hint(blame: str, group: list[Row]) -> str:
    """Where to look for the cause when this mechanism is at fault."""
    tapped = any(row.check == "activations" for row in group)
    if blame == "logits" and tapped:  # no operation was found wrong
        blame = "activations"
    looks = {check.blames: check.look_at for check in CHECKS.values() if check.blames}
    return looks.get(blame, "")


def hint_for_kind(kind: str) -> str:
    """Where to look when an operation of this kind is wrong given its own input."""
    return CHECKS["local"].look_at_by_kind[kind]


# -- how far a verdict holds (report/envelope.py has the facts)

NOT_SEARCHED = "not searched: nothing beyond the listed cases was looked at"
AXES = {  # axis -> what stands before and after its values
    "batch": ("", "rows"),
    "queries": ("", "queries"),
    "queries with a cache": ("", "queries with a cache"),
    "keys": ("", "keys"),
    "n_embd": ("n_embd", ""),
    "head size": ("heads of", ""),
    "n_head": ("", "heads"),
    "n_layer": ("", "layers"),
    "n_vocab": ("n_vocab", ""),
    "n_ctx": ("n_ctx", ""),
    "generate": ("", "tokens before generate"),
    "gradients": ("", "tokens for gradients"),
}
BRIEF = ("batch", "queries", "queries with a cache", "keys", "n_embd", "n_layer", "n_vocab")
FEW_RUNS = 3  # of values, told one by one in a sentence


def envelope(facts: Mapping[str, Any]) -> list[str]:
    """How far a verdict holds: a line on what was seen right, and one on what was not looked at."""
    if not facts:
        return [NOT_SEARCHED]
    if not facts["trials"]:
        return [f"nothing was seen right in {facts['made']} trials of the search"]
    return [seen_right(facts), beyond_seen(facts)]


def seen_right(facts: Mapping[str, Any]) -> str:
    """The sizes that were seen right, and in how many calls."""
    trials = f"{facts['trials']} of {facts['made']} trials"
    lead = f"right in {trials} of the search" if facts["failed"] else "seen right in the search"
    sizes = [reach(name, facts["axes"][name]) for name in BRIEF if name in facts["axes"]]
    sizes.append(f"{facts['calls']:,} calls")
    return f"{lead}: {'; '.join(sizes)}"


def reach(name: str, runs: Sequence[Sequence[int]]) -> str:
    """The values of an axis in a few words: 1 to 271 and some up to 1,085 keys."""
    before, after = AXES.get(name, (name, ""))
    (low, dense), high = runs[0], runs[-1][1]
    count = ""
    if len(runs) <= FEW_RUNS:
        texts = []
        for a, b in runs:
            texts += [f"{a:,} to {b:,}"] if b > a + 1 else [f"{x:,}" for x in range(a, b + 1)]
        *others, last = texts
        values = f"{', '.join(others)} and {last}" if others else last
    elif dense - low >= FEW_RUNS:
        values = f"{low:,} to {dense:,} and some up to {high:,}"
    else:
        values, count = f"{low:,} to {high:,}", f"({sum(b - a + 1 for a, b in runs)} values)"
    return " ".join(part for part in (before, values, after, count) if part)


def beyond_seen(facts: Mapping[str, Any]) -> str:
    """What is beyond the greatest values, was not offered, tapped, loaded or reached, or is rarer."""
    most = {name: f"{facts['axes'][name][-1][1]:,}" for name in BRIEF if name in facts["axes"]}
    counted = [f"{value} {AXES[name][1]}" for name, value in most.items() if AXES[name][1]]
    named = [f"{AXES[name][0]} above {value}" for name, value in most.items() if AXES[name][0]]
    parts = ["more than " + ", ".join(counted)] if counted else []
    parts += [", ".join(named)] if named else []
    parts += [*unasked(facts), f"what is wrong in fewer than 1 of {often(facts)} calls"]
    return f"{unseen_title(facts)} in the search: {'; '.join(parts)}"


def unseen_title(facts: Mapping[str, Any]) -> str:
    """What the rest is called: where trials failed, what they looked at may be in it."""
    return "not seen right" if facts["failed"] else "not looked at"


def often(facts: Mapping[str, Any]) -> str:
    """A fault in one of so many calls would have been seen with 99 %."""
    return f"{max(1, int(1 / facts['rarest_race'])):,}"


def unasked(facts: Mapping[str, Any]) -> list[str]:
    """What a search could not ask, or did not come to, besides sizes."""
    parts = []
    if facts["not_offered"]:
        parts.append(f"{' and '.join(facts['not_offered'])} (not offered)")
    if untapped := facts["untapped"]:
        every = untapped == every_operation()
        parts.append("single operations (no taps)" if every else f"{', '.join(untapped)} alone (no tap)")
    if left := [extreme(name) for name, n in facts["extremes"].items() if not n]:
        parts.append(f"extreme {', '.join(left)}")
    if n := facts["n_refused"]:
        parts.append(f"{n} model{'s' * (n > 1)} that it refused to load")
    if n := facts["outside"]:
        parts.append(f"{n} trial{'s' * (n > 1)} in which the declared dtype may overflow")
    return parts


def every_operation() -> list[str]:
    """The operations that a search judges by their taps, with h* for all layers."""
    return [op.name.replace("h0", "h*", 1) for op in graph(1)]


def extreme(name: str) -> str:
    """The name of an extreme as prose has it: GELU inputs."""
    return name.replace("_", " ").replace("gelu", "GELU")


def axis(name: str) -> str:
    """The name of an axis in a table."""
    own = {"batch": "batch rows", "generate": "tokens before generate"}
    return own.get(name, "tokens for gradients" if name == "gradients" else name)


def envelope_header(facts: Mapping[str, Any]) -> list[str]:
    """The header of the table."""
    return ["", "seen right", "around powers of two", unseen_title(facts) if facts else ""]


def in_order(names: Iterable[str]) -> list[str]:
    """Axes as reports list them; unknown ones last."""
    order = list(AXES)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def boundaries(powers: Mapping[str, list[int]]) -> str:
    """Which powers of two were seen with both neighbours, with some, and not at all."""
    words = {"whole": "{} \u00b1 1", "part": "{} in part", "not": "not {}"}
    parts = [
        text.format(", ".join(map(str, powers[name]))) for name, text in words.items() if powers[name]
    ]
    return "; ".join(parts)


def unseen(most: int, gaps: Sequence[Sequence[int]]) -> str:
    """The values of an axis that were not looked at."""
    return "; ".join([f"above {most}", *([f"between: {spanned(gaps)}"] if gaps else [])])


def magnitudes(facts: Mapping[str, Any]) -> list[list[str]]:
    """The table's lines on the values that operations saw."""
    lines = []
    for name, (low, high) in facts["ranges"].items():
        below = [f"below {low:.3g}"] if low and name != "residuals" else []  # residuals: their size
        lines.append([name, f"{low:.3g} to {high:.3g}", "", "; ".join([*below, f"above {high:.3g}"])])
    return lines


def counts(facts: Mapping[str, Any]) -> list[list[str]]:
    """The table's lines on all that is neither a size nor a value."""
    trials = (
        f"{facts['trials']} of {facts['made']} trials (seed {facts['seed']}, {facts['seconds']:g} s)"
    )
    had = [f"{extreme(name)} {n}" for name, n in facts["extremes"].items() if n]
    rarer = f"what is wrong in fewer than 1 of {often(facts)} calls (seen with 99 %)"
    largest = f"{facts['largest_model']:,} parameters"
    return [
        ["trials and calls", f"{trials}, {facts['calls']:,} calls", "", rarer],
        ["largest model", largest, "", f"more than {largest}"],
        ["extreme weights in trials", ", ".join(had) or "none", "", ""],
        ["besides", "", "", "; ".join(unasked(facts)) or "nothing"],
    ]


def looked_at(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """What only one of two runs has seen right; "" for nothing. None: it was searched, the other not."""
    if before is None:
        return "searched before, not searched after"
    if after is None:
        return "not searched before, searched after"
    sides = (("before", extent(before)), ("after", extent(after)))
    return "; ".join(f"seen right only {when}: {', '.join(what)}" for when, what in sides if what)


def extent(more: Mapping[str, Any]) -> list[str]:
    """What one run has seen right and another has not, in parts."""
    if not more:
        return []
    parts = [reach(name, more["axes"][name]) for name in in_order(more["axes"])]
    parts += more["offered"]
    parts += ["single operations"] if more["tapped"] == every_operation() else more["tapped"]
    return parts + [f"extreme {', '.join(map(extreme, more['extremes']))}"] * bool(more["extremes"])
