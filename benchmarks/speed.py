"""Speed and memory of each implementation on each model, as `parity bench` measures them.

setup_cache runs one benchmark for each commit and model: implementations take turns, each in a process
of its own, verified before and after; a wrong one has no figures. The methods below only select figures.

asv assumes that lower is better, so the figures that may regress are seconds per token. Tokens per
second are stored as two samples, of the slowest and the fastest round. asv's interval around two samples
is 50 times as wide as their distance, so it never reports a change in them, which it would take for the
wrong direction.

Commits are measured one after the other, and the machine may change meanwhile. The class Machine tracks
the machine's own rates during each commit's rounds: if they regressed too, the commit is not the only
cause.
"""

IMPLEMENTATIONS = ("numpy", "torch", "jax")
MODELS = ("micro", "shape:124M")
NOT_MEASURED = float("nan")  # asv shows n/a and does not fail; decode of micro may be too short to time
SAMPLES = 10  # with ten samples, asv's interval spans from the least to the greatest
VERIFICATIONS = 5  # one alone has no interval: asv reported a random increase by a third as a regression


def measure(model: str) -> dict:
    """The rows and the environment of one run; no rows at a commit that lacks the modules it needs."""
    try:
        from gpt2_parity.bench import session
        from gpt2_parity.bench.workload import Settings
        from gpt2_parity.contract.interface import Target
        from gpt2_parity.implementation import discovery
        from gpt2_parity.model import catalogue
        from gpt2_parity.run.supervisor import Resources
    except ImportError:
        return {"rows": [], "environment": {}}
    found = [discovery.find(name) for name in IMPLEMENTATIONS if name in discovery.names()]
    located = catalogue.locate(model)
    settings = Settings(Target("cpu", "float32"), samples=SAMPLES, resources=Resources(seconds=300.0))
    outcome = session.measure(found, located, settings, quick=True)
    return {"rows": [row._asdict() for row in outcome.rows], "environment": outcome.environment}


def unit(name: str):
    """Decorate a method with the unit that asv shows."""

    def mark(method):
        method.unit = name
        return method

    return mark


class Speed:
    """Each method returns one figure of a row."""

    params = (IMPLEMENTATIONS, MODELS)
    param_names = ("implementation", "model")
    timeout = 1800

    def setup_cache(self):
        return {model: measure(model) for model in MODELS}

    setup_cache.timeout = 1800

    def setup(self, runs, implementation, model):
        self.rows = [row for row in runs[model]["rows"] if row["implementation"] == implementation]
        if not self.rows or all(row["verdict"] == "skipped" for row in self.rows):
            raise NotImplementedError("not at this commit, or its framework is not installed")

    def row(self, phase: str, metric: str) -> dict | None:
        """The row, or None if it was skipped. Raises RuntimeError if it is wrong or crashed."""
        (row,) = [row for row in self.rows if (row["phase"], row["metric"]) == (phase, metric)]
        if row["verdict"] == "skipped":
            return None
        if row["verdict"] != "verified":
            raise RuntimeError(f"{row['verdict']}: {row['detail']}")
        return row

    def samples(self, phase: str, metric: str) -> dict | float:
        row = self.row(phase, metric)
        return {"samples": row["samples"], "number": 1} if row else NOT_MEASURED

    def shown(self, phase: str, metric: str) -> dict | float:
        """Tokens per second of the slowest and the fastest round, for people to read."""
        row = self.row(phase, metric)
        if row is None:
            return NOT_MEASURED
        n_tokens = row["tokens_per_second"] * row["median"]
        taken = [seconds for seconds in row["samples"] if seconds > 0]
        return {"samples": [n_tokens / max(taken), n_tokens / min(taken)], "number": 1}

    @unit("seconds")
    def track_decode_seconds_per_token(self, runs, implementation, model):
        return self.samples("decode", "seconds_per_token")

    @unit("tokens/s")
    def track_decode_tokens_per_second(self, runs, implementation, model):
        return self.shown("decode", "seconds_per_token")

    @unit("seconds")
    def track_prefill_seconds(self, runs, implementation, model):
        return self.samples("prefill", "seconds")

    @unit("tokens/s")
    def track_prefill_tokens_per_second(self, runs, implementation, model):
        return self.shown("prefill", "seconds")

    @unit("seconds")
    def track_first_logits_seconds(self, runs, implementation, model):
        return self.samples("start", "seconds")

    @unit("seconds")
    def track_load_seconds(self, runs, implementation, model):
        return self.samples("load", "seconds")

    @unit("bytes")
    def track_peak_memory(self, runs, implementation, model):
        return self.samples("memory", "peak_rss")

    @unit("bytes")
    def track_anonymous_memory(self, runs, implementation, model):
        return self.samples("memory", "anonymous")


class Machine:
    """The time of plain memory reads and matrix products in the same rounds; lower is better."""

    params = (MODELS[1:],)  # micro fits in the cache, whose rate varies and says nothing about memory
    param_names = ("model",)
    timeout = 1800
    setup_cache = Speed.setup_cache  # the same function, so that asv runs it once for both

    def setup(self, runs, model):
        self.rates = runs[model]["environment"]
        if not self.rates:
            raise NotImplementedError("not at this commit")

    @unit("seconds/GB")
    def track_read_seconds_per_gigabyte(self, runs, model):
        return 1e9 / self.rates["bandwidth_bytes_per_s"]

    @unit("seconds/TFLOP")
    def track_product_seconds_per_teraflop(self, runs, model):
        return 1e12 / self.rates["gemm_flop_per_s"] if self.rates["gemm_flop_per_s"] else NOT_MEASURED


class Verification:
    """The time of a full verification of micro: all checks on all cases."""

    params = (IMPLEMENTATIONS,)
    param_names = ("implementation",)
    timeout = 1800
    unit = "seconds"

    def setup(self, implementation):
        try:
            from gpt2_parity.implementation import discovery  # noqa: F401
            from gpt2_parity.run import runner  # noqa: F401
        except ImportError as error:
            raise NotImplementedError from error

    def track_verify_seconds(self, implementation):
        import time

        from gpt2_parity.contract import rows
        from gpt2_parity.contract.interface import Target
        from gpt2_parity.implementation import discovery
        from gpt2_parity.model import catalogue
        from gpt2_parity.run import runner
        from gpt2_parity.run.request import Request

        found = [discovery.find(implementation)]
        target = [Target("cpu", "float32")]
        samples = []
        for seed in range(VERIFICATIONS):
            start = time.perf_counter()
            outcome = runner.verify(Request(found, catalogue.locate("micro"), seed, targets=target))
            samples.append(time.perf_counter() - start)
            if rows.exit_code(outcome.rows):
                raise RuntimeError("not verified")
        return {"samples": samples, "number": 1}
