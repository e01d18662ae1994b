"""Known answers: what others have published about the official checkpoints, asked of an implementation.

golden/known_answers.json has the facts, each with its source. A fact is a question and what was
answered: ``kind`` names the function of questions.py that asks it, the fields beside it are what
that needs, ``expected`` is the answer. How near is near enough is the fact's own: ``within`` (absolute)
and ``relative`` are added up; a number written as text, such as "-3.142", must be met to 0.6 of its
last decimal. A fact whose protocol is ambiguous has ``not_run`` instead, which says why.

About micro and generated shapes nobody but us publishes: their facts are recorded from the
float64 oracle by golden/record_known.py, to exercise all this where the official files are absent.
"""

import json
import math
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue, checkpoint, download
from gpt2_parity.published.probes import EXACT, KINDS, Fact, NotRun, Place, Respondent

FACTS = catalogue.GOLDEN / "known_answers.json"
FORMAT = 1
LAST_DIGIT = 0.6  # of the last decimal of a number written as text: its rounding, and some noise
SECONDS = 600.0  # an implementation may take over one fact


class Answer(NamedTuple):
    """What came of one fact."""

    fact: Fact
    verdict: str  # pass, fail, inconclusive or not run
    got: Any = None
    detail: str = ""


def read(path: Path = FACTS) -> list[Fact]:
    """All facts. Raises CannotJudge where the file or a fact in it is malformed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = document["facts"] if document["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotJudge(f"{path}: not readable as known answers ({error!r})") from error
    if not isinstance(facts, list):
        raise CannotJudge(f"{path}: not known answers of format {FORMAT}")
    for fact in facts:
        if missing := {"id", "model", "source"} - fact.keys():
            raise CannotJudge(f"{path}: a fact lacks {', '.join(sorted(missing))}: {fact}")
        if "not_run" not in fact and fact.get("kind") not in KINDS:
            raise CannotJudge(f"{path}: {fact['id']}: unknown kind {fact.get('kind')!r}")
    if len({fact["id"] for fact in facts}) < len(facts):
        raise CannotJudge(f"{path}: two facts have the same id")
    return facts


def about(name: str, facts: Sequence[Fact]) -> list[Fact]:
    """The facts about a model, with those about the files of an official one."""
    mine = [fact for fact in facts if fact["model"] == name]
    if name not in catalogue.OFFICIAL:
        return mine
    mine += [fact for fact in facts if fact["model"] == "official"]
    for file, known in download.published(name).files.items():
        expected = {key: value for key, value in known._asdict().items() if value is not None}
        fact: Fact = {"id": f"file-{file}", "model": name, "kind": "file", "file": file}
        fact |= {"expected": expected} if expected else {"not_run": "nobody has published it"}
        mine.append(fact | {"source": "golden/official.json"})
    return mine


def ask(facts: Sequence[Fact], found: Found, target: Target, place: Place) -> Iterator[Answer]:
    """Ask an implementation every fact, in a process of its own; a death fails all that are left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, found, target, place))
    process.start()
    theirs.close()
    try:
        lost = hear(ours).get("error", "")
        for fact in facts:
            if "not_run" in fact:
                yield Answer(fact, "not run", detail=fact["not_run"])
                continue
            if lost:
                yield Answer(fact, "fail", detail=lost)
                continue
            reply = hear(ours, fact)
            if reply.get("lost"):
                lost = f"not asked: at {fact['id']} {reply['error']}"
            yield judge(fact, reply)
    finally:
        process.kill()
        process.join()
        ours.close()


def hear(channel: Connection, fact: Fact | None = None) -> dict[str, Any]:
    """What the process says, to a fact or first of all.

    Raises CannotJudge where it says that it cannot be asked at all.
    """
    try:
        if fact is not None:
            channel.send_bytes(json.dumps(fact).encode())
        if not channel.poll(SECONDS):
            return {"error": f"no answer for {SECONDS:g} s", "lost": True}
        reply = json.loads(channel.recv_bytes())
    except (EOFError, OSError):
        return {"error": "the process died", "lost": True}
    if "cannot" in reply:
        raise CannotJudge(reply["cannot"])
    return reply


def serve(channel: Connection, found: Found, target: Target, place: Place) -> None:
    """The process: load the implementation and say so, then answer fact by fact until it is ended."""

    def say(reply: dict[str, Any]) -> None:
        channel.send_bytes(json.dumps(reply).encode())

    try:
        respondent = Respondent.load(found, target, place)
    except CannotJudge as error:
        return say({"cannot": str(error)})
    except Exception as error:
        return say({"error": explain(error)})
    say({})
    while True:
        try:
            fact = json.loads(channel.recv_bytes())
        except EOFError:
            return None
        say(measure(respondent, fact))


def measure(respondent: Respondent, fact: Fact) -> dict[str, Any]:
    """{"got": ...}, or {"not_run": why}, or {"error": what the implementation raised}."""
    try:
        return {"got": KINDS[fact["kind"]](respondent, fact)}
    except NotRun as error:
        return {"not_run": str(error)}
    except Exception as error:  # the implementation's, or a fact that does not fit the model
        return {"error": explain(error)}


