"""Compare an implementation with what others have published about OpenAI's checkpoints.

golden/known_answers.json has the facts, each with its source. The ``kind`` of a fact names the function
of probes.py that evaluates it, other fields are that function's arguments, and ``expected`` is the
published value. Each fact has its own tolerance: ``within`` (absolute) plus ``relative`` (a share of the
value). A number written as text, such as "-3.142", must be met to 0.6 of its last decimal.

Nobody else publishes about micro and generated shapes. Their facts are recorded from the float64 oracle
by golden/record_known.py, so that all this can be tested without the official files.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.files import strict_json
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.model import catalogue, checkpoint, published_files
from gpt2_parity.published.probes import EXACT, KINDS, Fact, ModelFiles
from gpt2_parity.published.worker import files_as_json
from gpt2_parity.run import supervisor
from gpt2_parity.run.supervisor import Lost, Refused, Resources, WorkerProcess

FACTS = catalogue.GOLDEN / "known_answers.json"
LAST_DIGIT = 0.6  # units of the last decimal of a number written as text: 0.5 of rounding, and noise


class Answer(NamedTuple):
    """The verdict on one fact."""

    fact: Fact
    verdict: str  # pass, fail, inconclusive or not run
    got: Any = None
    detail: str = ""


class FactsDocument(msgspec.Struct):
    """The whole of golden/known_answers.json."""

    format: Literal[1]
    facts: list[Fact]


def read(path: Path = FACTS) -> list[Fact]:
    """All facts. Raises CannotJudge where the file or a fact in it is malformed."""
    try:
        facts = strict_json.convert(strict_json.read(path), FactsDocument).facts
        ids = [fact["id"] for fact in facts]
        for fact in facts:
            if fact["kind"] not in KINDS:
                raise ValueError(f"{fact['id']}: unknown kind {fact['kind']!r}")
            if ids.count(fact["id"]) > 1:
                raise ValueError(f"two facts have the same id {fact['id']!r}")
    except (OSError, ValueError) as error:
        raise CannotJudge(f"{path}: not readable as known answers ({error}); restore it") from error
    return facts


def about(name: str, facts: Sequence[Fact]) -> list[Fact]:
    """The facts about a model; about an official one, also the facts about its files."""
    mine = [fact for fact in facts if fact["model"] == name]
    if name not in catalogue.OFFICIAL:
        return mine
    mine += [fact for fact in facts if fact["model"] == "official"]
    for file, published in published_files.release(name).files.items():
        values = msgspec.structs.asdict(published)
        if expected := {key: value for key, value in values.items() if value is not None}:
            fact = Fact(id=f"file-{file}", model=name, kind="file", source="golden/official.json")
            fact["file"], fact["expected"] = file, expected
            mine.append(fact)
    return mine


def compare(
    facts: Sequence[Fact],
    found: Found,
    target: Target,
    files: ModelFiles,
    resources: Resources,
) -> Iterator[Answer]:
    """Compare an implementation, in a process of its own, with every fact.

    If the process ends early, the remaining facts fail. Raises CannotJudge where the implementation
    does not offer the target.
    """
    with tempfile.TemporaryDirectory(prefix="parity-known-") as folder:
        worker = start(found, target, files, resources, Path(folder))
        try:
            failure = load_failure(worker)
            for fact in facts:
                if failure:
                    yield Answer(fact, "fail", detail=failure)
                else:
                    reply, lost = evaluate(worker, fact)
                    failure = lost and f"not compared: at {fact['id']} {lost}"
                    yield judge(fact, reply)
        finally:
            worker.kill()


def start(
    found: Found, target: Target, files: ModelFiles, resources: Resources, folder: Path
) -> WorkerProcess:
    """A worker process that loads the implementation."""
    job = {
        "implementation": found._asdict(),
        "target": target,
        "files": files_as_json(files),
    }
    environment = supervisor.environment(resources.threads)
    module = "gpt2_parity.published.worker"
    return WorkerProcess(module, job, folder / "worker", resources, environment, replies=True)


def load_failure(worker: WorkerProcess) -> str:
    """Wait until the implementation is loaded. Returns why it could not be; "" where it was.

    Raises CannotJudge where the worker says that nothing can be compared.
    """
    try:
        worker.receive()
    except Refused as error:
        if error.kind == "cannot judge":
            raise CannotJudge(str(error)) from error
        return str(error)
    except Lost as error:
        return str(error)
    return ""


def evaluate(worker: WorkerProcess, fact: Fact) -> tuple[dict[str, Any], str]:
    """The reply to a fact, and why the worker ended; "" where it goes on."""
    try:
        return worker.request("answer", fact=fact), ""
    except Refused as error:
        return {"error": str(error)}, ""
    except Lost as error:
        return {"error": str(error)}, str(error)


def judge(fact: Fact, reply: Mapping[str, Any]) -> Answer:
    """The verdict on a fact, from the worker's reply to it."""
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
        detail = f"the greatest difference is {got:.3g} of what is allowed"
        return Answer(fact, "pass" if got <= 1 else "fail", got, detail)
    try:
        both = pairs(got, wanted_of(fact))
        gaps = [gap(fact, g, w) for g, w in both]
    except ValueError as error:
        return Answer(fact, "fail", got, str(error))
    worst = max(range(len(gaps)), key=lambda i: gaps[i] if gaps[i] == gaps[i] else math.inf)
    detail = f"at worst {both[worst][0]:.9g} for {both[worst][1]}: {gaps[worst]:.2f} of what is allowed"
    return Answer(fact, "pass" if all(each <= 1 for each in gaps) else "fail", got, detail)


