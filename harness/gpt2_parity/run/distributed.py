"""The units of a run as tasks of a dask cluster; dask_task.py is the other side.

Each unit is one task, submitted again if the files that it needs are not on its machine yet, or if its
dask worker was lost. Journals, states and progress are this process's, as in a local run.
"""

import asyncio
import json
import logging
import queue
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, Self

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Interrupted, Target
from gpt2_parity.run import code, dask_task
from gpt2_parity.run.executor import Task
from gpt2_parity.run.order import Order, Shipment, encode
from gpt2_parity.run.preparation import Prepared
from gpt2_parity.run.request import Request
from gpt2_parity.run.schedule import Shares, threads_each
from gpt2_parity.run.supervisor import damaged

CONNECT = 5.0  # seconds in which a scheduler must answer
PIECE = 2**24  # bytes of a file that are sent at once
POLL = 0.2  # seconds between looks at whether the run was stopped
LIST = 2.0  # seconds between lists of the dask workers
ABSENT = 60.0  # seconds to wait for a dask worker that can run a unit, once the last one is gone
END = 60.0  # seconds to wait for processes to end after a run
ATTEMPTS = 2  # dask workers that a unit may lose
Message = dict[str, Any]
Write = Callable[[str, dict[str, Any]], None]


class End(NamedTuple):
    """How an attempt at a unit ended: the last message about it, and from where."""

    kind: str  # "ended", "lacks", "lost" or "stopped"
    message: Message
    worker: str  # address of its dask worker; "" if it did not begin
    host: str


