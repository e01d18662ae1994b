"""The same units on a dask cluster: a scheduler and workers as processes of this machine."""

import dataclasses
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml  # comes with dask
from distributed import Client, KilledWorker

import gpt2_parity
from commands import command, interruptible, module, parity
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.files import digest
from gpt2_parity.implementation.discovery import find
from gpt2_parity.model import synthetic
from gpt2_parity.run import code, content, dask_task, distributed, host, request, supervisor
from gpt2_parity.run.order import Files, Order
from gpt2_parity.run.supervisor import Resources

pytestmark = pytest.mark.xdist_group("distributed")  # one cluster, and one cache of what it was sent

HARNESS = Path(gpt2_parity.__file__).parent.parent
CLUSTER = HARNESS.parent / "docs" / "cluster"
SEED = 7


@dataclasses.dataclass
class Cluster:
    """A scheduler, and the processes of its workers. Runs on it put their files into folder/tmp."""

    address: str
    folder: Path
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen]

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        """One more dask worker, with one thread."""
        fixed = ("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", self.folder)
        process = dask("dask_worker", self.folder, self.address, *fixed, *options, **environment)
        self.workers.append(process)
        return process

    def living(self) -> list[subprocess.Popen]:
        return [worker for worker in self.workers if worker.poll() is None]

    def has(self, count: int) -> None:
        """Let there be so many workers, and wait until the scheduler knows of them."""
        for _ in range(count - len(self.living())):
            self.start()
        self.knows(len(self.living()))

    def knows(self, count: int) -> None:
        with Client(self.address, set_as_default=False) as client:
            deadline = time.monotonic() + 60
            while len(client.scheduler_info(n_workers=-1)["workers"]) != count:
                assert time.monotonic() < deadline, logs(self.folder)
                time.sleep(0.1)

    def stop(self, worker: subprocess.Popen) -> None:
        worker.terminate()
        worker.wait(60)
        self.knows(len(self.living()))

    def units(self) -> list[psutil.Process]:
        """The processes of units, which are children of dask workers."""
        every = [psutil.Process(worker.pid) for worker in self.living()]
        return [child for worker in every for child in worker.children()]


def dask(program: str, folder: Path, *options: str | Path, **environment: str) -> subprocess.Popen:
    """A program of dask, whose output goes to a file."""
    folder.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    given = {"PYTHONPATH": str(HARNESS), "TMPDIR": str(folder / "tmp"), **environment}
    with (folder / f"{program}-{time.monotonic_ns()}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{program}", *map(str, options)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | given,
        )


def logs(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("*.log")]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A scheduler without workers, whose process ends with the context."""
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
    scheduler = dask("dask_scheduler", folder, *options)
    try:
        while not file.is_file() or not file.read_text().strip():
            assert scheduler.poll() is None, logs(folder)
            time.sleep(0.05)
        made = Cluster(json.loads(file.read_text())["address"], folder, scheduler, [])
        yield made
        for worker in made.workers:
            worker.kill()
            worker.wait(60)
    finally:
        scheduler.kill()
        scheduler.wait(60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, home):
    with running(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """Whatever happens, no process and no file of a run stays behind."""
    yield
    if "cluster" in request.fixturenames:
        made = request.getfixturevalue("cluster")
        assert made.units() == []
        assert list((made.folder / "tmp").glob("parity-run-*")) == []


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A file with an implementation, to be sent by content."""
    return module(tmp_path_factory.mktemp("mine"), "mine", "")


@pytest.fixture(scope="module")
def local(mine, prepared):
    """The verdict of two implementations on this machine."""
    return gpt2_parity.verify(["numpy", mine], targets="cpu-float32", seed=SEED)


def machines(verdict):
    """The machine of each target, without versions: a process knows those imported by then."""
    return {
        name: {key: value for key, value in host.items() if key != "versions"}
        for name, host in verdict.environment["hosts"].items()
    }


