"""parity fetch and known: official files are downloaded, and published values compared."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.commands.options import DEFAULT, MemoryOption, TimeoutOption, parse_target, resources
from gpt2_parity.contract.dtypes import DROPPED_BITS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.spelling import meant
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue, published_files
from gpt2_parity.published import known_answers
from gpt2_parity.report import terminal


def fetch(
    size: Annotated[str, typer.Argument(help="124M, 355M, 774M or 1558M.")],
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="PARITY_BASE_URL", help="Address with SIZE/FILE below it. Default: OpenAI's."
        ),
    ] = None,
) -> None:
    """Download an official checkpoint and verify it. An interrupted download is resumed."""
    from gpt2_parity.model import download as downloading  # only here is the network's library needed

    if size not in catalogue.OFFICIAL:
        raise CannotJudge(
            f"size {size!r}: expected one of {', '.join(catalogue.OFFICIAL)}"
            f"{meant(size, catalogue.OFFICIAL)}"
        )
    console = terminal.console()
    release = published_files.release(size)
    try:
        with terminal.downloads(console) as report:
            got = downloading.fetch(release, base_url or published_files.read().base_url, report)
    except KeyboardInterrupt as error:
        raise CannotJudge(
            f"fetch {size}: interrupted. The partial file is kept: run the same command to resume"
        ) from error
    console.print(f"  {downloading.describe_verification(release)}", highlight=False, soft_wrap=True)
    console.print(
        f"[green]PASS[/green]: {catalogue.locate(size).checkpoint}, {len(got)} files downloaded"
    )


def known(
    model: Annotated[
        str, typer.Argument(help="124M and so on, micro, shape:124M, or a folder named like one.")
    ],
    impl: Annotated[str, typer.Option(help="Name in impls/, module, or PATH.py.")] = "numpy",
    target: Annotated[
        str, typer.Option(help="DEVICE-DTYPE; the facts have the digits of float32.")
    ] = "cpu-float32",
    texts: Annotated[
        Path | None,
        typer.Option(help="Folder with published texts and tokens. Default: $PARITY_REFERENCE_DATA."),
    ] = None,
    gluon_logits: Annotated[
        Path | None, typer.Option(help="gluon_117M_gt_logits.npy and so on, or their folder.")
    ] = None,
    timeout: TimeoutOption = DEFAULT.seconds,
    memory: MemoryOption = DEFAULT.gigabytes,
) -> None:
    """Compare an implementation with what others have published about a checkpoint."""
    console = terminal.console()
    found, where, on = discovery.find(impl), catalogue.locate(model), parse_target(target)
    if on.dtype in DROPPED_BITS:
        raise CannotJudge(
            f"target {on}: the facts have the digits of float32, which {on.dtype} cannot meet; "
            "use a float32 target here, and parity verify for both"
        )
    allowed = resources(timeout, memory)
    facts = known_answers.about(where.name, known_answers.read())
    if not facts:
        raise CannotJudge(f"model {model}: nothing is published about {where.name!r}")
    files = known_answers.model_files(where, texts, gluon_logits)
    answers = []
    with console.status("known answers") as status:
        for answer in known_answers.compare(facts, found, on, files, allowed):
            answers.append(answer)
            status.update(f"known answers: {len(answers)} of {len(facts)}")
    terminal.answers(console, f"{where.name}: known answers, {found.name} {on}", answers)
    raise typer.Exit(known_answers.exit_code(answers))