class DaskExecutor:
    """Examines units on the workers of a dask cluster."""

    def __init__(self, request: Request):
        self.request = request
        self.run = secrets.token_hex(16)
        self.code = code.installed()
        self.inboxes: dict[str, queue.SimpleQueue[Message | None]] = {}
        self.sending: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by host
        self.lock = threading.Lock()  # for what is below
        self.n_attempts = 0
        self.seen = 0.0  # time.monotonic() when the workers were last listed
        self.workers: dict[str, Any] = {}
        self.hosts: dict[str, dict[str, Any]] = {}  # what each says about itself
        self.devices: Mapping[str, int] = {}

    def __enter__(self) -> Self:
        """Connect. Raises CannotJudge if the scheduler cannot be reached or has no fit workers."""
        address = self.request.scheduler
        distributed = imported()
        refuse_unreachable(address)
        with ExitStack() as opened:
            opened.enter_context(quiet())
            client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
            self.client = opened.enter_context(client)
            self.client.subscribe_topic(self.client.id, self.receive)
            self.listed()
            self.hosts = self.about()
            self.devices = labels(self.workers)
            self.opened = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait until the processes of this run have ended, remove its files everywhere, disconnect."""
        with self.opened, suppress(OSError, TimeoutError):
            self.clean()

    def clean(self) -> None:
        """Remove what the run has left on all machines, once its processes there have ended."""
        deadline = time.monotonic() + END
        while self.client.status == "running" and time.monotonic() < deadline:
            counts = self.client.run(dask_task.under_way, self.run, on_error="ignore")
            if not any(counts.values()):
                self.client.run(dask_task.forget, self.run, on_error="ignore")
                return
            time.sleep(POLL)

    def about(self) -> dict[str, dict[str, Any]]:
        """What every dask worker says about itself, by address.

        Raises CannotJudge if there is none, or if one has other code than this process.
        """
        address = self.request.scheduler
        found = self.client.run(dask_task.about, on_error="return")
        if not found:
            raise CannotJudge(
                f"scheduler {address}: has no workers; start some with: dask worker {address}"
            )
        for worker, each in found.items():
            if isinstance(each, BaseException):
                raise CannotJudge(f"dask worker {worker}: cannot run {self.code} ({each!r})") from each
            if (other := code.Code(*each["code"])) != self.code:
                raise CannotJudge(
                    f"dask worker {worker} on {each['hostname']} has {other}, but this is {self.code}; "
                    "install the same on both"
                )
        return dict(found)

    def prepare(self, prepared: Prepared) -> None:
        """List the files of the run; each is sent to a machine when a unit there lacks it."""
        self.shipment = Shipment(self.request, prepared)
        self.shares = self.shared_out(prepared.hparams)

    def shared_out(self, hparams: HParams) -> Shares:
        """As many units at once as the dask workers have threads, which share each machine's cores."""
        units: Counter[str] = Counter()
        cores: Counter[str] = Counter()
        for address, worker in self.workers.items():
            if about := self.hosts.get(address):
                units[about["hostname"]] += worker["nthreads"]
                cores[about["hostname"]] = max(cores[about["hostname"]], about["cores"])
        fewest = min(threads_each(hparams, cores[host], units[host]) for host in units)
        return Shares(self.request.jobs or sum(units.values()), self.request.resources.threads or fewest)

    def expect(self, dtypes: Iterable[str]) -> None:
        """Do nothing: each machine makes its truth when it needs it."""

    def examine(self, task: Task) -> str:
        """Examine a unit on a dask worker; return why its process ended early, with its last output."""
        with task.journal.open("a", encoding="utf-8") as file:

            def write(event: str, data: dict[str, Any]) -> None:
                task.handle(event, data)
                file.write(json.dumps({"event": event, **data}) + "\n")
                file.flush()

            if task.unit.target is None:
                return self.ask(task, write)
            return self.perform(task, task.unit.target, task.unit.target.device, write)

    def ask(self, task: Task, write: Write) -> str:
        """Ask an implementation for its targets, once on a CPU and once for each kind of device.

        What it offers for a device counts where the cluster has that device. Returns why it has not
        answered, or "".
        """
        offered: list[Any] = []
        unseen: list[str] = []
        found: dict[str, Any] = {}
        wanted = {target.device for target in self.request.targets}
        for device in ["cpu", *(label for label in self.devices if not wanted or label in wanted)]:
            answers: list[dict[str, Any]] = []

            def note(event: str, data: dict[str, Any], answers: list[Any] = answers) -> None:
                if event == "hello":
                    answers.append(data)
                else:
                    write(event, data)

            reason = self.perform(task, None, device, note)
            if not answers:
                return reason or "it did not report its targets"
            offered += [each for each in answers[-1]["targets"] if each[0] == device]
            found = found or answers[-1]["imported"]  # the others report theirs with their targets
            unseen += [each for each in answers[-1]["unseen"] if each == device]
        write("hello", {"targets": offered, "unseen": unseen, "imported": found})
        return ""

    def perform(self, task: Task, target: Target | None, device: str, write: Write) -> str:
        """Attempt a unit until it ends or has lost two dask workers. Returns why it ended early."""
        lost: list[str] = []
        while True:
            claimed = task.claim() if target else None
            end = self.attempt(task, target, device, claimed or {"done": []}, write)
            if end.kind == "lacks":
                self.send(end)
            elif end.kind == "lost":
                lost.append(f"{end.worker} on {end.host}")
                again = len(lost) < ATTEMPTS
                where = {"worker": end.worker, "host": end.host, "again": again}
                write("worker_lost", {"target": target, **where})
                if not again:
                    return f"ended together with its dask worker, twice: {', '.join(lost)}"
            elif end.kind == "stopped":
                return "the run ended"
            else:
                return str(end.message["reason"])

    def attempt(
        self, task: Task, target: Target | None, device: str, claimed: Mapping[str, Any], write: Write
    ) -> End:
        """Submit a unit and follow it until it ends."""
        order = self.order(task, target, claimed)
        inbox = self.inboxes[order.key] = queue.SimpleQueue()
        future = self.client.submit(
            dask_task.examine,
            encode(order),
            key=order.key,
            pure=False,
            resources=None if device == "cpu" else {device: 1},
        )
        future.add_done_callback(lambda _: inbox.put(None))
        try:
            return self.follow(future, inbox, task.stop, device, write)
        finally:
            del self.inboxes[order.key]
            if self.client.status == "running":
                with suppress(OSError):  # the scheduler has gone
                    future.cancel()
                    imported().Event(order.key, client=self.client).clear()

    def order(self, task: Task, target: Target | None, claimed: Mapping[str, Any]) -> Order:
        """One attempt at a unit."""
        with self.lock:
            self.n_attempts += 1
            key = f"parity-{self.run}-{self.n_attempts}"
        i = task.unit.implementation
        found = self.request.implementations[i]
        name = found.module.rpartition("/")[2] if found.is_file else found.module
        return Order(
            key=key,
            run=self.run,
            topic=self.client.id,
            code=self.code,
            implementation=found._replace(module=name),
            source=self.shipment.sources[i],
            target=target,
            done=claimed["done"],
            files=self.shipment.files,
            job=self.shipment.job | {"threads": self.shares.threads},
            resources=self.request.resources,
        )

    def receive(self, event: tuple[float, Any]) -> None:
        """Pass a message on to the thread that follows its unit."""
        message = event[1]
        if isinstance(message, dict) and (inbox := self.inboxes.get(message.get("unit", ""))):
            inbox.put(message)

    def follow(
        self,
        future: Any,
        inbox: "queue.SimpleQueue[Message | None]",
        stop: threading.Event,
        device: str,
        write: Write,
    ) -> End:
        """Handle the messages about a unit until it ends. Raises Interrupted if one is missing."""
        worker, host, damage, expected = "", "", "", 0
        waiting = time.monotonic()
        while not stop.is_set():
            try:
                received = inbox.get(timeout=POLL)
            except queue.Empty:
                waiting = self.refuse_absence(device, waiting)
                continue
            if received is None:
                return End(self.unreported(future, worker), {}, worker, host)
            if received["n"] != expected:
                raise Interrupted(f"dask worker {worker}: message {expected} was lost")
            expected += 1
            message = json.loads(received["text"])
            if message["kind"] == "began":
                worker, host = message["worker"], message["host"]
            elif message["kind"] == "refused":
                raise Interrupted(f"dask worker {worker} on {host}: {message['message']}")
            elif message["kind"] != "event":
                return End(
                    message["kind"], message | ({"reason": damage} if damage else {}), worker, host
                )
            elif not damage:
                try:
                    write(message["event"], message["data"])
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    damage = damaged(error)
        return End("stopped", {}, worker, host)

    def unreported(self, future: Any, worker: str) -> str:
        """What became of a unit that has ended without a last message.

        "lost" if its dask worker was: dask has then begun the unit again, or given up. Raises
        Interrupted if the task raised, or if the scheduler has gone.
        """
        if future.status == "finished":
            return "lost"
        if future.status == "error":
            error = future.exception()
            if isinstance(error, imported().KilledWorker):
                return "lost"
            raise Interrupted(f"dask worker {worker or 'unknown'}: {error!r}")
        raise Interrupted(f"scheduler {self.request.scheduler}: has gone, or cancelled the run")

    def send(self, end: End) -> None:
        """Send the files that a machine lacks, unless another thread has sent them meanwhile."""
        with self.sending[end.host], suppress(Gone):  # the next attempt is elsewhere
            lacking = self.call(end.worker, dask_task.lacking, end.message["hashes"])
            for sha256 in lacking:
                self.send_file(end.worker, sha256)

    def send_file(self, worker: str, sha256: str) -> None:
        """Send one file in pieces."""
        sending, offset, last = secrets.token_hex(8), 0, False
        with self.shipment.paths[sha256].open("rb") as file:
            while not last:
                piece = file.read(PIECE)
                last = len(piece) < PIECE
                self.call(worker, dask_task.receive, sha256, sending, offset, piece, last)
                offset += len(piece)

    def call(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function in a dask worker, beside its units.

        Raises Gone if that dask worker has, and Interrupted if the function raised.
        """
        found = self.client.run(function, *arguments, workers=[worker], on_error="return")
        result = found.get(worker, OSError())
        if isinstance(result, imported().comm.CommClosedError) or worker not in found:
            raise Gone
        if isinstance(result, BaseException):
            raise Interrupted(f"dask worker {worker}: {result}") from result
        return result

    def listed(self) -> None:
        """List the dask workers anew, unless that was done a moment ago."""
        with self.lock, suppress(OSError):
            if time.monotonic() - self.seen > LIST:
                self.workers = dict(self.client.scheduler_info(n_workers=-1)["workers"])
                self.seen = time.monotonic()

    def refuse_absence(self, device: str, since: float) -> float:
        """Raise Interrupted if no dask worker has had a device for long.

        since: time.monotonic() when there last was one. Returns that time as it is now.
        """
        self.listed()
        if self.workers and (device == "cpu" or device in labels(self.workers)):
            return time.monotonic()
        if time.monotonic() - since > ABSENT:
            label = "" if device == "cpu" else f" with the resource {device}"
            raise Interrupted(f"scheduler {self.request.scheduler}: no worker{label} is left")
        return since


class Gone(Exception):
    """A dask worker is no longer there."""


def imported() -> Any:
    """The package distributed. Raises CannotJudge if it is not installed."""
    try:
        import distributed
    except ImportError as error:
        raise CannotJudge(
            f"a scheduler needs dask: pip install 'gpt2-parity[distributed]' ({error})"
        ) from error
    return distributed


def refuse_unreachable(address: str) -> None:
    """Raise CannotJudge unless a dask scheduler answers; a client would try in vain for long."""
    from distributed.comm import connect
    from distributed.security import Security

    async def reach() -> None:
        arguments = Security().get_connection_args("client")
        (await connect(address, timeout=CONNECT, **arguments)).abort()

    try:
        with ThreadPoolExecutor(1) as thread:  # in a notebook this one has an event loop already
            thread.submit(asyncio.run, reach()).result()
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotJudge(f"scheduler {address}: cannot be reached ({error})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep dask's client from printing a traceback where the scheduler has gone: that raises here."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def labels(workers: Mapping[str, Any]) -> dict[str, int]:
    """How many units each resource label of the dask workers carries at once."""
    found: Counter[str] = Counter()
    for worker in workers.values():
        found.update({name: int(amount) for name, amount in worker["resources"].items()})
    return {name: count for name, count in found.items() if count > 0}
