"""parity fetch, known: what others have published is got, and asked for."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2_parity.commands.options import parse_target
from gpt2_parity.contract.dtypes import DROPPED_BITS
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation import discovery
from gpt2_parity.model import catalogue
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
    """Download an official checkpoint, going on where an earlier attempt stopped, and prove it."""
    from gpt2_parity.model import download as fetching  # only here is the network's library needed

    if size not in catalogue.OFFICIAL:
        raise CannotJudge(f"size {size!r}: expected one of {', '.join(catalogue.OFFICIAL)}")
    console = terminal.console()
    release = fetching.published(size)
    try:
        with terminal.downloads(console) as report:
            got = fetching.fetch(release, base_url or fetching.default_url(), report)
    except KeyboardInterrupt as error:
        raise CannotJudge(
            f"fetch {size}: interrupted. What has come is kept: the same command goes on from there"
        ) from error
    console.print(f"  {fetching.told(release)}", highlight=False, soft_wrap=True)
    console.print(
        f"[green]PASS[/green]: {catalogue.locate(size).checkpoint}, {len(got)} files downloaded"
    )


def known(
    model: Annotated[
        str, typer.Argument(help="124M and so on, micro, shape:124M, or a folder named like one.")
    ],
    impl: Annotated[str, typer.Option(help="Name in impls/, module, or PATH.py.")] = "numpy",
    target: Annotated[str, typer.Option(help="DEVICE-DTYPE; the facts are float32's.")] = "cpu-float32",
    texts: Annotated[
        Path | None,
        typer.Option(help="Folder with published texts and tokens. Default: $PARITY_REFERENCE_DATA."),
    ] = None,
    gluon_logits: Annotated[
        Path | None, typer.Option(help="gluon_117M_gt_logits.npy and so on, or their folder.")
    ] = None,
) -> None:
    """Ask an implementation what others have published about a checkpoint."""
    from gpt2_parity.published import (
        known_answers as answering,  # it knows the published files through fetch
    )

    console = terminal.console()
    found, where, on = discovery.find(impl), catalogue.locate(model), parse_target(target)
    if on.dtype in DROPPED_BITS:
        raise CannotJudge(
            f"target {on}: the facts are float32's, to whose digits {on.dtype} cannot be held; "
            "ask it in float32, and parity verify in both"
        )
    facts = answering.about(where.name, answering.read())
    if not facts:
        raise CannotJudge(f"model {model}: nobody has published anything about a {where.name!r}")
    place = answering.place_of(where, texts, gluon_logits)
    answers = []
    with console.status("known answers") as status:
        for answer in answering.ask(facts, found, on, place):
            answers.append(answer)
            status.update(f"known answers: {len(answers)} of {len(facts)}")
    terminal.answers(console, f"{where.name}: known answers, {found.name} {on}", answers)
    raise typer.Exit(answering.exit_code(answers))
