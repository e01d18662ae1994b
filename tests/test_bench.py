"""Benchmarks: a wrong implementation gets no figure; the arithmetic is right. No time is asserted."""

import importlib.util
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from commands import here, module, parity
from faults import named, write
from gpt2_parity.bench import (
    interval,
    participant,
    roofline,
    rows,
    session,
    setup,
    tables,
)
from gpt2_parity.bench.pace import Pace
from gpt2_parity.bench.roofline import Rates
from gpt2_parity.bench.workload import Settings, TimedRow, Workload, workloads
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.implementation.discovery import Found, find
from gpt2_parity.model import catalogue, synthetic
from gpt2_parity.reference import oracle
from gpt2_parity.reference.oracle import Arithmetic
from gpt2_parity.report import runs
from gpt2_parity.report.runs import BENCH
from gpt2_parity.run.supervisor import THREADS, Resources

pytestmark = pytest.mark.xdist_group("bench")  # one worker makes what all of these share

ROOT = Path(__file__).parent.parent
FLOAT32 = Target("cpu", "float32")
SMALL = HParams(n_vocab=257, n_ctx=64, n_embd=48, n_head=4, n_layer=3)
TRIALS = (Workload("prefill", 24), Workload("decode", 20, 16), Workload("start", 24))

# How an implementation can go wrong where a check before the timing would not see it: only the timed
# prefill is of 24 tokens, and after three of them (one to warm up) it misbehaves.
LATE = """
real, timed = forward, 0
def forward(model, tokens, past=None, tap=None, **kw):
    global timed
    timed += tokens.shape[1] == 24
    logits, present = real(model, tokens, past, tap, **kw)
    if timed > 3: {misbehaviour}
    return logits, present
"""
BAD = {
    "turns_wrong": ("logits = logits + np.float32(0.1)", "wrong output", "a timed call's logits"),
    "nan_when_timed": ("logits[0, -1, 5] = np.nan", "wrong output", "nan noise units"),
    "wrong_afterwards": (
        "logits = logits + (tokens.shape[1] < 14 and past is None)",
        "wrong output",
        "after the timing",
    ),
    "crashes": ("import os; os.kill(os.getpid(), 11)", "crashed", "was killed by SIGSEGV"),
    "hangs": ("import time; time.sleep(600)", "crashed", "the request took longer than 20 s"),
    "leaves": ("raise SystemExit(0)", "crashed", "it ended too early"),
    "raises": ("assert tokens.shape[1] != 24, 'enough'", "crashed", "enough"),
}
WRONG_GENERATE = """
real = generate
def generate(model, tokens, n_new):
    ids = real(model, tokens, n_new)
    if n_new > 20 and tokens.shape[1] == 16: ids[:, 15] = (ids[:, 15] + 1) % 50
    return ids
"""


# It prints what looks like a reply, writes into its tokens, and offers no generate.
ODD = """
print('{"seconds": 1e-9}')
import os; os.write(1, b'noise')
real = forward
def forward(model, tokens, past=None, tap=None):
    found = real(model, tokens, past, tap)
    tokens[:] = 1
    return found
del generate
"""
OFF = "pass\n    logits = logits + np.arange(logits.shape[-1], dtype=logits.dtype)"


