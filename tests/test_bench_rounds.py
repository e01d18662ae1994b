"""A benchmark keeps the rounds that it has measured, and makes fewer where one is long."""

import itertools
import json
import signal
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest

from commands import interruptible, module, parity
from gpt2_parity.bench import journal, rows, session, tables
from gpt2_parity.bench.journal import Inputs, Journal
from gpt2_parity.bench.pace import Pace
from gpt2_parity.bench.participant import Participant
from gpt2_parity.bench.workload import Outcome, Settings, Workload
from gpt2_parity.contract.interface import CannotJudge, CodeChanged, Target
from gpt2_parity.implementation.discovery import find
from gpt2_parity.model import catalogue
from test_bench import row

pytestmark = pytest.mark.xdist_group("bench")

FLOAT32 = Target("cpu", "float32")
WORKLOADS = (Workload("prefill", 24), Workload("decode", 8, 16), Workload("start", 24))


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def timed(monkeypatch, seconds, budget, path=None):
    """A session of two participants, each of whose turns takes so many seconds, and its journal."""
    monkeypatch.setattr(session, "REST", 0)
    clock = Clock()
    settings = Settings(FLOAT32, WORKLOADS, seconds=budget)
    one = object.__new__(session.Session)
    one.settings, one.report, one.done, one.all = settings, lambda step: None, 0, 1
    one.setup = SimpleNamespace(rounds={}, settings=settings)
    one.participants = [Participant(find(name), one.setup) for name in ("numpy", "torch")]
    one.pace, one.over, one.round_seconds = Pace(budget, clock), {}, {}
    one.rates, one.written, one.journal = [], 0, None
    for each in one.participants:

        def take(workload, each=each):
            clock.now += seconds
            each.samples[workload].append(clock.now)
            return clock.now

        monkeypatch.setattr(each, "time", take)
        monkeypatch.setattr(each, "warm", lambda workload: None)
        each.imported, each.offered = {"files": {}, "packages": {}}, [FLOAT32]
    return one


def machine():
    clock = itertools.count(1)
    return SimpleNamespace(request=lambda _: {"bandwidth": float(next(clock)), "gemm": None})


def run(one, workloads=WORKLOADS):
    for workload in workloads:
        one.pace.begin(len(WORKLOADS) - WORKLOADS.index(workload), afterwards=0.0)
        one._time(workload, machine())


@pytest.mark.parametrize(
    ("seconds", "budget", "counts"),
    [
        (1.0, None, [6, 6, 6]),
        (1000.0, None, [6, 6, 6]),
        (1.0, 100.0, [6, 6, 6]),
        (3.0, 60.0, [3, 3, 4]),  # 20 s are three rounds of 6 s; what is left over is the next one's
        (100.0, 60.0, [1, 1, 1]),  # each is measured once, whatever it takes
    ],
)
def test_there_are_fewer_rounds_where_a_round_is_long(seconds, budget, counts, monkeypatch):
    one = timed(monkeypatch, seconds, budget)
    run(one)
    assert [one.setup.rounds[workload] for workload in WORKLOADS] == counts
    for each in one.participants:
        assert [len(each.samples[workload]) for workload in WORKLOADS] == counts


def test_the_seconds_to_verify_again_are_left(monkeypatch):
    clock = Clock()
    pace = Pace(100.0, clock)
    pace.begin(2, afterwards=40.0)
    assert pace.deadline == 30.0
    clock.now = 90.0
    pace.begin(1, afterwards=40.0)
    assert not pace.another(1, 0.1)
    assert pace.another(0, 1000.0)


@pytest.mark.parametrize(("budget", "tokens"), [(None, 64), (60.0, 8)])
def test_less_is_generated_before_the_timing_where_time_is_short(budget, tokens, monkeypatch):
    one, asked = timed(monkeypatch, 1.0, budget), []
    for each in one.participants:
        monkeypatch.setattr(each, "begin", lambda: None)
        monkeypatch.setattr(each, "wait_until_loaded", lambda: None)
        monkeypatch.setattr(each, "verify", lambda when, further: asked.append((when, further)))
    one._load()
    assert asked == [("before", tokens)] * 2


