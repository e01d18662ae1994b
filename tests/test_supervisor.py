"""The supervised worker process that answers requests, tested with small workers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from gpt2_parity.files import locks
from gpt2_parity.run import supervisor
from gpt2_parity.run.supervisor import Lost, Refused, Resources, WorkerProcess

PLENTY = Resources(seconds=60.0)
HANDLER = """
import sys
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.run import child

class Handler:
    def double(self, number):
        print("what user code prints is not a reply")
        return {"result": 2 * number}

    def import_it(self):
        import no_such_module

    def judge_it(self):
        raise CannotJudge("no such file")

%s

def main(job_path, lifeline):
    job = child.begin(job_path, lifeline)
    child.serve(Handler)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path):
    """Start a worker whose handler has one more method, and wait until it is loaded."""
    started = []

    def run(method: str = "", resources: Resources = PLENTY) -> WorkerProcess:
        code = HANDLER % textwrap.indent(textwrap.dedent(method), "    ")
        (tmp_path / "stub_worker.py").write_text(code)
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        environment = supervisor.environment(resources.threads) | {"PYTHONPATH": paths}
        worker = WorkerProcess(
            "stub_worker", {}, tmp_path / "stub", resources, environment, replies=True
        )
        started.append(worker)
        assert worker.receive() == {}
        return worker

    yield run
    for worker in started:
        worker.kill()


def test_requests_are_answered_one_by_one_and_output_is_kept_apart(start):
    worker = start()
    assert [worker.request("double", number=n)["result"] for n in (1, 2, 3)] == [2, 4, 6]
    worker.kill()
    worker.kill()  # a second time does no harm
    assert worker.output.read_text().count("not a reply") == 3


def test_an_exception_ends_one_request_and_says_of_what_kind_it_is(start):
    worker = start()
    for op, kind, text in (
        ("import_it", "import", "No module named"),
        ("judge_it", "cannot judge", "no such file"),
        ("nonesuch", "", "nonesuch"),
    ):
        with pytest.raises(Refused, match=text) as error:
            worker.request(op)
        assert error.value.kind == kind
    assert worker.request("double", number=4) == {"result": 8}


@pytest.mark.parametrize(
    ("body", "resources", "reason"),
    [
        ("import os; print('bye', flush=True); os.abort()", {}, "killed by SIGABRT; last output: bye"),
        ("import os; os._exit(3)", {}, "exited with code 3"),
        ("raise SystemExit(0)", {}, "it ended too early"),
        ("import time; time.sleep(600)", {"seconds": 2.0}, "stopped: the request took longer than 2 s"),
        ("import time; x = bytearray(2**29); time.sleep(600)", {"gigabytes": 0.3}, "allowed 0.3 GiB"),
        ("while True: print('x' * 10_000)", {}, "wrote more than 64 MiB of output"),
        ("return [1]", {}, "its reply is not a JSON object"),
        ("import os, time; os.closerange(3, 99); time.sleep(600)", {}, "it closed its pipe"),
    ],
    ids=["crash", "exit", "leave", "hang", "memory", "flood", "no_object", "closed"],
)  # fmt: skip
def test_a_worker_that_misbehaves_is_lost_with_its_reason(body, resources, reason, start):
    worker = start(f"def misbehave(self):\n    {body}", Resources(**({"seconds": 60.0} | resources)))
    with pytest.raises(Lost, match=reason):
        worker.request("misbehave")
    assert not psutil.pid_exists(worker.process.pid)
    with pytest.raises((Lost, ValueError)):  # and nothing more can be requested
        worker.request("double", number=1)


def test_a_fork_that_returns_from_a_request_does_not_answer_for_its_parent(start):
    worker = start("def fork(self):\n    import os\n    return {'child': os.fork() == 0}")
    assert worker.request("fork") == {"child": False}
    assert worker.request("double", number=5) == {"result": 10}


def test_what_a_worker_started_ends_with_it(start):
    number = time.monotonic_ns()
    worker = start(
        "def litter(self):\n    import subprocess\n"
        f"    subprocess.Popen(['sleep', '98765.{number}'], start_new_session=True)\n    return {{}}"
    )
    worker.request("litter")
    assert supervisor.marked(worker.mark)
    worker.kill()
    deadline = time.monotonic() + 10
    while supervisor.marked(worker.mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not supervisor.marked(worker.mark)


ORPHAN = """
import sys, time
from pathlib import Path
from gpt2_parity.run import supervisor
folder = Path(sys.argv[1])
worker = supervisor.WorkerProcess(
    "stub_worker", {}, folder / "stub", supervisor.Resources(), supervisor.environment(None),
    replies=True,
)
worker.receive()
print(worker.process.pid, flush=True)
worker.request("hang")
"""


def test_a_worker_ends_with_its_supervisor_even_in_the_middle_of_a_request(tmp_path):
    method = textwrap.indent("def hang(self):\n    import time\n    time.sleep(600)", "    ")
    (tmp_path / "stub_worker.py").write_text(HANDLER % method)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    worker.wait(timeout=60)


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path):
    path: Path = tmp_path / "x.lock"
    with locks.lock(path) as first:
        with locks.lock(path) as second:
            assert (first, second) == (True, False)
        assert path.exists()
    assert not path.exists()
    with locks.lock(path) as again:
        assert again is True
