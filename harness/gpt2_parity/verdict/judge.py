"""The one place that judges: what was expected and what was measured go in, rows come out.

A row is one expected measurement with its verdict:

    pass           within its limit
    fail           beyond it, NaN, missing, or lost to an error or a crash
    known          a failure that the ledger of known disagreements has, no further than it allows
    inconclusive   the evidence cannot decide (near-ties); neither a pass nor a fail
    unlocalised    what a tap that the implementation does not offer would have shown was not looked at
    skipped        a target that this implementation does not offer
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from gpt2_parity.checks import CHECKS, weights
from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.limits import limit
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import Measurement, Row
from gpt2_parity.verdict.attribution import NAN, blame, untapped

Expected = dict[str, list[Key]]  # by check


def expected(plan: Plan) -> Expected:
    """Everything that a run must measure. Raises ValueError where a key would be there twice."""
    keys = {name: list(check.expected(plan)) for name, check in CHECKS.items()}
    for name, wanted in keys.items():
        if len(set(wanted)) != len(wanted):
            raise ValueError(f"check {name} expects the same measurement twice")
    return keys


class Judge:
    """Judges one implementation on one target."""

    def __init__(self, implementation: str, target: Target, model: str):
        self.identity = (implementation, target.device, target.dtype, model)
        self.dtype = target.dtype

    @classmethod
    def of(cls, row: Row) -> "Judge":
        """The judge of a row's implementation and target."""
        return cls(row.implementation, Target(row.device, row.dtype), row.model)

    def rows(
        self,
        plan: Plan,
        measured: Iterable[tuple[str, Measurement]],
        errors: Mapping[str, str],
        lost: str = "",
    ) -> list[Row]:
        """A row for every expected measurement and one for everything else that came.

        errors: what ended a check early, by check. lost: what ended the whole run early, if it did.
        """
        found: dict[tuple[str, Key], list[Measurement]] = defaultdict(list)
        for check, measurement in measured:
            found[check, measurement[:3]].append(measurement)
        tapped = {key[1] for check, key in found if check == "activations"}
        rows = []
        for check, keys in expected(plan).items():
            for key in keys:
                got = found.pop((check, key), [])
                reason = errors.get(check) or lost or untapped(check, key, tapped)
                rows.append(self._row(check, key, got, reason))
            if check in errors and not any(row.verdict == "fail" for row in rows if row.check == check):
                rows.append(self.failure(check, errors[check]))
        for (check, key), _ in found.items():
            known = check == "activations" and key[1] in tap_names(plan.hparams.n_layer)
            why = "it is tapped, but TAPS does not promise it" if known else "names must match exactly"
            rows.append(self._fail(check, key, f"measured but not expected: {why}"))
        return blame(rows, f"missing: {lost}" if lost else "") + self._unlocalised(plan)

    def failure(self, check: str, reason: str) -> Row:
        """A failure that belongs to no single measurement."""
        return self._fail(check, ("", "", ""), reason)

    def skipped(self, reason: str) -> Row:
        """A target that was asked for and is not offered."""
        return self._plain("", "load", "", "skipped", reason)

    def _plain(self, case: str, check: str, scope: str, verdict: str, detail: str) -> Row:
        """A row without figures."""
        key = (case, check, scope, "")
        return Row(
            *self.identity, *key, None, None, None, verdict, blame="", diagnosis="", detail=detail
        )

    def _row(self, check: str, key: Key, got: list[Measurement], reason: str) -> Row:
        if not got:
            return self._fail(check, key, f"missing: {reason}")
        if len(got) > 1:
            return self._fail(check, key, f"measured {len(got)} times")
        value, detail, metric = float(got[0].value), got[0].detail, key[2]
        if math.isnan(value):
            row = self._fail(check, key, f"{NAN}: a comparison with NaN is no agreement. {detail}")
            return row._replace(diagnosis=got[0].diagnosis)
        if metric == "near_ties":
            row = self._plain(key[0], check, key[1], "inconclusive" if value else "pass", detail)
            return row._replace(metric=metric, value=value)
        found = limit(check, key[1], metric, self.dtype)
        if found is None:
            return self._fail(check, key, "it has no limit, so it cannot be judged")
        most = found.most
        ratio = max(0.0, value) / most if most else (0.0 if value == 0 else None)
        verdict = "fail" if not value <= most else "pass" if got[0].conclusive else "inconclusive"
        if not math.isfinite(value):
            detail = f"infinite. {detail}"
        return self._plain(key[0], check, key[1], verdict, detail)._replace(
            metric=metric,
            value=value if math.isfinite(value) else None,
            limit=most,
            ratio=ratio if ratio is not None and math.isfinite(ratio) else None,
            diagnosis=got[0].diagnosis,
        )

    def _fail(self, check: str, key: Key, detail: str) -> Row:
        case, scope, metric = key
        found = limit(check, scope, metric, self.dtype) if scope else None
        row = self._plain(case, check, scope, "fail", detail)
        return row._replace(metric=metric, limit=found.most if found else None)

    def _unlocalised(self, plan: Plan) -> list[Row]:
        """A row for every tap that this implementation does not offer, and what rests on it alone."""
        silent = [name for name in tap_names(plan.hparams.n_layer) if name not in plan.taps]
        detail = "no tap: an error in this operation could not be localised"
        found = [self._plain("", "activations", name, "unlocalised", detail) for name in silent]
        if "embed" in silent and not weights.expected(plan):
            detail = (
                "no tap embed: only of a model as small as micro is every row of wte and wpe looked up"
            )
            found.append(self._plain("", "weights", "embed", "unlocalised", detail))
        return found
