"""From samples to rows: medians, intervals, ratios to the baseline, shares of the roofline."""

from gpt2_parity.bench import interval, roofline
from gpt2_parity.bench.contestant import Contestant
from gpt2_parity.bench.roofline import ITEMSIZE
from gpt2_parity.bench.workload import Row, Workload, unmeasured

# Shares of up to 1.08 were seen where memory became faster between two measurements of it. Far beyond is
# no speed but a mistake of the clock, such as a prompt that took longer when it was subtracted.
MOST_OF_THE_ROOFLINE = 1.5


def entrant_rows(contestant: Contestant, baseline: Contestant) -> list[Row]:
    """A row for each workload, and for the load and memory of a fresh process."""
    session = contestant.session
    rows = []
    for workload in session.plans.workloads:
        rows.append(time_row(contestant, baseline, workload))
        if workload.phase == "start":
            rows += fresh_rows(contestant, baseline, workload)
    return rows


def blank(contestant: Contestant, workload: Workload, against: str) -> Row:
    """A row without figures."""
    target = contestant.session.plans.target
    verdict, detail = contestant.verdict, contestant.detail
    if contestant.running:
        verdict, detail = contestant.failed.get(workload, ("verified", contestant.how.get(workload, "")))
    model = contestant.session.model.name
    row = unmeasured(contestant.found.name, target, model, workload, against, verdict, detail)
    return row._replace(n=contestant.decoded.get(workload, workload.n))


def filled(row: Row, samples: list[float], of_baseline: list[float]) -> Row:
    """A verified row with its figures; paired with the baseline's where both have all rounds."""
    found = interval.median(samples)
    row = row._replace(samples=samples, median=found.median, low=found.low, high=found.high)
    if len(of_baseline) != len(samples) or not all(value > 0 for value in samples):
        return row
    ratio = interval.median([b / own for b, own in zip(of_baseline, samples, strict=True)])
    return row._replace(speedup=ratio.median, speedup_low=ratio.low, speedup_high=ratio.high)


def time_row(contestant: Contestant, baseline: Contestant, workload: Workload) -> Row:
    row = blank(contestant, workload, baseline.found.name)
    samples = contestant.samples.get(workload, [])
    if row.verdict != "verified":
        return row
    if len(samples) < contestant.session.plans.samples:
        return row._replace(verdict="crashed", detail="not all rounds were measured")
    row = filled(row, samples, baseline.samples.get(workload, []) if baseline.running else [])
    if row.median is None or row.low is None or row.low <= 0:  # with a time of nothing in its interval
        return row._replace(samples=[], median=None, low=None, high=None, verdict="skipped",
                            detail="too short to be timed by a difference")  # fmt: skip
    n_tokens = workload.batch * (1 if workload.phase == "decode" else workload.n)
    if workload.phase == "start":
        return row
    share = roofline_share(contestant, workload, row)
    if share is not None and share > MOST_OF_THE_ROOFLINE:
        detail = f"timed at {share:.0%} of the roofline, which cannot be: measure again"
        return row._replace(samples=[], median=None, low=None, high=None, speedup=None, speedup_low=None,
                            speedup_high=None, verdict="skipped", detail=detail)  # fmt: skip
    return row._replace(tokens_per_second=n_tokens / row.median, roofline=share)


def roofline_share(contestant: Contestant, workload: Workload, row: Row) -> float | None:
    """The least time over the time taken, each with the machine's rates before and after it."""
    session = contestant.session
    itemsize, shares = ITEMSIZE[session.plans.target.dtype], []
    for rates, taken in zip(contestant.rates[workload], row.samples, strict=True):
        least = roofline.seconds(session.truth.hparams, rates, *row.at, workload.batch, itemsize)
        if least is None or taken <= 0:
            return None
        shares.append(least / taken)
    return interval.median(shares).median


def fresh_rows(contestant: Contestant, baseline: Contestant, workload: Workload) -> list[Row]:
    """Load time and memory of the fresh processes of a start workload, after their first logits."""
    row = blank(contestant, workload, baseline.found.name)
    memory = row._replace(phase="memory", unit="bytes")
    wanted = {"load": row._replace(phase="load"), "peak_rss": memory, "anonymous": memory}
    if contestant.session.plans.target.device != "cpu":
        wanted["gpu"] = memory
    rows = []
    for name, empty in wanted.items():
        plain = empty if name == "load" else empty._replace(metric=name)
        samples = contestant.fresh.get(name, [])
        if row.verdict != "verified":
            rows.append(plain)
        elif len(samples) < contestant.session.plans.samples:
            rows.append(plain._replace(verdict="skipped", detail="this system does not tell"))
        else:
            others = baseline.fresh.get(name, []) if baseline.running else []
            rows.append(filled(plain, samples, others))
    return rows
