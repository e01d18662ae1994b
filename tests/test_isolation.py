"""Misbehaving implementations and killed runs: nothing is lost, and no other implementation suffers."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import gpt2_parity
from commands import command, module, parity
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.implementation.discovery import find
from gpt2_parity.report import results
from gpt2_parity.run import examination, supervisor, worker

# what it does -> (code added to the NumPy specimen, what its verdict must say)
MISDEEDS = {
    "segfault": (
        "import os\ndef forward(*_):\n    print('last will', flush=True); os.kill(os.getpid(), 11)",
        "was killed by SIGSEGV; last output: last will; at ",
    ),
    "aborts": ("def forward(*_, **__):\n    import os; os.abort()", "was killed by SIGABRT"),
    "exits": ("def forward(*_, **__):\n    raise SystemExit(0)", "SystemExit"),
    "exits_hard": (
        "def forward(*_, **__):\n    import os; os._exit(0)",
        "ended without a report on this target",
    ),
    "exits_with_a_code": ("def forward(*_, **__):\n    import os; os._exit(7)", "exited with code 7"),
    "exits_at_import": ("import sys; sys.exit(3)", "SystemExit"),
    "import_fails": ("import no_such_framework", "No module named 'no_such_framework'"),
    "raises": ("def load(*_, **__):\n    raise RuntimeError('out of luck')", "out of luck"),
    "lacks_load": ("del load", "it lacks load(params, hparams, *, device, dtype)"),
    "no_targets": ("def targets():\n    return []", "targets() is empty"),
    "hangs": ("def forward(*_, **__):\n    import time; time.sleep(600)", "took longer than 6 s"),
    "hangs_at_import": ("import time; time.sleep(600)", "the start took longer than 6 s"),
    "devours": (
        "HOARD = []\ndef forward(*_, **__):\n    while True: HOARD.append(np.ones(2**24))",
        "GiB of memory, allowed 1 GiB",
    ),
    "allocates_10_gb": (
        "def forward(*_, **__):\n    np.ones(10 * 2**27)\n    import time; time.sleep(600)",
        "GiB of memory, allowed 1 GiB",
    ),
    "floods": (
        "def forward(*_, **__):\n    while True: print('x' * 10000)",
        "wrote more than 64 MiB of output; last output: xxx",
    ),
    "forges_its_journal": (
        "import sys, json\npath = json.load(open(sys.argv[1]))['journal']\n"
        "open(path, 'a').write('{\"event\": 3}\\n')",
        "its journal is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISDEEDS)
def test_a_misdeed_is_that_implementations_verdict_and_the_others_are_kept(name, tmp_path, prepared):
    code, message = MISDEEDS[name]
    path = module(tmp_path, name, code)
    options = {"targets": "cpu-float32", "timeout": 6 if "hangs" in name else 120, "memory": 1}
    verdict = gpt2_parity.verify([path, "numpy"], **options, only=["logits", "kv_cache"])
    assert verdict.exit_code == 1
    frame = verdict.frame()
    assert set(frame[frame.implementation == "numpy"].verdict) == {"pass"}
    dead = frame[frame.implementation == name]
    assert "pass" not in set(dead.verdict)
    assert dead.detail.str.contains(message, regex=False).any(), dead.detail.tolist()


def gated(path, *checks, **options):
    """The rows that those checks of the gate give, as a frame."""
    return gpt2_parity.gate(path, **{"targets": "cpu-float32", **options}, only=checks).frame()


def test_jax_is_told_in_a_worker_to_leave_memory_to_others(tmp_path, prepared, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    code = """
    import os
    def load(*_, **__):
        raise RuntimeError(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "takes it all"))
    """
    assert gated(module(tmp_path, "asks", code)).detail.item().endswith(": false")


def living(flag: str) -> list[psutil.Process]:
    """Processes that sleep for as long as no honest one would: 98765 s."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if flag in process.cmdline():
                found.append(process)
    return found


