"""parity from Python: what the commands, the pytest plugin and a notebook call.

    verdict = gpt2_parity.verify(["numpy", "mine.py"], targets=["cpu-float32"])
    verdict.passed     # True or False
    verdict            # in a notebook: the checks, with the share of each limit used, and what is wrong

Whatever keeps a run from judging raises CannotJudge, whose text says what is wrong, where and
what to do.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.progress import Progress
from gpt2_parity.contract.rows import Results, Row, exit_code
from gpt2_parity.files.output_folder import alone, replacing, writable
from gpt2_parity.implementation import given as implementation_given
from gpt2_parity.implementation.given import Given
from gpt2_parity.model import catalogue
from gpt2_parity.report import envelope, results
from gpt2_parity.run import corpus as corpora
from gpt2_parity.run import request as requests
from gpt2_parity.run import runner, supervisor
from gpt2_parity.run.request import Request, parse_target
from gpt2_parity.run.supervisor import Resources
from gpt2_parity.verdict import explain, known_failures

if TYPE_CHECKING:  # pandas is optional
    import pandas as pd

__all__ = ["CannotJudge", "Fuzzed", "Verdict", "fuzz", "gate", "read", "resume", "verify"]

JOURNAL = "journal"  # in the folder out, while a run is under way
DEFAULT = Resources()


class Verdict:
    """What a run found: its rows, how they were made, and the outcome that follows from them.

    A verdict has three outcomes, so bool(verdict) raises TypeError: "not verdict" would call wrong what
    could not be judged. Use passed or exit_code.
    """

    def __init__(self, found: Results, ledger: Path | None = None):
        self.results = found
        self.ledger = ledger  # the file of known disagreements that it was judged with

    @property
    def rows(self) -> list[Row]:
        """One row for each measurement."""
        return self.results.rows

    @property
    def environment(self) -> dict[str, Any]:
        """Where, with what and how the rows were made: model, hashes, versions, seed, command."""
        return self.results.environment

    @property
    def exit_code(self) -> int:
        """0: every required check passed. 1: a disagreement. 2: nothing could be judged."""
        return exit_code(self.rows)

    @property
    def passed(self) -> bool:
        """Whether every required check passed; False for a disagreement and for no verdict alike."""
        return self.exit_code == 0

    def frame(self) -> "pd.DataFrame":
        """The rows as a pandas frame, one row a measurement; frame.attrs has the environment.

        Raises CannotJudge where pandas is not installed.
        """
        return results.frame(self.results)

    def explain(self) -> str:
        """What is wrong, where, by how much and why: one paragraph for each finding; "" for none."""
        return "\n".join(
            f"{name}\n" + "".join(f"  {paragraph}\n" for paragraph in paragraphs)
            for name, paragraphs in explain.paragraphs(self.rows).items()
        )

    def envelope(self) -> dict[str, dict[str, Any]]:
        """What the search has seen right, by implementation and target; {} where nothing was searched.

        The keys: docs/reading_results.md.
        """
        return envelope.by_target(self.rows)

    def report(self, path: Path | str) -> None:
        """Write report.html to a path that ends in .html, or all four files of a run into a folder.

        Without matplotlib the page has tables only. Raises CannotJudge where that cannot be written.
        """
        from gpt2_parity.files import atomic
        from gpt2_parity.report import files, page, runs  # jinja2 and matplotlib are not needed before

        path = Path(path)
        if path.suffix == ".html":
            atomic.write_text(path, page.html([runs.Run(path.stem, self.results)]))
        else:
            writable(path)
            files.write(self.results, path)

    def ledger_lines(self) -> list[str]:
        """Lines for a ledger that would make every failure here a known one, each but for its reason."""
        return known_failures.suggest(self.rows)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a verdict is no bool: it may also be 'could not judge'; use .passed or .exit_code"
        )

    def __repr__(self) -> str:
        outcome = results.outcome(self.results)
        return f"<Verdict {outcome} on {self.environment.get('model')}: {results.counts(self.results)}>"

    def _repr_html_(self) -> str:
        from gpt2_parity.report import notebook  # jinja2 is not needed for a verdict

        return notebook.html(self.results)


def verify(
    implementations: Any,
    *,
    model: str = "micro",
    targets: str | Iterable[str | tuple[str, str]] | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    ledger: Path | str | None = None,
    require_device: str = "",
    isolated: bool = True,
    timeout: float = DEFAULT.seconds,
    memory: float = DEFAULT.gigabytes,
    threads: int | None = DEFAULT.threads,
    jobs: int | None = None,
    first: Sequence[str] = (),
    only: Sequence[str] = (),
    scheduler: str = "",
    search: float | None = None,
    corpus: Path | str | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Verify one implementation, or each of a list, against the golden record of a model.

    implementations: a name ("numpy"), "MODULE[:attr]", "PATH.py[:attr]", a pathlib.Path, a module,
        or any object with the functions of the contract; or a list of these.
    model: micro, an official size, shape:SIZE, or a folder with a checkpoint (OpenAI's
        files, or Hugging Face's).
    targets: "cpu-float32" or ("cpu", "float32"), or several; None: all that are offered here.
    seed: of the fresh random tokens, below 2**63; None: a random one, which the environment records.
    out: folder for results.json, junit.xml, report.md and report.html. An interrupted run continues from
        there with resume(out). Complete results stay until the new ones are complete.
    ledger: file of known disagreements.
    require_device: a device that every implementation must offer on this machine.
    isolated: run each implementation in a process of its own, which a crash cannot leave. False: in
        this process, as an object needs that exists only in memory. timeout, memory and threads then
        cannot be kept, and giving them raises CannotJudge.
    timeout: seconds that the start, and each check, may take.
    memory: GiB of its own memory that an implementation may use.
    threads: processors that each worker may use; None: one for a small model, and for a large one the
        share of a worker.
    jobs: workers at once; None: as many as processors and memory carry.
    first: checks to run before the others; the verdict does not depend on it.
    only: checks to make; the verdict says nothing about the others, and names these.
    scheduler: address of a dask scheduler; the workers of its cluster then do the work.
    search: seconds to search, in each target, for sizes, values and histories that are wrong; 0: not at
        all; None: 10, or what the environment variable PARITY_SEARCH says.
    corpus: folder of failures that fuzz has found; the search makes them first, even if it has no
        seconds. None: STEM.corpus beside each implementation's file, if it is there.
    progress: called with an Update (contract/progress.py) at each step, from several threads.

    A crash, a hang, or running out of memory is that implementation's failure and raises nothing. Raises
    CannotJudge where no verdict is possible: a bad argument, a missing or damaged file, a target that
    nothing offers, or an absent device.
    """
    given = implementation_given.locate_all(implementations)
    refuse_recursion()
    limits = requests.resources(timeout, memory, threads)
    request = Request(
        implementations=[one.found for one in given],
        seed=seed_of(seed),
        targets=targets_of(targets),
        require=require_device,
        resources=limits,
        ledger=Path(ledger).resolve() if ledger is not None else None,
        first=first,
        jobs=requests.jobs(jobs),
        only=requests.checks(only),
        search=requests.search(search, limits),
        corpus=corpora.replayed(
            [one.found for one in given], Path(corpus) if corpus is not None else None
        ),
        corpus_folder=str(corpus) if corpus is not None else "",
        model=catalogue.locate(model),  # last: it may generate weights
        scheduler=scheduler,
    )
    if scheduler and not isolated:
        raise CannotJudge("isolated=False: a scheduler's workers cannot run what is in this process")
    if isolated:
        implementation_given.refuse_memory(given)
    elif request.resources != DEFAULT:
        raise CannotJudge("isolated=False: timeout, memory and threads need a process of its own")
    return judged(request, out, progress, None if isolated else given)


