"""parity gate --watch, and what it shows of a change."""

import re
import signal
import subprocess
import threading
from pathlib import Path

from commands import SPECIMEN, interruptible, parity
from examine import examine
from faults import Plain, named, plant
from gpt2_parity.checks.registry import CHECKS, beginning_with
from gpt2_parity.commands.watch import POLL, content_of, wait_for_change
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.rows import Results
from gpt2_parity.report import changes
from gpt2_parity.run import worker

WRONG = SPECIMEN + "\n\nright = gelu\n\n\ndef gelu(*given):\n    return right(*given) * 1.01\n"


class Watched:
    """A running parity gate --watch, and what it printed."""

    def __init__(self, path: Path):
        self.process = subprocess.Popen(
            interruptible("gate", path, "--watch", "--target", "cpu-float32", "--seed", 3),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.timer = threading.Timer(200, self.process.kill)  # so that a test cannot wait for ever
        self.timer.start()

    def verdict(self) -> str:
        """What is printed up to the end of the next verdict."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("watching "):
                break
        return "".join(lines)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.stdout.close()
        self.timer.cancel()
        return self.process.wait(60)


def test_each_change_gives_a_verdict_that_begins_with_what_failed(tmp_path, prepared):
    path = tmp_path / "mine.py"
    path.write_text(WRONG)
    watched = Watched(path)
    first = watched.verdict()
    assert "mine-cpu-float32 local: FAIL" in first
    assert "changed:" not in first
    path.write_text(SPECIMEN)
    second = watched.verdict()
    outcomes = dict(re.findall(r"^mine-cpu-float32 (\w+): (PASS|FAIL)$", second, re.MULTILINE))
    assert "local" in outcomes
    assert set(outcomes.values()) == {"PASS"}
    assert re.search(r"changed: mine-cpu-float32 local: FAIL \d+/\d+ -> \d+%", second)
    path.write_text(WRONG)
    third = watched.verdict()
    assert re.search(r"changed: mine-cpu-float32 local: \d+% -> FAIL \d+/\d+", third)
    path.write_text("def broken(:")
    fourth = watched.verdict()
    assert "SyntaxError" in fourth
    assert "changed: mine-cpu-float32: gone" in fourth
    assert watched.end() == 1


def test_what_is_in_no_file_cannot_be_watched():
    done = parity("gate", "sys", "--watch")
    assert done.returncode == 2
    assert "sys: is not in a file that could be watched" in done.stderr


def test_a_file_that_is_touched_or_gone_has_not_changed(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("one")
    waiting = threading.Thread(target=wait_for_change, args=({path: content_of(path)},), daemon=True)
    waiting.start()
    path.touch()
    path.unlink()  # as an editor does before it writes the new one
    waiting.join(3 * POLL)
    assert waiting.is_alive()
    path.write_text("two")
    waiting.join(60)
    assert not waiting.is_alive()


def rows(prepared, module):
    return examine(module, prepared, only={"seed"})


def test_changes_are_told_by_check(prepared):
    right, wrong = rows(prepared, Plain()), rows(prepared, plant(named("erf_gelu")))
    wrong = [row._replace(implementation="plain") for row in wrong]
    assert changes.between(right, right) == []
    told = changes.between(right, wrong)
    assert any(re.fullmatch(r"plain-cpu-float32 local: \d+% -> FAIL \d+/\d+", line) for line in told)
    assert not any("bad_tokens" in line for line in told)
    assert len(changes.between(wrong, right)) == len(told)
    assert changes.between(right, []) == ["plain-cpu-float32: gone"]


def test_what_failed_comes_first_and_then_what_is_quick(prepared):
    wrong = rows(prepared, plant(named("erf_gelu")))
    seconds = {"greedy": 3.0, "local": 2.0, "taps": 0.1, "bad_tokens": 0.2, "logits": 1.0}
    order = changes.urgent(Results(wrong, {"seconds_by_check": {"it-cpu-float32": seconds}}))
    assert {"local", "logits"} <= changes.failing(wrong)
    assert not {"taps", "bad_tokens"} & changes.failing(wrong)
    assert order == ["logits", "local", "taps", "bad_tokens", "greedy"]
    found = list(beginning_with(order))
    assert found[:4] == ["logits", "local", "taps", "greedy"]
    assert found[-1] == "bad_tokens"  # it may leave the process unusable
    assert set(found) == CHECKS.keys()


def test_the_order_of_the_checks_does_not_change_the_verdict(prepared):
    small = prepared._replace(records=prepared.records[:1])
    target, found = Target("cpu", "float32"), []
    for first in ((), tuple(reversed(CHECKS))):
        state, order = small.state("plain", "micro"), []

        def send(event, state=state, order=order, **data):
            state.handle(event, data)
            order.extend([data["check"]] if event == "checking" else [])

        send("begin", target=target)
        worker.measure(lambda: small.load(Plain(), target, str), target, send, first=first)
        send("end", target=target)
        found.append((order, state.rows))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