def test_the_verdict_is_the_local_one_row_for_row(cluster, local, mine, monkeypatch):
    cluster.has(3)
    sent = []
    send_file = distributed.DaskExecutor.send_file

    def count(self, worker, sha256):
        sent.append(sha256)
        send_file(self, worker, sha256)

    monkeypatch.setattr(distributed.DaskExecutor, "send_file", count)
    updates = []
    options = {"targets": "cpu-float32", "seed": SEED, "scheduler": cluster.address}
    found = gpt2_parity.verify(["numpy", mine], **options, progress=updates.append)
    assert found.rows == local.rows
    assert found.passed
    assert len(sent) == len(set(sent)) > 5  # three dask workers of one machine share what they receive
    assert "lost_workers" not in found.environment
    assert found.environment["side_by_side"] == {"jobs": 3, "threads": 1}
    assert machines(found) == machines(local)
    assert [u.outcome for u in updates if u.step == "ends"] == ["PASS", "PASS"]
    assert {u.check for u in updates if u.check} == CHECKS.keys()


def test_a_run_goes_on_when_a_dask_worker_is_killed(cluster, local, mine):
    cluster.has(3)
    updates, killed = [], []

    def progress(update):
        updates.append(update)
        if update.step == "checks" and update.done == 3 and not killed:
            killed.append(cluster.units()[0].parent())
            killed[0].kill()

    some = ("logits", "activations", "local", "weights", "kv_cache", "batch", "causality")
    options = {"targets": "cpu-float32", "seed": SEED, "scheduler": cluster.address, "only": some}
    found = gpt2_parity.verify(["numpy", mine], **options, progress=progress)
    assert found.rows == [row for row in local.rows if row.check in some]
    [lost] = found.environment["lost_workers"]
    assert lost["unit"] in ("numpy-cpu-float32", "mine-cpu-float32")
    assert lost["worker"].startswith("tcp://127.0.0.1:")
    [again] = [update for update in updates if update.step == "again"]
    assert f"{again.implementation}-{again.target}" == lost["unit"]
    assert again.worker == f"{lost['worker']} on {lost['host']}"


