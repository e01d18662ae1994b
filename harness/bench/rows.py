"""From samples to rows: medians, intervals, ratios to the baseline, shares of the roofline."""

from harness.bench import interval, roofline
from harness.bench.entrant import Entrant
from harness.bench.roofline import ITEMSIZE
from harness.bench.trial import Row, Trial, unmeasured

# Shares of up to 1.08 were seen where memory became faster between two measurements of it. Far beyond is
# no speed but a mistake of the clock, such as a prompt that took longer when it was subtracted.
MOST_OF_THE_ROOFLINE = 1.5


def entrant_rows(entrant: Entrant, baseline: Entrant) -> list[Row]:
    """A row for each trial, and for the load and memory of a fresh process."""
    session = entrant.session
    rows = []
    for trial in session.plans.trials:
        rows.append(time_row(entrant, baseline, trial))
        if trial.phase == "start":
            rows += fresh_rows(entrant, baseline, trial)
    return rows


def blank(entrant: Entrant, trial: Trial, against: str) -> Row:
    """A row without figures."""
    target = entrant.session.plans.target
    verdict, detail = entrant.verdict, entrant.detail
    if entrant.running:
        verdict, detail = entrant.failed.get(trial, ("verified", entrant.how.get(trial, "")))
    model = entrant.session.model.name
    row = unmeasured(entrant.found.name, target, model, trial, against, verdict, detail)
    return row._replace(n=entrant.decoded.get(trial, trial.n))


def filled(row: Row, samples: list[float], of_baseline: list[float]) -> Row:
    """A verified row with its figures; paired with the baseline's where both have all rounds."""
    found = interval.median(samples)
    row = row._replace(samples=samples, median=found.median, low=found.low, high=found.high)
    if len(of_baseline) != len(samples) or not all(value > 0 for value in samples):
        return row
    ratio = interval.median([b / own for b, own in zip(of_baseline, samples, strict=True)])
    return row._replace(speedup=ratio.median, speedup_low=ratio.low, speedup_high=ratio.high)


def time_row(entrant: Entrant, baseline: Entrant, trial: Trial) -> Row:
    row = blank(entrant, trial, baseline.found.name)
    samples = entrant.samples.get(trial, [])
    if row.verdict != "verified":
        return row
    if len(samples) < entrant.session.plans.samples:
        return row._replace(verdict="crashed", detail="not all rounds were measured")
    row = filled(row, samples, baseline.samples.get(trial, []) if baseline.running else [])
    if row.median is None or row.low is None or row.low <= 0:  # with a time of nothing in its interval
        return row._replace(samples=[], median=None, low=None, high=None, verdict="skipped",
                            detail="too short to be timed by a difference")  # fmt: skip
    n_tokens = trial.batch * (1 if trial.phase == "decode" else trial.n)
    if trial.phase == "start":
        return row
    share = roofline_share(entrant, trial, row)
    if share is not None and share > MOST_OF_THE_ROOFLINE:
        detail = f"timed at {share:.0%} of the roofline, which cannot be: measure again"
        return row._replace(samples=[], median=None, low=None, high=None, speedup=None, speedup_low=None,
                            speedup_high=None, verdict="skipped", detail=detail)  # fmt: skip
    return row._replace(tokens_per_second=n_tokens / row.median, roofline=share)


def roofline_share(entrant: Entrant, trial: Trial, row: Row) -> float | None:
    """The least time over the time taken, each with the machine's rates before and after it."""
    session = entrant.session
    itemsize, shares = ITEMSIZE[session.plans.target.dtype], []
    for rates, taken in zip(entrant.rates[trial], row.samples, strict=True):
        least = roofline.seconds(session.truth.hparams, rates, *row.at, trial.batch, itemsize)
        if least is None or taken <= 0:
            return None
        shares.append(least / taken)
    return interval.median(shares).median


def fresh_rows(entrant: Entrant, baseline: Entrant, trial: Trial) -> list[Row]:
    """Load time and memory of the fresh processes of a start trial, after their first logits."""
    row = blank(entrant, trial, baseline.found.name)
    memory = row._replace(phase="memory", unit="bytes")
    wanted = {"load": row._replace(phase="load"), "peak_rss": memory, "anonymous": memory}
    if entrant.session.plans.target.device != "cpu":
        wanted["gpu"] = memory
    rows = []
    for name, empty in wanted.items():
        plain = empty if name == "load" else empty._replace(metric=name)
        samples = entrant.fresh.get(name, [])
        if row.verdict != "verified":
            rows.append(plain)
        elif len(samples) < entrant.session.plans.samples:
            rows.append(plain._replace(verdict="skipped", detail="this system does not tell"))
        else:
            others = baseline.fresh.get(name, []) if baseline.running else []
            rows.append(filled(plain, samples, others))
    return rows