LEFT_BEHIND = {
    "a_child": "subprocess.Popen(['sleep', '98765.{n}'])",
    "a_daemon_in_its_own_session": "subprocess.Popen(['sleep', '98765.{n}'], start_new_session=True)",
    "a_fork_of_a_fork": "subprocess.call(['setsid', '-f', 'sleep', '98765.{n}'])",
}


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_a_process_left_behind_is_found_named_and_ended(name, tmp_path, prepared):
    number = time.monotonic_ns()
    code = f"import subprocess\n{LEFT_BEHIND[name].format(n=number)}"
    frame = gated(module(tmp_path, "litters", code), "logits")
    failed = frame[frame.verdict == "fail"]
    assert failed.check.tolist() == ["process"]
    assert "left processes behind: sleep" in failed.detail.iloc[0]
    assert not living(f"98765.{number}")


def test_a_fork_that_returns_from_forward_does_not_speak_for_its_parent(tmp_path, prepared):
    code = """
    import os
    real, forked = forward, []
    def forward(*args, **kw):
        if not forked:
            forked.append(os.fork())
        return real(*args, **kw)
    """
    frame = gated(module(tmp_path, "forks", code), "logits", "kv_cache", "bad_tokens")
    assert set(frame.verdict) == {"pass"}, frame.detail  # the child ends at its first word


def test_a_crash_when_all_is_measured_is_still_a_failure(tmp_path, prepared):
    code = "import atexit, os\natexit.register(lambda: os.kill(os.getpid(), 11))"
    frame = gated(module(tmp_path, "dies_late", code), "logits", targets=None)
    failed = frame[frame.verdict == "fail"]
    each = [["process", "float32"], ["process", "float64"]]  # each target has its own process
    assert failed[["check", "dtype"]].to_numpy().tolist() == each
    assert failed.detail.str.contains("SIGSEGV").all()


def test_a_crash_on_one_target_spares_the_next(tmp_path, prepared):
    code = """
    real = forward
    def forward(model, *args, **kw):
        if model.dtype == "float32":
            import os; os.kill(os.getpid(), 11)
        return real(model, *args, **kw)
    """
    frame = gated(module(tmp_path, "half", code), "logits", "bad_tokens", targets=None)
    by_dtype = frame.groupby("dtype").verdict.agg(set).to_dict()
    assert by_dtype == {"float32": {"fail"}, "float64": {"pass"}}


def test_where_nothing_works_any_more_the_cause_is_told_and_the_other_target_goes_on(tmp_path, prepared):
    """As after an assertion on a CUDA device: everything raises that is asked later in that process."""
    code = (
        "whole, honest = generate, forward\nBROKEN = []\n\n\n"
        "def generate(*given):\n    BROKEN.append(1)\n    return whole(*given)\n\n\n"
        "def forward(model, *given, **named):\n    if BROKEN and model.dtype == 'float32':\n"
        "        raise RuntimeError('device-side assert')\n    return honest(model, *given, **named)\n"
    )
    checks = ["logits", "local", "weights", "greedy", "sizes"]
    verdict = gpt2_parity.gate(module(tmp_path, "dying", code), only=checks)
    assert verdict.exit_code == 1
    words = "It has raised on every call since the check greedy: device-side assert."
    assert words in verdict.explain()
    frame = verdict.frame()
    narrow, wide = (frame[frame.dtype == dtype] for dtype in ("float32", "float64"))
    assert set(wide.verdict) == {"pass"}
    assert set(narrow[narrow.check.isin(["logits", "local", "weights"])].verdict) == {"pass"}
    assert set(narrow[narrow.check == "sizes"].blame) == {"process"}
    assert set(narrow[(narrow.check == "greedy") & (narrow.verdict == "fail")].blame) == {"generate"}