def test_an_implementation_that_kills_two_dask_workers_fails_and_others_are_kept(
    cluster, local, tmp_path
):
    cluster.has(3)
    code = """
    import os
    real, calls = forward, []
    def forward(*args, **kw):
        calls.append(1)
        if len(calls) > 40:
            os.kill(os.getppid(), 9)
        return real(*args, **kw)
    """
    path, out = module(tmp_path, "kills", code), tmp_path / "out"
    options = ("--target", "cpu-float32", "--seed", SEED, "--scheduler", cluster.address, "--out", out)
    done = parity("verify", "--impl", path, "--impl", "numpy", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("was lost; it begins again") == 1
    found = gpt2_parity.read(out)
    numpy = [row for row in local.rows if row.implementation == "numpy"]
    assert [row for row in found.rows if row.implementation == "numpy"] == numpy
    [end] = [row for row in found.rows if row.check == "process"]
    assert (end.implementation, end.verdict) == ("kills", "fail")
    assert end.evidence["error"].startswith(
        "ended together with its dask worker, twice: tcp://127.0.0.1:"
    )
    assert [lost["unit"] for lost in found.environment["lost_workers"]] == ["kills-cpu-float32"] * 2
    assert len(cluster.living()) == 1


def test_a_scheduler_that_does_not_answer_is_named_within_seconds():
    started = time.monotonic()
    done = parity("verify", "--impl", "numpy", "--scheduler", "127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: scheduler 127.0.0.1:9: cannot be reached")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 20


def test_an_address_that_is_none_is_refused():
    with pytest.raises(CannotJudge, match="scheduler nonsense: cannot be reached"):
        gpt2_parity.verify("numpy", scheduler="nonsense")
    with pytest.raises(CannotJudge, match="isolated=False"):
        gpt2_parity.verify("numpy", scheduler="tcp://127.0.0.1:9", isolated=False)


def test_a_cluster_without_workers_is_refused(cluster):
    for worker in cluster.living():
        cluster.stop(worker)
    with pytest.raises(CannotJudge, match=f"scheduler {cluster.address}: has no workers"):
        gpt2_parity.verify("numpy", scheduler=cluster.address)


def test_a_dask_worker_with_other_code_is_refused(cluster, tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "shipped")
    package = tmp_path / "harness" / "gpt2_parity"
    shutil.copytree(HARNESS / "gpt2_parity", package, ignore=ignore)
    for name in ("impls", "golden", "docs"):
        (tmp_path / name).symlink_to(HARNESS.parent / name)
    with (package / "checks" / "logits.py").open("a") as file:
        file.write("# other\n")
    cluster.has(1)
    other = cluster.start(PYTHONPATH=str(package.parent))
    cluster.has(2)
    try:
        with pytest.raises(CannotJudge) as refused:
            gpt2_parity.verify("numpy", scheduler=cluster.address)
    finally:
        cluster.stop(other)
    sources = str(refused.value).split("with source ")
    assert len(sources) == 3, refused.value
    assert str(code.installed()) in str(refused.value)
    assert ", but this is gpt2_parity" in str(refused.value)  # noticed before anything was sent there


def test_a_process_that_crashes_or_forges_its_journal_fails_and_its_dask_worker_goes_on(
    cluster, tmp_path
):
    forges = """
    import sys, json
    with open(json.load(open(sys.argv[1]))["journal"], "a") as journal:
        journal.write('{"event": "forged"}\\n')
    """
    crashes = "import os\ndef forward(*_):\n    print('last will', flush=True); os.kill(os.getpid(), 11)"
    paths = [module(tmp_path, "forges", forges), module(tmp_path, "crashes", crashes)]
    cluster.has(2)
    before = cluster.living()
    found = gpt2_parity.verify(paths, targets="cpu-float32", scheduler=cluster.address)
    assert cluster.living() == before
    assert "lost_workers" not in found.environment
    errors = {row.implementation: row.evidence["error"] for row in found.rows if "error" in row.evidence}
    assert errors.keys() == {"forges", "crashes"}
    assert "its journal is damaged" in errors["forges"]
    assert "was killed by SIGSEGV; last output: last will; at " in errors["crashes"]
    assert not any(row.verdict == "pass" for row in found.rows)


def test_a_target_of_a_device_runs_where_its_resource_is(cluster, tmp_path):
    code = """
    import os
    def targets():
        return [("cuda", "float32"), ("cpu", "float32")]
    real_load = load
    def load(params, hparams, *, device, dtype):
        if device == "cuda":
            with open(os.environ["PARITY_TEST_DEVICE"], "a") as file:
                file.write(f"{os.getppid()}\\n")
        return real_load(params, hparams, device="cpu", dtype=dtype)
    """
    path, ran = module(tmp_path, "mixed", code), tmp_path / "ran"
    cluster.has(2)
    labelled = cluster.start("--resources", "cuda=1", PARITY_TEST_DEVICE=str(ran))
    cluster.has(3)
    try:
        found = gpt2_parity.gate(path, seed=SEED, scheduler=cluster.address, only=["logits"])
        if not host.sees_a_gpu():
            with pytest.raises(CannotJudge, match="mixed declares it, but none is visible"):
                gpt2_parity.gate(path, seed=SEED, require_device="cuda", scheduler=cluster.address)
    finally:
        cluster.stop(labelled)
    assert found.passed, found.explain()
    assert found.environment["hosts"].keys() == {"mixed-cpu-float32", "mixed-cuda-float32"}
    assert set(ran.read_text().split()) == {str(labelled.pid)}
    with pytest.raises(CannotJudge, match="device cuda is required, but mixed offers cpu-float32 here"):
        gpt2_parity.gate(path, seed=SEED, require_device="cuda", scheduler=cluster.address)


def test_ctrl_c_leaves_a_folder_that_resumes_and_no_process(cluster, local, tmp_path):
    hangs = tmp_path / "hangs"  # the implementation hangs as long as this file is there
    code = f"""
    import time
    from pathlib import Path
    real, calls = forward, []
    def forward(*args, **kw):
        calls.append(1)
        while len(calls) > 20 and Path({str(hangs)!r}).exists():
            time.sleep(0.1)
        return real(*args, **kw)
    """
    path, out = module(tmp_path, "waits", code), tmp_path / "out"
    hangs.touch()
    cluster.has(2)
    options = ["--target", "cpu-float32", "--seed", SEED, "--scheduler", cluster.address, "--out", out]
    arguments = interruptible("verify", "--impl", path, *options)
    run = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while count(out, "checked") < 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=40)
    assert run.returncode == 2
    assert errors.startswith("error: interrupted"), errors
    assert cluster.units() == []
    assert list((cluster.folder / "tmp").glob("parity-run-*")) == []
    finished, updates = count(out, "checked"), []
    hangs.unlink()
    found = gpt2_parity.resume(out, progress=updates.append, scheduler=cluster.address)
    assert found.passed
    expected = [row for row in local.rows if row.implementation == "numpy"]
    assert [row._replace(implementation="numpy") for row in found.rows] == expected
    assert len([update for update in updates if update.check]) == len(CHECKS) - finished