def gate(implementation: Any, **options: Any) -> Verdict:
    """Verify exactly one implementation; options are those of verify.

    Raises CannotJudge for a list of several, and as verify does.
    """
    if isinstance(implementation, (list, tuple)) and not hasattr(implementation, "forward"):
        raise CannotJudge("gate judges one implementation; give several to verify")
    return verify(implementation, **options)


class Fuzzed(NamedTuple):
    """What fuzz found: the verdict on its trials, and what became of the failures."""

    verdict: Verdict
    corpus: Path  # the folder of reproducers; it exists if any was ever written
    kept: list[corpora.Kept]


def fuzz(
    implementation: Any,
    *,
    minutes: float = 5.0,
    seed: int | None = None,
    targets: str | Iterable[str | tuple[str, str]] | None = None,
    corpus: Path | str | None = None,
    timeout: float = DEFAULT.seconds,
    memory: float = DEFAULT.gigabytes,
    threads: int | None = DEFAULT.threads,
    progress: Progress | None = None,
) -> Fuzzed:
    """Search for minutes, in each target, and write what fails as a stand-alone file into a corpus.

    The trials of the corpus come first. corpus: its folder; None: STEM.corpus beside the
    implementation's file. timeout: seconds for the start; for the search it is extended as needed, since
    a failure is made smaller in half of the minutes again.

    Raises CannotJudge as verify does, and where the corpus cannot be read or written.
    """
    if isinstance(implementation, (list, tuple)) and not hasattr(implementation, "forward"):
        raise CannotJudge("fuzz searches one implementation")
    found = implementation_given.locate(implementation).found
    folder = corpora.beside(found) if corpus is None else Path(corpus)
    writable(folder)
    verdict = verify(
        implementation,
        seed=seed,
        targets=targets,
        timeout=max(timeout, 120 * minutes),
        memory=memory,
        threads=threads,
        only=["search"],
        search=60 * minutes,
        corpus=folder if folder.is_dir() else None,
        progress=progress,
    )
    return Fuzzed(verdict, folder, corpora.keep(verdict.rows, found, folder, timeout))