def misbehaving(folder: Path, name: str) -> Found:
    code = LATE.replace("{misbehaviour}", BAD[name][0])
    return find(str(module(folder, name, code)))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, prepared):
    """One run on micro of everything that goes wrong, beside two that do not."""
    folder = tmp_path_factory.mktemp("bad")
    write(named("erf_gelu"), folder)
    found = [
        find("numpy"),
        find(str(folder / "erf_gelu.py")),
        find(str(module(folder, "wrong_generate", WRONG_GENERATE))),
        *(misbehaving(folder, name) for name in BAD),
        find(str(module(folder, "no_framework", "import no_such_framework"))),
        find(str(module(folder, "elsewhere", "def targets():\n    return [('cuda', 'float32')]"))),
        find(str(module(folder, "odd_but_right", ODD))),
        find(str(module(folder, "wrong_black_box", "TAPS = ()\n" + LATE.format(misbehaviour=OFF)))),
    ]
    settings = Settings(FLOAT32, TRIALS, seed=3, resources=Resources(seconds=20.0, threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participant, "LEAST_SECONDS", 0.0)  # one call a sample: LATE counts calls
        patch.setattr(session, "REST", 0.0)  # no figure is looked at
        return session.measure(found, catalogue.locate("micro"), settings)


def rows_of(outcome, name):
    return [row for row in outcome.rows if row.implementation == name]


@pytest.mark.parametrize("name", ["numpy", "odd_but_right"])
def test_what_is_right_has_figures_whatever_the_others_do(outcome, name):
    rows = rows_of(outcome, name)
    assert [(row.phase, row.metric) for row in rows] == [
        ("prefill", "seconds"),
        ("decode", "seconds_per_token"),
        ("start", "seconds"),
        ("load", "seconds"),
        ("memory", "peak_rss"),
        ("memory", "anonymous"),
    ]
    for row in rows:
        if row.detail == "too short to be timed by a difference":  # one call a sample, on a busy machine
            assert (row.phase, row.verdict, row.samples) == ("decode", "skipped", [])
            continue
        assert row.verdict == "verified", row
        assert len(row.samples) == 6
        assert row.low <= row.median <= row.high
        assert (row.low, row.high) == (min(row.samples), max(row.samples))
        assert (row.tokens_per_second is not None) == (row.phase in ("prefill", "decode"))


def test_a_target_that_nobody_offers_is_refused_with_what_each_says(tmp_path):
    settings = Settings(
        Target("cuda", "float32"),
        TRIALS,
        seed=3,
        resources=Resources(seconds=20.0, threads=1),
    )
    found = [find("numpy"), find(str(module(tmp_path, "broken", 'raise RuntimeError("old driver")')))]
    said = r"no implementation can be timed .*numpy: .*cpu-float32, cpu-float64.*broken: .*old driver"
    with pytest.raises(CannotJudge, match=said):
        session.measure(found, catalogue.locate("micro"), settings)


def test_how_decode_was_timed_is_said(outcome):
    said = {name: rows_of(outcome, name)[1].detail for name in ("numpy", "odd_but_right")}
    assert said == {"numpy": "generate(1 + n) less generate(1)", "odd_but_right": "forward with past"}


EXPECTED = {name: (verdict, detail) for name, (_, verdict, detail) in BAD.items()} | {
    "erf_gelu": ("wrong output", "before the timing: logits"),
    "wrong_black_box": ("wrong output", "before the timing: logits"),
    "wrong_generate": ("wrong output", "new token 15 after 16"),
    "no_framework": ("skipped", "no_such_framework"),
    "elsewhere": ("skipped", "cpu-float32 is not offered (offered: cuda-float32)"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_wrong_crashes_or_hangs_has_no_figure(outcome, name):
    verdict, detail = EXPECTED[name]
    rows = rows_of(outcome, name)
    assert len(rows) >= len(TRIALS)
    bad = [row for row in rows if row.verdict != "verified"]
    assert {row.verdict for row in bad} == {verdict}, [row.detail for row in bad]
    assert any(detail in row.detail for row in bad), {row.detail for row in bad}
    for row in bad:
        assert row.samples == []
        assert {row.median, row.low, row.high, row.tokens_per_second, row.roofline, row.speedup} == {
            None
        }
    if name != "raises":  # an exception costs the workload it came in; anything worse costs all
        assert bad == rows
    else:
        assert bad[0].phase == "prefill"


def test_a_crash_or_wrong_output_exits_1_and_no_figure_at_all_exits_2(outcome):
    assert session.exit_code(outcome.rows) == 1
    assert session.exit_code(rows_of(outcome, "numpy")) == 0
    assert session.exit_code(rows_of(outcome, "elsewhere")) == 2
    assert session.exit_code([]) == 2


def test_the_files_say_what_the_rows_say(outcome, tmp_path):
    tables.write(tmp_path, outcome)
    frame = tables.read(tmp_path)
    assert list(frame.columns) == list(TimedRow._fields)
    assert len(frame) == len(outcome.rows)
    assert frame.attrs["threads"] == 1
    assert frame.attrs["interval_confidence"] == 1 - 2 / 2**6
    assert frame.attrs["bandwidth_bytes_per_s"] > 0
    assert frame.attrs["gemm_flop_per_s"] > 0
    text = (tmp_path / "bench.md").read_text()
    tabled = [line for line in text.splitlines() if line.startswith("| micro")]
    assert len(tabled) == len(outcome.rows)
    assert {line.count(" | ") for line in tabled} == {7}
    assert "WRONG OUTPUT" in text
    with pytest.raises(CannotJudge, match="no such file"):
        tables.read(tmp_path / "nowhere")
    (tmp_path / BENCH).write_text('{"schema": 99}')
    with pytest.raises(CannotJudge, match="not results of schema 2"):
        tables.read(tmp_path)


SCHEMA = json.loads((ROOT / "docs" / "bench.schema.json").read_text(encoding="utf-8"))


def test_a_real_bench_json_is_valid_by_the_published_schema(outcome, tmp_path):
    tables.write(tmp_path, outcome)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / BENCH).read_text()))