def test_a_crash_in_one_check_keeps_what_came_before(tmp_path, prepared):
    code = """
    def generate(*_):
        import os; os.abort()
    """
    frame = gated(module(tmp_path, "late", code), "logits", "local", "greedy", "sizes")
    by_check = frame.groupby("check").verdict.agg(set).to_dict()
    assert by_check["logits"] == by_check["local"] == {"pass"}
    assert by_check["greedy"] == {"pass", "fail"}
    assert by_check["sizes"] == by_check["process"] == {"fail"}
    assert set(frame[frame.check == "sizes"].blame) == {"process"}


def test_a_crash_within_a_check_keeps_what_that_check_had_measured(tmp_path, prepared):
    code = """
    whole = forward
    def forward(model, tokens, past=None, tap=None):
        if past is not None and tap is not None:
            import os; os.abort()
        return whole(model, tokens, past, tap)
    """
    frame = gated(module(tmp_path, "decodes", code), "local")
    of_prefill = frame[(frame.check == "local") & (frame.case == "seed")].metric == "rounding_units"
    verdicts = frame.loc[of_prefill.index].verdict
    assert set(verdicts[of_prefill]) == {"pass"}
    assert set(verdicts[~of_prefill]) == {"fail"}


def test_what_is_printed_and_exiting_in_one_check_does_no_harm_to_the_others(tmp_path, prepared):
    code = """
    print('{"event": "end"}')
    def generate(*_):
        import sys; sys.exit(0)
    """
    frame = gated(module(tmp_path, "chatty", code), "logits", "greedy", "sizes", "bad_tokens")
    assert set(frame[frame.check != "greedy"].verdict) == {"pass"}
    failed = frame[frame.verdict == "fail"]
    assert failed.detail.str.contains("SystemExit").all()


def test_of_five_one_crashes_and_one_hangs_and_three_have_full_verdicts(tmp_path, prepared):
    paths = [module(tmp_path, name, "") for name in ("first", "third", "fifth")]
    paths.insert(1, module(tmp_path, "second", MISDEEDS["segfault"][0]))
    paths.insert(3, module(tmp_path, "fourth", MISDEEDS["hangs"][0]))
    checks = ("logits", "activations", "local", "weights", "kv_cache", "bad_tokens")
    rows = gpt2_parity.verify(paths, targets="cpu-float32", timeout=6, only=checks).rows
    by_name = {path.stem: [row for row in rows if row.implementation == path.stem] for path in paths}
    assert [exit_code(found) for found in by_name.values()] == [0, 1, 0, 1, 0]
    assert len(by_name["first"]) == len(by_name["third"]) == len(by_name["fifth"]) > 300


def test_threads_are_kept_to(tmp_path, prepared):
    code = """
    import os
    def targets():
        assert len(os.sched_getaffinity(0)) == 1 and os.environ["OMP_NUM_THREADS"] == "1"
        return [("cpu", "float32")]
    """
    path = module(tmp_path, "threads", code)
    assert set(gated(path, "logits", threads=1).verdict) == {"pass"}
    if (os.cpu_count() or 1) > 1:  # and the test can fail
        assert set(gated(path, "logits", threads=2).verdict) == {"fail"}


# -- a run that is killed

SLOW = """
from pathlib import Path
calls = Path(__file__).with_suffix(".calls")
real = forward
def forward(*args, **kw):
    with calls.open("a") as file:
        file.write(".")
    while Path(__file__).with_suffix(".wait").exists() and len(calls.read_text()) > 40:
        import time; time.sleep(0.05)
    return real(*args, **kw)
"""


@pytest.fixture
def killed(tmp_path, prepared):
    """A run of two, killed with kill -9 while the second was in the middle of its checks."""
    first = module(tmp_path, "first", "open(__file__ + '.imported', 'a').write('.')")
    slow, out = module(tmp_path, "slow", SLOW), tmp_path / "out"
    slow.with_suffix(".wait").touch()
    chosen = ("--impl", first, "--impl", slow, "--target", "cpu-float32", "--seed", 3)
    process = subprocess.Popen(command("verify", *chosen, "--out", out), stdout=subprocess.DEVNULL)
    calls = slow.with_suffix(".calls")
    deadline = time.monotonic() + 300
    while not (calls.exists() and len(calls.read_text()) > 40):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while len(workers := psutil.Process(process.pid).children()) > 1:  # the first one is still at work
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers[0].wait(timeout=60)  # it ends with its parent
    slow.with_suffix(".wait").unlink()
    return out