def resume(
    out: Path | str,
    progress: Progress | None = None,
    jobs: int | None = None,
    scheduler: str = "",
) -> Verdict:
    """Continue a run that was interrupted, in its folder out; finished checks are not repeated.

    jobs, scheduler: as for verify; where a run continues need not be where it began.

    Raises CannotJudge where there is none, and where what it depends on has changed since.
    """
    out = Path(out)
    if (out / results.NAME).is_file() and not (out / JOURNAL).exists():
        raise CannotJudge(f"{out}: its run is complete, there is nothing to resume")
    refuse_recursion()
    request = requests.interrupted(out / JOURNAL)
    request = request._replace(jobs=requests.jobs(jobs), scheduler=scheduler)
    return judged(request, out, progress, resumed=True)


def read(path: Path | str) -> Verdict:
    """The verdict in a folder of results, or in a results.json of any name.

    Raises CannotJudge where results.json is missing, not JSON, or of another schema.
    """
    return Verdict(results.load(Path(path)))


def refuse_recursion() -> None:
    """Raise CannotJudge in a worker, whose implementation's file calls this module when imported."""
    if supervisor.MARK in os.environ:
        raise CannotJudge(
            "this file asks for a verdict while it is being verified; put that call under "
            "if __name__ == '__main__':"
        )


def seed_of(seed: int | None) -> int:
    """The seed, or a random one. Raises CannotJudge where it is out of range."""
    if seed is None:
        return secrets.randbelow(2**31)
    if not 0 <= seed < 2**63:
        raise CannotJudge(f"seed {seed}: expected a number from 0 to 2**63 - 1")
    return int(seed)


def targets_of(targets: str | Iterable[str | tuple[str, str]] | None) -> list[Target]:
    """Targets by name or as pairs. Raises CannotJudge for anything else."""
    each = [targets] if isinstance(targets, str) else list(targets or ())
    return [parse_target(one if isinstance(one, str) else "-".join(map(str, one))) for one in each]


def judged(
    request: Request,
    out: Path | str | None,
    progress: Progress | None,
    given: Sequence[Given] | None = None,
    *,
    resumed: bool = False,
) -> Verdict:
    """Run a request and write what it found into out; given: in this process."""
    objects = None if given is None else [one.loaded for one in given]
    show = progress or runner.silent
    if out is None:
        return Verdict(runner.verify(request, None, show, objects), request.ledger)
    out = Path(out)
    writable(out)
    with alone(out):
        return Verdict(into(out, request, show, objects, resumed), request.ledger)


def into(
    out: Path, request: Request, progress: Progress, objects: Sequence[Any] | None, resumed: bool
) -> Results:
    """Run a request with its journal in out, then put its files in the place of an earlier run's.

    The journal of an earlier run that was killed is gone once this one is under way; where this one is
    refused (CannotJudge), it is there again.
    """
    if not resumed and os.path.lexists(out / JOURNAL) and not requests.is_journal(out / JOURNAL):
        raise CannotJudge(
            f"{out / JOURNAL}: is not the journal of a run and would be in the way; name another folder"
        )
    for name in results.FILES:
        if (out / name).is_dir() and not (out / name).is_symlink():
            raise CannotJudge(f"{out / name}: cannot be removed (it is a folder)")
    # a journal that is resumed stays where it is, even where resuming it is refused
    with nullcontext() if resumed else replacing(out, [JOURNAL]):
        found = runner.verify(request, out / JOURNAL if objects is None else None, progress, objects)
    from gpt2_parity.report import files  # jinja2 and matplotlib are not needed before

    files.write(found, out)
    shutil.rmtree(out / JOURNAL, ignore_errors=objects is not None)
    return found
