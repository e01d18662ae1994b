"""What a benchmark times, and the form of its results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.run import cores
from gpt2_parity.run.supervisor import Resources

SAMPLES = 6  # the fewest whose extremes enclose the median with 95 %: 1 - 2 / 2**6 = 96.9 %
DECODED = 64  # most tokens in one sample of decode; many, because the prompt's time is subtracted
DECODED_QUICKLY = 12


class Workload(NamedTuple):
    """One thing that is timed."""

    phase: str  # prefill, decode or start
    n: int  # tokens: of the prompt; of decode, at most so many new ones
    n_past: int = 0
    batch: int = 1

    @property
    def longest(self) -> int:
        """Tokens in the longest sequence that it evaluates."""
        return self.n_past + self.n + (self.phase == "decode")

    def __str__(self) -> str:
        text = f"decode after {self.n_past}" if self.phase == "decode" else f"{self.phase} {self.n}"
        return f"{text}, batch {self.batch}" if self.batch > 1 else text


class TimedRow(NamedTuple):
    """One row of bench.json. It has figures only if its verdict is "verified"."""

    implementation: str
    device: str
    dtype: str
    model: str
    phase: str  # prefill, decode, start, load, memory
    metric: str  # seconds, seconds_per_token, peak_rss, anonymous, gpu
    n_past: int
    n: int  # tokens of the prompt; of decode, tokens in one sample
    batch: int
    samples: list[float]  # one a round
    median: float | None
    low: float | None  # low to high: the interval that encloses the median
    high: float | None
    unit: str  # seconds or bytes
    tokens_per_second: float | None
    roofline: float | None  # the least time possible divided by the time taken
    against: str  # the baseline
    speedup: float | None  # baseline / this, paired within rounds; above 1 is faster
    speedup_low: float | None
    speedup_high: float | None
    verdict: str  # verified, wrong output, crashed, skipped
    detail: str

    @property
    def at(self) -> tuple[int, int]:
        """New and past tokens of one forward pass of it; for decode, of the pass in the middle."""
        return (1, self.n_past + (self.n + 1) // 2) if self.phase == "decode" else (self.n, 0)


def unmeasured(
    implementation: str,
    target: Target,
    model: str,
    workload: Workload,
    against: str,
    verdict: str,
    detail: str,
) -> TimedRow:
    """A row without figures."""
    metric = "seconds_per_token" if workload.phase == "decode" else "seconds"
    return TimedRow(
        implementation, *target, model,
        workload.phase, metric, workload.n_past, workload.n, workload.batch,
        [], None, None, None, "seconds", None, None, against, None, None, None, verdict, detail,
    )  # fmt: skip


class Settings(NamedTuple):
    """What a benchmark is to do."""

    target: Target
    workloads: Sequence[Workload] = ()  # empty: the standard ones
    samples: int = SAMPLES
    seed: int = 0
    resources: Resources = Resources()
    seconds: float | None = None  # in which it is to end, with fewer rounds if need be

    @property
    def threads(self) -> int:
        """Threads of each implementation: as requested, or one for each available core."""
        return self.resources.threads or len(cores.available())


class Outcome(NamedTuple):
    """The rows of a benchmark, and what is needed to understand and repeat them."""

    rows: list[TimedRow]
    environment: dict[str, Any]


def workloads(hparams: HParams, quick: bool = False) -> list[Workload]:
    """The standard workloads, shortened to n_ctx, without duplicates."""
    n_ctx = hparams.n_ctx
    lengths, pasts = ((128,), (16,)) if quick else ((128, 512, 1023), (16, 900))
    n_new = min(DECODED_QUICKLY if quick else DECODED, max(1, n_ctx // 4))
    found = [Workload("prefill", min(n, n_ctx)) for n in lengths]
    found += [Workload("decode", n_new, max(1, min(past, n_ctx - n_new - 1))) for past in pasts]
    found.append(Workload("start", min(128, n_ctx)))
    return [workload for workload in dict.fromkeys(found) if workload.longest <= n_ctx]