def test_the_tables_say_where_there_were_fewer_rounds(monkeypatch):
    one = timed(monkeypatch, 9.0, 60.0)
    run(one)
    found = session.few_rounds(one)
    assert found["decode after 16"] == {
        "rounds": 1, "seconds_of_a_round": 18.0, "interval_confidence": 0.0
    }  # fmt: skip
    made = {"few_rounds": found, "samples": 6, "against": "x", "machine": "m", "threads": 1}
    made |= {"gemm_flop_per_s": None, "bandwidth_bytes_per_s": 1e9, "interval_confidence": 0.97}
    outcome = Outcome([row(samples=[1.0, 2.0])], made | {"truth": "t", "model": "m"})
    assert list(tables.grouped(outcome)) == ["a: prefill, 1 tokens (2 of 6 rounds)"]
    text = tables.job_summary(outcome)
    assert "decode after 16: 1 (a round takes 18.0 s; the interval encloses the median with 0%)" in text
    whole = Outcome([row(samples=[1.0] * 6)], outcome.environment | {"few_rounds": {}})
    assert list(tables.grouped(whole)) == ["a: prefill, 1 tokens"]
    assert "a round is long" not in tables.job_summary(whole)


def test_one_round_gives_no_ratio():
    found = rows.filled(row()._replace(implementation="mine"), [1.0], [2.0])
    assert tables.cells(found)[4] == "cannot tell (one round)"


def inputs(path=None):
    model = catalogue.locate("micro")
    settings = Settings(FLOAT32, WORKLOADS)
    return Inputs.of(
        [find("numpy"), find("torch")], model, {"a": "1"}, settings, "numpy", "parity bench"
    )


