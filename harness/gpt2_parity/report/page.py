"""report.html: turns the rows of one or several runs into one HTML file."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from gpt2_parity.contract.rows import Row
from gpt2_parity.files import atomic
from gpt2_parity.report import envelope, plots, results
from gpt2_parity.report.cells import UNITS, number, units
from gpt2_parity.report.durations import durations
from gpt2_parity.report.measurements import asked_again, commands, layers, measurements
from gpt2_parity.report.noise import noise
from gpt2_parity.report.operations import panels
from gpt2_parity.report.precision import precision
from gpt2_parity.report.runs import Run, made_with, merge, models, read
from gpt2_parity.report.speed import contestants, speed
from gpt2_parity.report.texts import texts
from gpt2_parity.report.tokens import strips
from gpt2_parity.report.verdicts import STATES, TargetSection, headline, matrix, targets, worst
from gpt2_parity.verdict import explain


def write(paths: Sequence[Path], out: Path) -> None:
    """Write the report of one or several runs to the file out.

    Raises CannotJudge if a run cannot be read or the report cannot be written.
    """
    atomic.write_text(out, html(read(paths)))


def html(runs: Sequence[Run]) -> str:
    """The page."""
    rows = merge(runs)
    found = targets(rows)
    timed = contestants(runs)
    again = commands(runs)
    judged = worst([*((t.label, t.state) for t in found), *((e.label, e.state) for e in timed)])
    return template("report.html.j2").render(
        state=next(iter(judged.values()), "open"),
        states=STATES,
        headline=headline(judged) + but_for(rows) + selections(runs),
        notes=explain.notes(rows),
        models=models(runs),
        counts=results.headline(rows),
        targets=sorted(found, key=lambda target: list(STATES).index(target.state)),
        matrix=matrix(found),
        columns=[name.replace("_", " ") for name in results.columns(rows)],
        missing="" if plots.can_draw() else plots.MISSING,
        keys={part: keys(part, found) for part in ("operations", "noise")},
        panels=panels([(target.style, target.rows) for target in found]),
        noise=noise(found),
        strips=strips(rows),
        measurements=measurements(found, again),
        layers=layers(found),
        ask_again=lambda target, check: asked_again(again.get(target, ""), check),
        unit=UNITS,
        envelopes=envelope.sections(rows),
        texts=texts(rows),
        precision=precision(found),
        contestants=sorted(timed, key=lambda contestant: list(STATES).index(contestant.state)),
        speed=speed(runs),
        durations=durations(runs),
        runs=[made_with(run) for run in runs],
    )


def but_for(rows: Sequence[Row]) -> str:
    """The end of the headline: how many failures the ledger lists; "" for none."""
    n = sum(row.verdict == "known" for row in rows)
    return f", but for {n} known disagreement{'s' * (n > 1)}" if n else ""


def selections(runs: Sequence[Run]) -> str:
    """The end of the headline: which checks were made in runs that made only some; "" for none."""
    found = (results.selection(run.results.environment) for run in runs if run.results)
    return "".join(dict.fromkeys(found))


def keys(part: str, found: Sequence[TargetSection]) -> list[tuple[str, str]]:
    """The legend of a part of the page: a swatch and a label for each target."""
    return [(plots.swatch(f"{part}{target.style}", target.style), target.label) for target in found]


def template(name: str) -> jinja2.Template:
    """A template of this package; it escapes everything that is put into it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt2_parity.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["units"] = units
    return environment.get_template(name)