def wanted_of(fact: Fact) -> Any:
    """The expected value in the form that the function of its kind returns."""
    if fact["kind"] == "top":  # a value for the token itself, and the same for its rank
        return [[[value, value] for _, value in row] for row in fact["expected"]]
    return fact["expected"]


def pairs(got: Any, want: Any) -> list[tuple[float, Any]]:
    """The numbers of both, in pairs. Raises ValueError where their forms differ or none is there."""
    if isinstance(want, dict) and isinstance(got, dict) and got.keys() == want.keys():
        found = [pair for key in want for pair in pairs(got[key], want[key])]
    elif isinstance(want, list) and isinstance(got, list) and len(got) == len(want):
        found = [pair for g, w in zip(got, want, strict=True) for pair in pairs(g, w)]
    elif isinstance(want, int | float | str) and isinstance(got, int | float):
        found = [(float(got), want)]
    else:
        raise ValueError("the result does not have the form of the expected value")
    if not found:
        raise ValueError("nothing to compare")
    return found


def gap(fact: Fact, got: float, want: Any) -> float:
    """A difference as a multiple of the fact's tolerance. Raises ValueError where it has none."""
    value = float(want)
    if isinstance(want, str):
        allowed = LAST_DIGIT * 10.0 ** -len(want.partition(".")[2])
    elif "within" not in fact:
        raise ValueError("the fact has no tolerance: it lacks within")
    else:
        allowed = fact["within"] + fact.get("relative", 0) * abs(value)
    return abs(got - value) / allowed


def judge_greedy(fact: Fact, got: Mapping[str, Any]) -> Answer:
    """Pass if all tokens are right; inconclusive if the first wrong one was a near-tie; else fail."""
    wanted = fact["expected"]
    if isinstance(wanted, str):
        tokens = got["text"]
        right = bool(wanted) and tokens == wanted
        at = len(got["ids"]) - 1
    else:
        tokens = got["ids"]
        right = bool(wanted) and tokens == wanted
        differing = [i for i, (g, w) in enumerate(zip(tokens, wanted, strict=False)) if g != w]
        at = differing[0] if differing else len(tokens) - 1
    if right:
        return Answer(fact, "pass", tokens, f"smallest margin {min(got['margins']):.3g}")
    if not got["margins"]:
        return Answer(fact, "fail", tokens, "nothing was generated")
    margin, tie = got["margins"][at], got["tie"][at]
    detail = f"differs at new token {at} ({got['ids'][at]}), whose margin is {margin:.3g}"
    if margin <= tie:
        return Answer(fact, "inconclusive", tokens, f"{detail}: within float32 noise ({tie:.2g})")
    return Answer(fact, "fail", tokens, detail)


def exit_code(answers: Sequence[Answer]) -> int:
    """1 if a fact failed, 0 if at least one passed and none failed, and 2 otherwise."""
    verdicts = [answer.verdict for answer in answers]
    return 1 if "fail" in verdicts else 0 if "pass" in verdicts else 2


def model_files(model: catalogue.Model, texts: Path | None, gluon_logits: Path | None) -> ModelFiles:
    """The checked checkpoint, and files that the user has. Raises CannotJudge where one is missing."""
    if texts is None and (given := os.environ.get("PARITY_REFERENCE_DATA")):
        texts = Path(given)
    for path in (texts, gluon_logits):
        if path is not None and not path.exists():
            raise CannotJudge(f"{path}: no such file or folder")
    loaded = checkpoint.load(model.checkpoint)
    return ModelFiles(model.checkpoint.resolve(), loaded.weights, loaded.hparams, texts, gluon_logits)