def test_a_killed_run_is_resumed_and_nothing_is_measured_twice(killed, tmp_path):
    assert not (killed / "results.json").exists()
    done = parity("resume", killed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "first.py.imported").read_text() == "."
    resumed = (tmp_path / "slow.calls").read_text()
    rows = results.load(killed).rows
    assert sorted(path.name for path in killed.iterdir()) == sorted(results.FILES)
    (tmp_path / "slow.calls").unlink()
    both = [tmp_path / "first.py", tmp_path / "slow.py"]
    straight = gpt2_parity.verify(both, targets="cpu-float32", seed=3).rows
    assert [row[:8] for row in rows] == [row[:8] for row in straight]
    assert {row.verdict for row in rows} == {"pass"}
    whole = (tmp_path / "slow.calls").read_text()
    assert len(resumed) < len(whole) + 40  # the forty before the kill were not all made again


def test_an_implementation_changed_since_is_not_resumed(killed, tmp_path):
    with (tmp_path / "slow.py").open("a") as file:
        file.write("# changed\n")
    done = parity("resume", killed)
    assert done.returncode == 2
    assert "sources was" in done.stderr


def test_where_nothing_was_killed_there_is_nothing_to_resume(tmp_path):
    done = parity("resume", tmp_path)
    assert done.returncode == 2
    assert "no run to resume there" in done.stderr


def test_a_journal_cut_anywhere_and_gone_on_with_gives_the_same_rows(tmp_path, prepared):
    """In one process: the journal of a whole run, cut at a byte, is replayed and finished."""
    records = [record for record in prepared.records if record.name == "seed"]
    small = prepared._replace(records=records, fresh=[])
    impl, target = find("numpy").load(), Target("cpu", "float32")
    whole = tmp_path / "whole.jsonl"

    def go_on(path: Path, state) -> None:
        with path.open("a") as file:

            def journal(event, **data):
                file.write(json.dumps({"event": event, **data}) + "\n")

            if state.offered is None:
                journal("hello", targets=[target], versions={})
            if target in state.ended:
                return
            done = state.targets[target].checked if target in state.targets else []
            journal("begin", target=target)
            worker.measure(lambda: small.load(impl, target, str), target, journal, done)
            journal("end", target=target)

    go_on(whole, small.state("it", "micro"))
    straight = small.state("it", "micro")
    examination.replay(whole, straight)
    assert len(straight.rows) > 100
    data = whole.read_bytes()
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
        path = tmp_path / f"cut_at_{share}.jsonl"
        path.write_bytes(data[: int(share * len(data))])
        cut = small.state("it", "micro")
        examination.replay(path, cut)
        go_on(path, cut)
        resumed = small.state("it", "micro")
        examination.replay(path, resumed)
        assert resumed.rows == straight.rows, share


@pytest.mark.parametrize("line", ["nonsense", '{"event": "nonesuch"}', '{"event": "plan"}', "[]", "3"])
def test_a_damaged_journal_is_named_and_not_gone_on_with(line, tmp_path, prepared):
    path = tmp_path / "0-it.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(CannotJudge, match=r"0-it\.jsonl:1: damaged"):
        examination.replay(path, prepared.state("it", "micro"))


def test_the_last_output_is_the_last_line_before_python_reports_the_crash(tmp_path):
    output = tmp_path / "output.txt"
    output.write_text(
        'a\nlast\nFatal Python error: Segmentation fault\n\nThread 0x1:\n  File "w.py", line 1 in g\n'
        'Current thread 0x2:\n  File "x.py", line 3 in f\n'
    )
    assert supervisor.last_output(output) == "; last output: last; at x.py:3 in f"
    output.write_text("")
    assert supervisor.last_output(output) == ""