def test_a_run_whose_scheduler_is_killed_resumes_without_it(local, tmp_path):
    out = tmp_path / "out"
    with running(tmp_path / "another") as made:
        made.has(1)
        options = ["--target", "cpu-float32", "--seed", SEED, "--scheduler", made.address, "--out", out]
        arguments = command("verify", "--impl", "numpy", *options)
        run = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while count(out, "checked") < 2:
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        made.scheduler.kill()
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 2
    assert errors.startswith(f"error: scheduler {made.address}: has gone, or cancelled the run; a run")
    assert errors.count("\n") == 1
    found = gpt2_parity.resume(out)
    assert found.rows == [row for row in local.rows if row.implementation == "numpy"]


def count(out: Path, event: str) -> int:
    """How many events of a kind the journals of a run have."""
    return sum(path.read_text().count(f'"event": "{event}"') for path in out.glob("journal/*.jsonl"))


# -- one part alone


def sent(data: bytes, *, last: bool = True, sha256: str = "") -> str:
    """Receive data in two pieces; returns its hash."""
    sha256 = sha256 or digest_of(data)
    content.receive(sha256, "one", 0, data[:3], False)
    content.receive(sha256, "one", 3, data[3:], last)
    return sha256


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_file_is_there_once_it_is_whole_and_as_announced(empty_home):
    announced = sent(b"0123456789", last=False)
    assert content.missing([announced]) == [announced]
    sent(b"0123456789")
    assert content.missing([announced]) == []
    assert content.path(announced).read_bytes() == b"0123456789"
    with pytest.raises(CannotJudge, match=r"but [0-9a-f]{64} arrived"):
        sent(b"other", sha256="0" * 64)
    assert content.missing(["0" * 64]) == ["0" * 64]
    assert [path.name for path in (empty_home / "content").iterdir()] == [announced]


def test_a_file_that_has_changed_is_missing(empty_home):
    sha256 = sent(b"0123456789")
    assert content.missing([sha256]) == []
    content.path(sha256).write_bytes(b"012345678X")
    os.utime(content.path(sha256), ns=(1, 1))
    assert content.missing([sha256]) == [sha256]


def test_what_a_killed_run_began_to_send_is_given_up_after_a_day(empty_home):
    content.receive("0" * 64, "killed", 0, b"piece", False)
    arriving = empty_home / "content" / "arriving-killed"
    sent(b"data")
    assert arriving.is_file()
    os.utime(arriving, (0, 0))
    sent(b"more data")
    assert not arriving.exists()


def order(**changed) -> Order:
    found = find("numpy")
    fields = {
        "key": "key",
        "run": "run",
        "topic": "topic",
        "code": code.installed(),
        "implementation": found,
        "source": digest.sha256(Path(found.module)),
        "target": Target("cpu", "float32"),
        "done": [],
        "files": Files("0" * 64, {}, {}),
        "job": {"threads": 1},
        "resources": Resources(),
    }
    return Order(**fields | changed)


def test_a_dask_worker_that_joins_later_refuses_other_code():
    dask_task.refuse_other_code(order())
    with pytest.raises(CannotJudge, match=r"gpt2_parity 9\.9 with source 0"):
        dask_task.refuse_other_code(order(code=code.Code("9.9", "0" * 64)))


def test_a_module_that_differs_is_refused():
    found = find("json")
    same = order(implementation=found, source=request.source_sha256(found))
    dask_task.refuse_other_code(same)
    with pytest.raises(CannotJudge, match="the file of json has SHA-256 "):
        dask_task.refuse_other_code(order(implementation=found, source="0" * 64))


def test_a_machine_that_does_not_offer_a_target_is_no_fault_of_the_implementation(monkeypatch, tmp_path):
    """What another machine offered must not fail here as if the implementation were wrong."""
    claimed = []

    def supervise(job, journal, resources, handle, claim, stop):
        handle("hello", {"targets": [["cpu", "float64"]], "versions": {}})
        claimed.append(claim())
        return ""

    monkeypatch.setattr(supervisor, "supervise", supervise)
    monkeypatch.setattr(dask_task, "folder_of", lambda run: tmp_path)
    with pytest.raises(CannotJudge, match="numpy does not offer cpu-float32 here"):
        dask_task.supervise(order(), 0, None, threading.Event())
    assert claimed == [None]


