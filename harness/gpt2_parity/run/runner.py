"""A run: compares implementations with the golden records and returns rows.

The request is written to a journal folder, where each worker writes what it measures.
"""

import os
import platform
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.progress import Progress, Update
from gpt2_parity.contract.rows import NOT_ASKED, Results
from gpt2_parity.contract.spelling import meant
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.run.examination import Examination
from gpt2_parity.run.executor import Executor, LocalExecutor
from gpt2_parity.run.host import Seen
from gpt2_parity.run.journal import RunState
from gpt2_parity.run.preparation import prepare
from gpt2_parity.run.request import Recorded, Request, begin, command, commands, record
from gpt2_parity.run.schedule import Shares
from gpt2_parity.verdict import known_failures
from gpt2_parity.version import __version__


def silent(update: Update) -> None:
    """A progress callback that shows nothing."""


def verify(
    request: Request,
    folder: Path | None = None,
    progress: Progress = silent,
    objects: Sequence[Any] | None = None,
) -> Results:
    """Run every implementation of a request on its targets and judge it.

    folder: where the journal is written; a journal that is already there is resumed. None: in a
    temporary folder, so that the run cannot be resumed.
    objects: one for each of the request's implementations, to be examined in this process; None in it
    means that the implementation is imported here. Without objects, each gets processes of its own.

    Raises CannotJudge if the golden record or the checkpoint cannot be trusted, if no implementation
    offers a target of the request, or if a required device is absent.
    """
    started = time.time()
    known = known_failures.read(request.ledger) if request.ledger else []
    known = [each for each in known if not request.only or each.check in request.only]
    with (
        tempfile.TemporaryDirectory(prefix="parity-") as temporary,
        journal_folder(folder) as journals,
        executor_of(request) if objects is None else nullcontext() as executor,
    ):
        progress(Update("prepares"))
        prepared = prepare(request.model, request.seed, Path(temporary))
        recorded = record(request, prepared.checkpoint.sha256)
        begin(recorded, journals)
        examination = Examination(request, prepared, journals, progress)
        if executor is not None:
            executor.prepare(prepared)
            examination.in_workers(executor)
        else:
            examination.in_this_process(objects or ())
    states = examination.states
    for state in states:
        if state.offered and request.targets and not set(request.targets) & set(state.offered):
            state.skip(request.targets)
    refuse_missing_targets(request.targets, states)
    rows = known_failures.apply([row for state in states for row in state.rows], known)
    made_with = environment(
        request.model.name,
        prepared.checkpoint,
        [case.name for case in prepared.cases],
        request.seed,
        {name: version for state in states for name, version in state.versions.items()},
        {target for state in states for target in state.offered or ()},
        started,
        request.targets,
        {device for state in states for device in state.unseen},
        {device: why for state in states for device, why in state.elsewhere.items()},
        looked=looked(states),
    )
    shares = executor.shares if executor is not None else None
    made_with |= how(request, recorded, shares) | {
        "hosts": hosts(states),
        **(
            {"lost_workers": lost} if (lost := [each for s in states for each in s.lost_workers]) else {}
        ),
        "seconds_by_check": seconds(states),
        "loads": loads(states),
        "implementation_files": {
            state.name: {name: file["sha256"] for name, file in sorted(state.files.items())}
            for state in states
        },
        "packages": {state.name: dict(sorted(state.packages.items())) for state in states},
    }
    if request.only:
        made_with["only"] = {name: list(request.only) for name in seconds(states)}
    return Results(rows, made_with)


def executor_of(request: Request) -> Executor:
    """What examines the units of a request."""
    if not request.scheduler:
        return LocalExecutor(request)
    from gpt2_parity.run.distributed import DaskExecutor  # what a local run does not need

    return DaskExecutor(request)


def how(request: Request, recorded: Recorded, shares: Shares | None) -> dict[str, Any]:
    """How the run was made, apart from its model, as JSON. shares: None if not in worker processes."""
    facts: dict[str, Any] = {
        "golden_sha256": recorded.golden_sha256,
        "implementation_sha256": recorded.sources,
        "isolated": shares is not None,
    }
    if shares is not None:
        facts["resources"] = request.resources._asdict()
        facts["side_by_side"] = shares._asdict()
    if text := command(request):
        facts["command"] = text
    facts["commands"] = commands(request)
    return facts


def seconds(states: Sequence[RunState]) -> dict[str, dict[str, float]]:
    """The seconds of each check, and of loading, by implementation and target."""
    return {
        f"{state.name}-{target}": found.seconds
        for state in states
        for target, found in state.targets.items()
    }


def looked(states: Sequence[RunState]) -> bool:
    """Whether anybody could look if the GPUs that were declared are used; True if there was no need."""
    seen = [
        Seen(**found.host["seen"])
        for state in states
        for found in state.targets.values()
        if "seen" in found.host
    ]
    return not seen or any(each.there is not None for each in seen)


def loads(states: Sequence[RunState]) -> dict[str, dict[str, float]]:
    """How often load() was called and the seconds that it took, by implementation and target."""
    found = {}
    for state in states:
        for target, each in state.targets.items():
            taken = [seconds for several in each.loads.values() for seconds in several]
            found[f"{state.name}-{target}"] = {"calls": len(taken), "seconds": round(sum(taken), 6)}
    return found


def hosts(states: Sequence[RunState]) -> dict[str, dict[str, Any]]:
    """The machine of each target, by implementation and target, as run/host.py reports it."""
    return {
        f"{state.name}-{target}": found.host
        for state in states
        for target, found in state.targets.items()
        if found.host
    }


@contextmanager
def journal_folder(folder: Path | None) -> Iterator[Path]:
    """The folder for the journal: the given one, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        yield Path(temporary)


def refuse_missing_targets(wanted: Sequence[Target], states: Sequence[RunState]) -> None:
    """Raise CannotJudge if none of the implementations offers a requested target.

    Does not raise if one of them failed before it reported its targets: its row "load" reports that.
    """
    offered = {target for state in states for target in state.offered or ()}
    absent = [str(target) for target in wanted if target not in offered]
    if absent and all(state.offered is not None for state in states):
        raise CannotJudge(
            f"target {', '.join(absent)}: offered by none of the implementations on this machine; "
            f"offered are {', '.join(sorted(map(str, offered))) or 'none'}"
            f"{meant(absent[0], map(str, offered))}"
        )


def environment(
    model: str,
    checkpoint: Checkpoint,
    cases: Sequence[str],
    seed: int,
    versions: dict[str, str],
    offered: set[Target],
    started: float,
    targets: Sequence[Target] = (),
    unseen: Collection[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    looked: bool = True,
) -> dict[str, Any]:
    """Where and with what results were made, as JSON.

    started: seconds since the epoch. targets: those that were asked for; empty: all. unseen: devices
    that are declared and not visible. elsewhere: those that are not used, and why that is known.
    looked: whether anybody could look if a GPU is used.
    """
    wanted = not targets or any(target.device == "cuda" for target in targets)
    cuda = "skipped: no CUDA device offered" if wanted else NOT_ASKED
    if any(target.device == "cuda" for target in offered):
        cuda = "present" if looked else "present; not looked at whether it is used"
        if "cuda" in elsewhere:
            cuda = f"declared, but nothing is seen there: {elsewhere['cuda']}"
        if "cuda" in unseen:
            cuda = "declared, but no GPU is visible"
    return {
        "gpt2_parity": __version__,
        "model": model,
        "hparams": checkpoint.hparams._asdict(),
        "checkpoint_sha256": checkpoint.sha256,
        "seed": seed,
        "cases": list(cases),
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "cuda": cuda,
        "date": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
    }