def test_the_schema_has_the_columns_and_refuses_others(outcome, tmp_path):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    described = SCHEMA["$defs"]["row"]
    assert tuple(described["properties"]) == tuple(described["required"]) == TimedRow._fields
    assert SCHEMA["properties"]["schema"]["const"] == runs.BENCH_SCHEMA
    assert SCHEMA["$id"] == f"urn:gpt2-parity:bench:{runs.BENCH_SCHEMA}"
    environment = SCHEMA["properties"]["environment"]
    assert set(outcome.environment) | {"command"} == set(environment["properties"])
    tables.write(tmp_path, outcome)
    good = json.loads((tmp_path / BENCH).read_text())
    for change in (
        {"verdict": "pass"},
        {"verdict": "wrong output"},  # with figures
        {"median": None},
        {"samples": []},
        {"phase": "train"},
        {"unit": "ms"},
        {"speedup": 0},
        {"n": "24"},
        {"extra": 1},
    ):
        bad = good | {"rows": [good["rows"][0] | change]}
        assert not validator.is_valid(bad), change
    assert not validator.is_valid(good | {"schema": 1})
    del good["environment"]["truth"]
    assert not validator.is_valid(good)


def test_the_command_writes_both_files_and_shows_the_table(tmp_path, prepared):
    out = tmp_path / "out"
    chosen = ("--impl", "numpy", "--model", "micro", "--quick", "--threads", 1)
    done = parity("bench", *chosen, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(tables.FILES)
    assert "decode after 16" in done.stdout
    document = json.loads((out / BENCH).read_text())
    assert document["schema"] == 2
    assert done.stdout.count(": prefill 128, round 1 of 6\n") == 1  # a line, though no terminal
    assert "numpy: loading and verifying\n" in done.stdout
    assert document["environment"]["command"].startswith("parity bench --impl numpy")
    assert {row["verdict"] for row in document["rows"]} <= {"verified", "skipped"}
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--impl", "numpy", "--samples", 5], "needs at least 6"),
        (["--impl", "numpy", "--against", "torch"], "--against torch: not measured"),
        (["--impl", "numpy", "--target", "cpu-int8"], "dtype is not one of"),
        (["--impl", "nonesuch"], "implementation 'nonesuch'"),
        (["--model", "nonesuch"], "model 'nonesuch'"),
    ],
)
def test_what_cannot_be_measured_exits_2_with_one_clear_line(arguments, message, prepared):
    done = here("bench", "--model", "micro", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_does_not_fit_is_refused():
    shape = synthetic.OFFICIAL["774M"]
    assert session.too_big(shape, FLOAT32, 10**6).endswith("are free")
    assert session.too_big(SMALL, FLOAT32, 1) == ""


def test_children_run_as_users_run_them(monkeypatch):
    for name in setup.TUNED:
        monkeypatch.setenv(name, "x")
    found = setup.environment(3)
    assert not set(setup.TUNED) & set(found)
    assert {found[name] for name in THREADS} == {"3"}
    assert setup.environment(3, bare=True) == found | setup.SLEEP_AT_ONCE
    assert not set(setup.SLEEP_AT_ONCE) & set(found)


def test_threads_of_the_bare_machine_leave_the_cores_to_who_is_timed_next(tmp_path):
    """There is no rest after the machine's rates: 0.11 s of spinning were seen without the setting."""
    one = object.__new__(setup.Setup)
    one.folder, one.settings = tmp_path, Settings(FLOAT32, resources=Resources(threads=2))
    job = {"name": "machine", "implementation": None, "target": FLOAT32, "hparams": SMALL._asdict()}
    machine = one.start(job)
    try:
        machine.receive()
        given = Path(f"/proc/{machine.process.pid}/environ").read_bytes().split(b"\0")
        assert b"OPENBLAS_THREAD_TIMEOUT=20" in given
    finally:
        machine.kill()


def test_trials_are_clipped_to_the_context():
    for n_ctx in (1, 2, 40, 1024):
        found = workloads(SMALL._replace(n_ctx=n_ctx))
        assert {workload.phase for workload in found} >= {"prefill", "start"}
        assert max(workload.longest for workload in found) <= n_ctx
    standard = workloads(synthetic.OFFICIAL["124M"])
    assert [t.n for t in standard if t.phase == "prefill"] == [128, 512, 1023]
    assert [t.n_past for t in standard if t.phase == "decode"] == [16, 900]


# -- arithmetic


def test_the_interval_of_a_median_has_the_confidence_that_it_says():
    assert interval.median([6, 5, 4, 3, 2, 1]) == (3.5, 1, 6, 1 - 2 / 64)
    assert interval.median([7.0])[:3] == (7, 7, 7)
    assert interval.median([7.0]).confidence == 0
    rng = np.random.default_rng(0)
    for n in (6, 10, 15, 40):
        draws = rng.exponential(size=(4000, n))  # skewed: no distribution is assumed
        found = [interval.median(row) for row in draws]
        hit = np.mean([f.low <= np.log(2) <= f.high for f in found])
        assert found[0].confidence >= 0.95
        assert abs(hit - found[0].confidence) < 0.012
    with pytest.raises(ValueError, match="no samples"):
        interval.median([])


def test_flops_are_those_that_the_oracle_does():
    """Counted in every product of a real forward pass, whose attention does not skip the future."""
    counted = 0

    def matmul(x, w):
        nonlocal counted
        y = np.matmul(x, w)
        counted += 2 * y.size * x.shape[-1]
        return y

    n, batch = 20, 3
    counting = Arithmetic(matmul=matmul, affine=lambda x, w, b: matmul(x, w) + b)
    tokens = np.zeros((batch, n), np.int32)
    oracle.forward(synthetic.generate(SMALL), SMALL, tokens, None, counting)
    unseen = 4 * SMALL.n_embd * SMALL.n_layer * batch * (n * n - n * (n + 1) / 2)
    assert roofline.flops(SMALL, n, 0, batch) == counted - unseen


def test_decoding_costs_what_prefill_would_have_added():
    for n_past in (1, 7, 40):
        more = roofline.flops(SMALL, n_past + 1) - roofline.flops(SMALL, n_past)
        assert roofline.flops(SMALL, 1, n_past) == pytest.approx(more)


def test_bytes_are_those_of_the_weights_and_the_cache():
    """The reference figures of the 124M shape: 498 MB of weights, 69 MB of cache at 932 tokens."""
    hparams = synthetic.OFFICIAL["124M"]
    assert roofline.parameters(hparams) == 124_439_808
    moved = roofline.bytes_moved(hparams, 1, 931, 1, 4)
    logits = 4 * hparams.n_vocab
    assert moved - logits == 4 * (124_439_808 - 1024 * 768) + 932 * 12 * 2 * 768 * 4
    assert roofline.bytes_moved(hparams, 1, 931, 1, 2) * 2 == moved


def test_the_roofline_is_the_slower_of_the_two_limits():
    rates = Rates(bandwidth=1e9, gemm=1e12)
    assert roofline.seconds(SMALL, rates, 1, 0, 1, 4) == roofline.bytes_moved(SMALL, 1, 0, 1, 4) / 1e9
    slow = Rates(bandwidth=1e15, gemm=1e6)
    assert roofline.seconds(SMALL, slow, 9, 0, 2, 4) == roofline.flops(SMALL, 9, 0, 2) / 1e6
    assert roofline.seconds(SMALL, Rates(1e9, None), 9, 0, 2, 4) is None


def test_the_machines_own_rates_are_measured():
    found = roofline.rates("cpu", "float32", SMALL)
    assert found.bandwidth > 1e8
    assert found.gemm > 1e8
    assert roofline.rates("cpu", "bfloat16", SMALL).gemm is None  # NumPy has no bfloat16 product


def row(n=1, n_past=0, batch=1, phase="prefill", samples=(), model="a", verdict="verified"):
    median = interval.median(samples).median if samples else None
    return TimedRow("x", "cpu", "float32", model, phase, "seconds", n_past, n, batch, list(samples),
                    median, None, None, "seconds", None, None, "x", None, None, None, verdict,
                    "")  # fmt: skip


def test_ratios_are_taken_within_rounds():
    """A machine that is ten times slower in one round changes no ratio."""
    slow = np.array([1, 1, 10, 1, 1, 1])
    found = rows.filled(row(), list(2.0 * slow), list(3.0 * slow))
    assert (found.speedup, found.speedup_low, found.speedup_high) == (1.5, 1.5, 1.5)
    assert rows.filled(row(), [1.0] * 6, [1.0] * 5).speedup is None


def test_each_turn_stands_between_two_measurements_of_the_machine(monkeypatch):
    """Shared memory changes within seconds: a share is of what it gave around that very turn."""
    monkeypatch.setattr(session, "REST", 0)
    clock = itertools.count(1)
    machine = SimpleNamespace(request=lambda _: {"bandwidth": float(next(clock)), "gemm": None})
    workload = Workload("decode", 8, 16)
    a, b, lost, out = (
        SimpleNamespace(
            found=Found(name, name), time=lambda _, t=t: t, warm=lambda _: None, rates=defaultdict(list),
            is_out=lambda _, name=name: name == "out",
        )
        for name, t in (("a", 1.0), ("b", 2.0), ("lost", None), ("out", 3.0))
    )  # fmt: skip
    one = object.__new__(session.Session)
    one.participants, one.settings, one.rates = (
        [a, b, lost, out],
        Settings(FLOAT32, (workload,), samples=2),
        [],
    )
    one.report, one.done, one.all = lambda *_: None, 0, 12
    one.pace, one.journal, one.over, one.round_seconds = Pace(None), None, {}, {}
    one.setup = SimpleNamespace(rounds={})
    one._time(workload, machine)
    assert [rate.bandwidth for rate in a.rates[workload]] == [1.5, 7.5]  # a, b, lost; then b, lost, a
    assert [rate.bandwidth for rate in b.rates[workload]] == [2.5, 5.5]
    assert not lost.rates[workload]
    assert not out.rates[workload]  # it is not waited for, either
    assert len(one.rates) == 8


def test_a_share_of_the_roofline_is_of_the_rates_around_each_sample():
    workload = Workload("decode", 8, 16)
    rates = [Rates(1e9, None), Rates(2e9, None).between(Rates(6e9, 1e12))]
    least = [roofline.seconds(SMALL, rate, 1, 16 + 4, 1, 4) for rate in rates]
    parts = {"settings": Settings(FLOAT32, (workload,)), "expected": SimpleNamespace(hparams=SMALL)}
    one = SimpleNamespace(setup=SimpleNamespace(**parts), rates={workload: rates})
    taken = row(8, phase="decode", n_past=16, samples=[seconds / 0.8 for seconds in least])
    assert rows.roofline_share(one, workload, taken) == pytest.approx(0.8)


# -- asv


def test_the_benchmarks_import_no_framework_where_asv_looks_for_them():
    """Read, not imported: asv runs where the project may be older than its benchmarks."""
    import ast

    tree = ast.parse((ROOT / "benchmarks" / "speed.py").read_text())
    tops = {name for node in tree.body for name in imported(node)}
    assert not tops & {"numpy", "torch", "jax", "gpt2_parity"}, "a missing framework kills the suite"


def asv_module():
    """benchmarks/speed.py, which is no part of any package."""
    path = ROOT / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", path)
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    return speed


def asv_figures(verdict):
    """asv's figures, set up on rows of one verdict."""
    speed = asv_module()
    samples = [2.0, 1.0, 4.0] if verdict == "verified" else []
    told = row(n=8, samples=samples, verdict=verdict)._replace(implementation="numpy")
    told = told._replace(tokens_per_second=8 / 2.0 if samples else None)
    figures = speed.Speed()
    figures.setup({"micro": {"rows": [told._asdict()], "environment": {}}}, "numpy", "micro")
    return figures


def test_asv_gets_the_figures_of_the_rows():
    figures = asv_figures("verified")
    assert figures.track_prefill_seconds(None, None, None) == {"samples": [2.0, 1.0, 4.0], "number": 1}
    shown = figures.track_prefill_tokens_per_second(None, None, None)
    assert shown == {"samples": [2.0, 8.0], "number": 1}
    assert figures.track_prefill_tokens_per_second.unit == "tokens/s"


def test_asv_is_told_what_the_machine_could_do_meanwhile():
    speed, machine = asv_module(), asv_module().Machine()
    rates = {"bandwidth_bytes_per_s": 5e10, "gemm_flop_per_s": 4e11}
    machine.setup({"micro": {"rows": [], "environment": rates}}, "micro")
    assert machine.track_read_seconds_per_gigabyte(None, None) == 0.02
    assert machine.track_product_seconds_per_teraflop(None, None) == 2.5
    machine.rates["gemm_flop_per_s"] = None
    assert math.isnan(machine.track_product_seconds_per_teraflop(None, None))
    with pytest.raises(NotImplementedError):
        machine.setup({"micro": {"rows": [], "environment": {}}}, "micro")
    assert speed.Machine.setup_cache is speed.Speed.setup_cache, "or the whole run would be made twice"


def test_asv_gets_no_figure_of_what_is_not_verified():
    with pytest.raises(RuntimeError, match="wrong output"):
        asv_figures("wrong output").track_prefill_seconds(None, None, None)
    with pytest.raises(NotImplementedError):
        asv_figures("skipped")


def test_asv_is_told_that_one_figure_could_not_be_measured():
    figures = asv_figures("verified")
    figures.rows[0] |= {"verdict": "skipped", "samples": []}
    for benchmark in (figures.track_prefill_seconds, figures.track_prefill_tokens_per_second):
        assert math.isnan(benchmark(None, None, None))


@pytest.mark.parametrize(("tick", "calls"), [(0.04, 3), (0.2, 1)], ids=["short", "long"])
def test_what_is_short_is_called_again_and_every_result_is_held(monkeypatch, tick, calls):
    """The median counts; a call of 0.1 s or more stands for itself."""
    clock, seconds, held = itertools.count(0, tick), iter([0.3, 0.1, 0.2]), []
    monkeypatch.setattr(participant.time, "perf_counter", lambda: next(clock))
    one = participant.Participant(find("numpy"), None)
    monkeypatch.setattr(one, "_call", lambda _: {"seconds": next(seconds)})
    monkeypatch.setattr(one, "check", lambda _, reply: held.append(reply["seconds"]))
    workload = Workload("prefill", 4)
    assert one.time(workload) == {3: 0.2, 1: 0.3}[calls]
    assert held == [0.3, 0.1, 0.2][:calls]
    assert one.samples[workload] == [{3: 0.2, 1: 0.3}[calls]]


def test_a_time_whose_interval_reaches_nothing_is_no_figure(monkeypatch):
    """The median alone is above zero: by chance, where a difference is as small as its noise.

    Nor is a time in which the machine could not have read the weights.
    """
    workload = Workload("decode", 1, 16)

    def verdict(samples, share=None):
        settings = SimpleNamespace(samples=6, target=FLOAT32)
        setup = SimpleNamespace(settings=settings, model=SimpleNamespace(name="m"), rounds={})
        one = SimpleNamespace(setup=setup, samples={workload: samples}, running=True, failed={},
                              how={}, decoded={}, verdict="verified", detail="",
                              found=find("numpy"))  # fmt: skip
        monkeypatch.setattr(rows, "roofline_share", lambda *_: share)
        row = rows.time_row(one, one, workload)
        return row.verdict, row.samples, row.median

    assert verdict([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == ("verified", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3.5)
    assert verdict([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == ("skipped", [], None)
    assert verdict([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.08)[0] == "verified"
    assert verdict([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 5.85) == ("skipped", [], None)


def test_the_prompt_is_subtracted_as_it_is_once_memory_is_warm(monkeypatch):
    """The first call after a rest is slow: timed, it would make decoding look quicker than it is."""
    from gpt2_parity.bench import worker

    now, calls = [0.0], []

    def generate(model, tokens, n_new):
        calls.append(n_new)
        now[0] += (1.5 if len(calls) == 1 else 1.0) + 0.1 * (n_new - 1)
        return np.zeros((1, n_new), np.int32)

    one = object.__new__(worker.TimedModel)
    one.impl, one.model = SimpleNamespace(generate=generate), None
    one.tokens = lambda n_past, batch: np.zeros((batch, n_past), np.int32)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    assert one.decode(16, 10)["seconds"] == pytest.approx(0.1)
    assert calls == [1, 1, 11]


def imported(node) -> set[str]:
    names = [alias.name for alias in getattr(node, "names", ())]
    return {name.partition(".")[0] for name in [*names, getattr(node, "module", None) or ""]}


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ((1.4, 1.2, 1.6), "1.40x (1.20 to 1.60)"),
        ((0.7, 0.6, 0.9), "0.70x (0.60 to 0.90)"),
        ((1.1, 0.9, 1.3), "cannot tell (0.90 to 1.30)"),
        ((1.1, 1.0, 1.3), "cannot tell (1.00 to 1.30)"),
        ((0.9, 0.8, 1.0), "cannot tell (0.80 to 1.00)"),
    ],
)
def test_a_ratio_whose_interval_holds_1_is_no_ratio(interval, shown):
    speedup, low, high = interval
    timed = row()._replace(speedup=speedup, speedup_low=low, speedup_high=high)
    assert tables.speed_against(timed) == shown
    timed = rows.filled(timed, [1.0, 1.1] * 3, [1.0, 1.0] * 3)._replace(implementation="mine")
    assert tables.cells(timed)[4].startswith("cannot tell")