@pytest.fixture
def executor():
    asked = request.Request([find("numpy")], None, SEED, scheduler="tcp://it:1")
    return distributed.DaskExecutor(asked)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("finished", None, "lost"),  # begun again by dask
        ("error", KilledWorker("task", None, 3), "lost"),
        ("error", ValueError("odd"), r"dask worker w: ValueError\('odd'\)"),
        ("cancelled", None, "scheduler tcp://it:1: has gone"),
    ],
)
def test_a_unit_that_does_not_report_its_end_is_lost_or_ends_the_run(status, error, expected, executor):
    future = SimpleNamespace(status=status, exception=lambda: error)
    if expected == "lost":
        assert executor.unreported(future, "w") == "lost"
    else:
        with pytest.raises(CannotJudge, match=expected):
            executor.unreported(future, "w")


def test_a_run_ends_when_no_dask_worker_has_come_for_long(executor):
    executor.seen = time.monotonic() + 60  # the list of workers is up to date
    now, long_ago = time.monotonic(), time.monotonic() - distributed.ABSENT - 1
    with pytest.raises(CannotJudge, match="no worker is left"):
        executor.refuse_absence("cpu", long_ago)
    executor.workers = {"w": {"resources": {}}}
    assert executor.refuse_absence("cpu", long_ago) >= now
    assert executor.refuse_absence("cuda", now) == now  # one may come back
    with pytest.raises(CannotJudge, match="no worker with the resource cuda is left"):
        executor.refuse_absence("cuda", long_ago)


def test_each_label_carries_as_many_units_as_its_dask_workers_together():
    workers = {
        "a": {"resources": {"cuda": 1.0}},
        "b": {"resources": {"cuda": 1.0}},
        "c": {"resources": {}},
    }
    assert distributed.labels(workers) == {"cuda": 2}


def test_the_threads_of_a_machine_share_its_cores(executor):
    """A dask worker with four threads on a machine of 16 cores, and two with two threads on one of 8."""
    for address, machine, cores, nthreads in (("a", "x", 16, 4), ("b", "y", 8, 2), ("c", "y", 8, 2)):
        executor.workers[address] = {"nthreads": nthreads}
        executor.hosts[address] = {"hostname": machine, "cores": cores}
    assert executor.shared_out(synthetic.OFFICIAL["124M"]) == (8, 2)


def test_a_message_that_is_lost_is_noticed(executor):
    inbox, seen = queue.SimpleQueue(), []
    for n, kind in ((0, "began"), (1, "event"), (3, "ended")):
        text = json.dumps({"kind": kind, "worker": "w", "host": "h", "event": "plan", "data": {}})
        inbox.put({"unit": "key", "n": n, "text": text})
    with pytest.raises(CannotJudge, match="dask worker w: message 2 was lost"):
        executor.follow(None, inbox, threading.Event(), "cpu", lambda *event: seen.append(event))
    assert seen == [("plan", {})]


# -- what is in docs/cluster


def test_the_compose_file_gives_client_and_workers_the_same_code():
    """Docker is not run here; this is what can be checked without it."""
    document = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    services = document["services"]
    assert services.keys() == {"scheduler", "cpu", "gpu", "client"}
    builds = [service["build"] for service in services.values()]
    assert all(build == builds[0] for build in builds)
    assert (CLUSTER / builds[0]["context"]).resolve() == HARNESS.parent
    extras = tomllib.loads((HARNESS.parent / "pyproject.toml").read_text())["project"]
    [installed] = re.findall(r"/src\[(.+)\]", builds[0]["dockerfile_inline"])
    assert set(installed.split(",")) <= extras["optional-dependencies"].keys()
    assert "--resources cuda=1" in services["gpu"]["command"]
    assert "--nthreads 1" in services["cpu"]["command"]


def test_the_slurm_script_verifies_with_a_stand_in_for_srun(local, tmp_path):
    """srun runs its command on this machine; SLURM itself is not there."""
    programs = {
        "srun": 'exec "$@"',
        "python": f'exec {sys.executable} "$@"',
        "parity": f'exec {sys.executable} -m gpt2_parity "$@"',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "2"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(HARNESS)}
    script = ["bash", CLUSTER / "parity.slurm", "--impl", "numpy", "--target", "cpu-float32"]
    done = subprocess.run(
        [*script, "--seed", str(SEED)],
        cwd=tmp_path,
        env=os.environ | paths | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = gpt2_parity.read(tmp_path / f"parity-{os.getpid()}")
    assert found.rows == [row for row in local.rows if row.implementation == "numpy"]