def test_what_was_measured_is_taken_over_and_not_measured_again(monkeypatch, tmp_path):
    """Interrupted in the second workload's third round: the first and two rounds are kept."""
    path = tmp_path / "bench.jsonl"
    one = timed(monkeypatch, 1.0, None)
    one.journal = Journal(path)
    one.journal.begin(inputs())
    turns = 0
    real = one.participants[1].time

    def interrupted(workload):
        nonlocal turns
        turns += 1
        if turns == 9:
            raise KeyboardInterrupt
        return real(workload)

    monkeypatch.setattr(one.participants[1], "time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    text = journal.summary(path)
    assert "keeps prefill 24; missing are decode after 16 from round 3 on, start 24, the veri" in text
    assert f"parity resume {tmp_path}" in text
    with path.open("a") as file:
        file.write('{"event": "rou')  # a line that a kill has cut

    two = timed(monkeypatch, 1.0, None)
    resumed = Journal(path, resumed=True)
    resumed.begin(inputs())
    two.resume(resumed)
    assert two.setup.rounds == {WORKLOADS[0]: 6}
    run(two)
    assert [two.setup.rounds[workload] for workload in WORKLOADS] == [6, 6, 6]
    for before, after in zip(one.participants, two.participants, strict=True):
        assert after.samples[WORKLOADS[0]] == before.samples[WORKLOADS[0]]
        assert after.samples[WORKLOADS[1]][:2] == before.samples[WORKLOADS[1]][:2]
        assert [len(after.samples[workload]) for workload in WORKLOADS] == [6, 6, 6]
        assert len(after.rates[WORKLOADS[1]]) == 6


def test_who_crashed_before_stays_out(monkeypatch, tmp_path):
    path = tmp_path / "bench.jsonl"
    one = timed(monkeypatch, 1.0, None)
    one.journal = Journal(path)
    one.journal.begin(inputs())
    one.participants[1].end("crashed", "was killed by SIGSEGV")
    monkeypatch.setattr(one.participants[1], "time", lambda workload: None)
    run(one, WORKLOADS[:1])
    two = timed(monkeypatch, 1.0, None)
    resumed = Journal(path, resumed=True)
    resumed.begin(inputs())
    two.resume(resumed)
    assert [each.verdict for each in two.participants] == ["verified", "crashed"]
    assert two.participants[1].detail == "was killed by SIGSEGV"


@pytest.mark.parametrize("change", ["sources", "machine", "checkpoint_sha256", "model"])
def test_a_benchmark_is_not_resumed_with_other_inputs(change, tmp_path):
    first = Journal(tmp_path / "bench.jsonl")
    first.begin(inputs())
    first.add("round", workload=WORKLOADS[0], rounds=1, seconds=1.0, last=True, machine=[], kept={})
    now = inputs()
    setattr(now, change, "m" if change == "model" else {"a": "another"})
    with pytest.raises(CannotJudge, match=f"{change} was"):
        Journal(tmp_path / "bench.jsonl", resumed=True).begin(now)
    Journal(tmp_path / "bench.jsonl", resumed=True).begin(inputs())


def test_a_benchmark_is_not_resumed_with_another_helper():
    one = SimpleNamespace(found=find("numpy"), imported={"files": {"helper.py": {"sha256": "2"}}})
    session.refuse_other_files(one, {"helper.py": {"sha256": "2"}, "gone.py": {"sha256": "3"}})
    with pytest.raises(CodeChanged, match=r"helper\.py of numpy: edited"):
        session.refuse_other_files(one, {"helper.py": {"sha256": "1"}})


def test_a_benchmark_that_has_no_round_leaves_the_journal_of_an_earlier_one(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text("earlier\n")
    new = Journal(path)
    new.begin(inputs())
    new.add("loaded", who="numpy", imported={"files": {}, "packages": {}})
    assert path.read_text() == "earlier\n"
    new.add("round", workload=WORKLOADS[0], rounds=1, seconds=1.0, last=False, machine=[], kept={})
    assert [json.loads(line).get("event") for line in path.read_text().splitlines()] == [
        None, "loaded", "round"
    ]  # fmt: skip


WAITS = """
import pathlib, time
here = pathlib.Path(__file__)
first_generate = generate
def generate(model, tokens, n_new):
    if tokens.shape[1] == 16 and n_new > 2:  # only the timed decode
        here.with_name("reached").touch()
        while here.with_name("wait").exists(): time.sleep(0.05)
    return first_generate(model, tokens, n_new)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_benchmark_keeps_its_rounds_and_is_resumed(how, tmp_path, prepared):
    path, out = module(tmp_path, "mine", WAITS), tmp_path / "out"
    (tmp_path / "wait").touch()
    chosen = ("--impl", "numpy", "--impl", path, "--model", "micro", "--quick", "--threads", 1)
    process = subprocess.Popen(
        interruptible("bench", *chosen, "--out", out),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "reached").exists():
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=60)
    (tmp_path / "wait").unlink()
    assert [each.name for each in out.iterdir() if not each.name.startswith(".")] == ["bench.jsonl"]
    if how == signal.SIGINT:
        assert process.returncode == 2
        assert "keeps prefill 128; missing are decode after 16, start 128, the verification" in err
        assert f"continue with: parity resume {out}" in err
    events = [json.loads(line) for line in (out / "bench.jsonl").read_text().splitlines()]
    kept = [each for each in events if each.get("event") == "round"][-1]["kept"]["mine"]["samples"]
    assert len(kept) == 6
    done = parity("resume", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prefill 128, round" not in done.stdout
    assert "decode after 16, round 1 of 6" in done.stdout
    assert sorted(each.name for each in out.iterdir()) == sorted(tables.FILES)
    document = json.loads((out / "bench.json").read_text())
    [prefill] = [
        row for row in document["rows"] if (row["implementation"], row["phase"]) == ("mine", "prefill")
    ]
    assert prefill["samples"] == kept
    assert document["environment"]["command"].endswith(f"--out {out}")
    assert parity("resume", out).returncode == 2  # there is nothing left to resume