def explain(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"[:300]


def judge(fact: Fact, reply: Mapping[str, Any]) -> Answer:
    """The verdict on what was got."""
    if "not_run" in reply:
        return Answer(fact, "not run", detail=reply["not_run"])
    if "error" in reply:
        return Answer(fact, "fail", detail=reply["error"])
    got = reply["got"]
    if fact["kind"] == "greedy":
        return judge_greedy(fact, got)
    if fact["kind"] in EXACT:
        wanted = fact["expected"]
        right = wanted == (got if isinstance(wanted, list) else {key: got.get(key) for key in wanted})
        return Answer(fact, "pass" if right else "fail", got)
    if fact["kind"] == "logits_file":
        words = f"the greatest difference is {got:.3g} of what is allowed"
        return Answer(fact, "pass" if got <= 1 else "fail", got, words)
    try:
        both = pairs(got, wanted_of(fact))
        gaps = [gap(fact, g, w) for g, w in both]
    except ValueError as error:
        return Answer(fact, "fail", got, str(error))
    worst = max(range(len(gaps)), key=lambda i: gaps[i] if gaps[i] == gaps[i] else math.inf)
    words = f"at worst {both[worst][0]:.9g} for {both[worst][1]}: {gaps[worst]:.2f} of what is allowed"
    return Answer(fact, "pass" if all(each <= 1 for each in gaps) else "fail", got, words)


def wanted_of(fact: Fact) -> Any:
    """What is expected in the form in which it is got."""
    if fact["kind"] == "top":  # a value for the token itself, and the same for its rank
        return [[[value, value] for _, value in row] for row in fact["expected"]]
    return fact["expected"]


def pairs(got: Any, want: Any) -> list[tuple[float, Any]]:
    """Numbers side by side. Raises ValueError unless both have the same form, and one at least."""
    if isinstance(want, dict) and isinstance(got, dict) and got.keys() == want.keys():
        found = [pair for key in want for pair in pairs(got[key], want[key])]
    elif isinstance(want, list) and isinstance(got, list) and len(got) == len(want):
        found = [pair for g, w in zip(got, want, strict=True) for pair in pairs(g, w)]
    elif isinstance(want, int | float | str) and isinstance(got, int | float):
        found = [(float(got), want)]
    else:
        raise ValueError("what was got does not have the form of what is expected")
    if not found:
        raise ValueError("nothing to compare")
    return found


def gap(fact: Fact, got: float, want: Any) -> float:
    """A difference in shares of what the fact allows. Raises ValueError for a fact that does not say."""
    value = float(want)
    if isinstance(want, str):
        allowed = LAST_DIGIT * 10.0 ** -len(want.partition(".")[2])
    elif "within" not in fact:
        raise ValueError("the fact does not say how near is near enough: it lacks within")
    else:
        allowed = fact["within"] + fact.get("relative", 0) * abs(value)
    return abs(got - value) / allowed


def judge_greedy(fact: Fact, got: Mapping[str, Any]) -> Answer:
    """Right to the end, or wrong where it first differs; a near-tie there is inconclusive."""
    wanted = fact["expected"]
    if isinstance(wanted, str):
        said = got["text"]
        right = bool(wanted) and said == wanted
        at = len(got["ids"]) - 1
    else:
        said = got["ids"]
        right = bool(wanted) and said == wanted
        differing = [i for i, (g, w) in enumerate(zip(said, wanted, strict=False)) if g != w]
        at = differing[0] if differing else len(said) - 1
    if right:
        return Answer(fact, "pass", said, f"smallest margin {min(got['margins']):.3g}")
    if not got["margins"]:
        return Answer(fact, "fail", said, "nothing was generated")
    margin, tie = got["margins"][at], got["tie"][at]
    words = f"differs at new token {at} ({got['ids'][at]}), whose margin is {margin:.3g}"
    if margin <= tie:
        return Answer(fact, "inconclusive", said, f"{words}: within float32 noise ({tie:.2g})")
    return Answer(fact, "fail", said, words)


def exit_code(answers: Sequence[Answer]) -> int:
    """1 where a fact failed, 0 where at least one passed and none failed, 2 where none applied."""
    verdicts = [answer.verdict for answer in answers]
    return 1 if "fail" in verdicts else 0 if "pass" in verdicts else 2


def place_of(model: catalogue.Model, texts: Path | None, gluon_logits: Path | None) -> Place:
    """The checkpoint, checked, and the files beside it. Raises CannotJudge for what is not there."""
    if texts is None and (given := os.environ.get("PARITY_REFERENCE_DATA")):
        texts = Path(given)
    for path in (texts, gluon_logits):
        if path is not None and not path.exists():
            raise CannotJudge(f"{path}: not there")
    loaded = checkpoint.load(model.checkpoint)
    return Place(model.checkpoint.resolve(), loaded.weights, loaded.hparams, texts, gluon_logits)
