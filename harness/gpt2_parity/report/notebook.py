"""A verdict in a notebook: the headline, the grid of checks, and what is wrong.

One piece of HTML without scripts, links or style sheets. It uses the colours of the notebook, light or
dark, and adds only translucent shades.
"""

import jinja2

from gpt2_parity.contract.rows import Results
from gpt2_parity.report import envelope, results
from gpt2_parity.report.verdicts import STATES, headline, matrix, targets
from gpt2_parity.verdict import explain

SHADES = {  # class of a cell -> its background
    "ok0": "rgba(46,160,67,.10)",
    "ok1": "rgba(46,160,67,.22)",
    "ok2": "rgba(46,160,67,.36)",
    "bad1": "rgba(218,54,51,.25)",
    "bad2": "rgba(218,54,51,.45)",
    "bad3": "rgba(218,54,51,.65)",
}
MOST = 8  # findings shown for each implementation and target


def html(found: Results) -> str:
    """A run as HTML; every text in it is escaped."""
    rows = found.rows
    judged = targets(rows)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt2_parity.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("notebook.html.j2").render(
        outcome=results.outcome(found),
        headline=headline({target.label: target.state for target in judged}),
        counts=results.counts(found),
        model=found.environment.get("model", ""),
        columns=[name.replace("_", " ") for name in results.columns(rows)],
        matrix=matrix(judged),
        states=STATES,
        shades=SHADES,
        most=MOST,
        notes=explain.notes(rows),
        envelopes=envelope.lines(rows),
        command=found.environment.get("command", ""),
    )
