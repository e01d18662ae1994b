"""Turn samples into rows: medians, intervals, ratios to the baseline, shares of the roofline."""

from gpt2_parity.bench import interval, roofline
from gpt2_parity.bench.participant import Participant
from gpt2_parity.bench.roofline import ITEMSIZE
from gpt2_parity.bench.workload import TimedRow, Workload, unmeasured

# Shares of up to 1.08 were seen where memory became faster between two measurements of it. A share far
# beyond is a timing error, for example a prompt that took longer in the call that is subtracted.
MOST_OF_THE_ROOFLINE = 1.5


def rows_of(participant: Participant, baseline: Participant) -> list[TimedRow]:
    """A row for each workload, and rows for the load time and memory of a fresh process."""
    setup = participant.setup
    rows = []
    for workload in setup.settings.workloads:
        rows.append(time_row(participant, baseline, workload))
        if workload.phase == "start":
            rows += fresh_rows(participant, baseline, workload)
    return rows


def blank(participant: Participant, workload: Workload, against: str) -> TimedRow:
    """A row without figures."""
    target = participant.setup.settings.target
    verdict, detail = participant.verdict, participant.detail
    if participant.running:
        verdict, detail = participant.failed.get(
            workload, ("verified", participant.how.get(workload, ""))
        )
    model = participant.setup.model.name
    row = unmeasured(participant.found.name, target, model, workload, against, verdict, detail)
    return row._replace(n=participant.decoded.get(workload, workload.n))


def filled(row: TimedRow, samples: list[float], of_baseline: list[float]) -> TimedRow:
    """A verified row with its figures, and a speedup where the baseline has as many samples."""
    found = interval.median(samples)
    row = row._replace(samples=samples, median=found.median, low=found.low, high=found.high)
    if len(of_baseline) != len(samples) or not all(value > 0 for value in samples):
        return row
    ratio = interval.median([b / own for b, own in zip(of_baseline, samples, strict=True)])
    return row._replace(speedup=ratio.median, speedup_low=ratio.low, speedup_high=ratio.high)


def time_row(participant: Participant, baseline: Participant, workload: Workload) -> TimedRow:
    """The row of a workload."""
    row = blank(participant, workload, baseline.found.name)
    samples = participant.samples.get(workload, [])
    if row.verdict != "verified":
        return row
    if not samples or len(samples) < rounds(participant, workload):
        return row._replace(verdict="crashed", detail="not all rounds were measured")
    row = filled(row, samples, baseline.samples.get(workload, []) if baseline.running else [])
    if row.median is None or row.low is None or row.low <= 0:  # zero is in its interval
        return without_figures(row, "too short to be timed by a difference")
    n_tokens = workload.batch * (1 if workload.phase == "decode" else workload.n)
    if workload.phase == "start":
        return row
    share = roofline_share(participant, workload, row)
    if share is not None and share > MOST_OF_THE_ROOFLINE:
        detail = f"timed at {share:.0%} of the roofline, which is impossible: measure again"
        return without_figures(row, detail)
    return row._replace(tokens_per_second=n_tokens / row.median, roofline=share)


def rounds(participant: Participant, workload: Workload) -> int:
    """The rounds of a workload; where a round is long, there may have been fewer than usual."""
    return participant.setup.rounds.get(workload, participant.setup.settings.samples)


def without_figures(row: TimedRow, detail: str) -> TimedRow:
    """A row whose figures cannot be right; detail says why."""
    row = row._replace(samples=[], median=None, low=None, high=None, verdict="skipped", detail=detail)
    return row._replace(speedup=None, speedup_low=None, speedup_high=None)


def roofline_share(participant: Participant, workload: Workload, row: TimedRow) -> float | None:
    """The median of the least time, by the rates around each sample, divided by the time taken."""
    setup = participant.setup
    itemsize, shares = ITEMSIZE[setup.settings.target.dtype], []
    for rates, taken in zip(participant.rates[workload], row.samples, strict=True):
        least = roofline.seconds(setup.expected.hparams, rates, *row.at, workload.batch, itemsize)
        if least is None or taken <= 0:
            return None
        shares.append(least / taken)
    return interval.median(shares).median


def fresh_rows(participant: Participant, baseline: Participant, workload: Workload) -> list[TimedRow]:
    """Rows for load time and memory of the fresh processes of a start, after their first logits."""
    row = blank(participant, workload, baseline.found.name)
    memory = row._replace(phase="memory", unit="bytes")
    wanted = {"load": row._replace(phase="load"), "peak_rss": memory, "anonymous": memory}
    if participant.setup.settings.target.device != "cpu":
        wanted["gpu"] = memory
    rows = []
    for name, empty in wanted.items():
        plain = empty if name == "load" else empty._replace(metric=name)
        samples = participant.fresh.get(name, [])
        if row.verdict != "verified":
            rows.append(plain)
        elif not samples or len(samples) < rounds(participant, workload):
            rows.append(plain._replace(verdict="skipped", detail="not available on this system"))
        else:
            others = baseline.fresh.get(name, []) if baseline.running else []
            rows.append(filled(plain, samples, others))
    return rows
