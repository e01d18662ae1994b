"""The one place that judges: turns expected keys and measurements into rows.

There is a row for each expected measurement, and one for each unexpected one. Its verdict is one of:

    pass           within its limit
    fail           beyond its limit, NaN, missing, or lost to an error or a crash
    known          a failure that is listed in the ledger and no larger than its entry allows
    inconclusive   the evidence cannot decide (near-ties); neither a pass nor a fail
    unlocalised    not measured: it needs a tap that the implementation does not offer
    skipped        a target that this implementation does not offer, or an auxiliary model that was not
                   loaded because loading is slow
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.limits import Limit, limit_of
from gpt2_parity.contract.plan import Key, Plan
from gpt2_parity.contract.rows import OUTCOMES, Measurement, Row, exit_code, plain
from gpt2_parity.verdict.attribution import blame

Expected = dict[str, list[Key]]  # by check
NO_LIMIT = "it has no limit, so it cannot be judged"


def expected(plan: Plan) -> Expected:
    """Every key that a run must measure. Raises ValueError if a check expects a key twice."""
    keys = {name: list(check.expected(plan)) for name, check in CHECKS.items() if plan.makes(name)}
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
        """The judge for a row's implementation, target and model."""
        return cls(row.implementation, Target(row.device, row.dtype), row.model)

    def rows(
        self,
        plan: Plan,
        measured: Iterable[tuple[str, Measurement]],
        errors: Mapping[str, str],
        lost: str = "",
    ) -> list[Row]:
        """A row for every expected measurement and for every unexpected one, with blame.

        errors: by check, the error that ended it early. lost: why the whole run ended early, or "".
        """
        found: dict[tuple[str, Key], list[Measurement]] = defaultdict(list)
        for check, measurement in measured:
            found[check, measurement[:3]].append(measurement)
        tapped = {key[1] for check, key in found if check == "activations"}
        rows = []
        for check, keys in expected(plan).items():
            given = {key: found.pop((check, key), []) for key in keys}
            rows += self._of_check(check, given, errors, lost, tapped)
        for check, key in found:
            known = check == "activations" and key[1] in tap_names(plan.hparams.n_layer)
            reason = "not_promised" if known else "unknown_name"
            rows.append(self._fail(check, key, "unexpected", {"reason": reason}))
        return blame(rows) + self._unseen(plan) + self._left_out(plan)

    def outcome(
        self,
        plan: Plan,
        check: str,
        measured: Iterable[tuple[str, Measurement]],
        errors: Mapping[str, str],
    ) -> str:
        """PASS, FAIL or NO VERDICT on one check that is done; "" if it has nothing to measure."""
        given: dict[Key, list[Measurement]] = {key: [] for key in CHECKS[check].expected(plan)}
        for name, measurement in measured:
            if name == check:
                given.setdefault(measurement[:3], []).append(measurement)
        rows = self._of_check(check, given, errors, "", set())
        return OUTCOMES[exit_code(rows)] if rows else ""

    def _of_check(
        self,
        check: str,
        given: Mapping[Key, list[Measurement]],
        errors: Mapping[str, str],
        lost: str,
        tapped: Collection[str],
    ) -> list[Row]:
        """The rows of one check. given: what was measured, by key; tapped: taps that came."""
        rows = []
        for key, got in given.items():
            if got:
                rows.append(self._row(check, key, got))
            else:
                status, evidence = absence(check, key, errors, lost, tapped)
                rows.append(self._fail(check, key, status, evidence))
        if check in errors and not any(row.verdict == "fail" for row in rows):
            rows.append(self.failure(check, errors[check]))
        return rows

    def failure(self, check: str, error: str, **evidence: Any) -> Row:
        """A failure that belongs to no single measurement."""
        return self._fail(check, ("", "", ""), "error", {"error": error, **evidence})

    def skipped(self, offered: Iterable[Target]) -> Row:
        """The row of a target that was requested and is not offered."""
        evidence = {"offered": [str(target) for target in offered]}
        return self._plain(("", "", ""), "load", "skipped", "not_asked", evidence)

    def _plain(
        self, key: Key, check: str, verdict: str, status: str, evidence: Mapping[str, Any]
    ) -> Row:
        """A row without figures."""
        case, scope, metric = key
        return Row(
            *self.identity, case, check, scope, metric, None, None, None, verdict, status,
            blame="", mistake="", evidence=plain(evidence),
        )  # fmt: skip

    def _row(self, check: str, key: Key, got: list[Measurement]) -> Row:
        if len(got) > 1:
            return self._fail(check, key, "unexpected", {"times": len(got)})
        value, evidence = float(got[0].value), got[0].evidence
        limit = self._limit(check, key)
        if limit is None:
            return self._fail(check, key, "error", {"error": NO_LIMIT})
        if math.isnan(value):
            return self._fail(check, key, "nan", evidence)._replace(mistake=got[0].mistake)
        finite = math.isfinite(value)
        verdict = "fail" if not value <= limit.most else "pass" if got[0].conclusive else "inconclusive"
        row = self._plain(key, check, verdict, "measured" if finite else "infinite", evidence)
        return row._replace(
            value=value if finite else None,
            limit=limit.most if math.isfinite(limit.most) else None,
            ratio=share(value, limit) if finite else None,
            mistake=got[0].mistake,
        )

    def _limit(self, check: str, key: Key) -> Limit | None:
        _, scope, metric = key
        limits = CHECKS[check].limits if check in CHECKS else {}
        return limit_of(limits, scope, metric, self.dtype)

    def _fail(self, check: str, key: Key, status: str, evidence: Mapping[str, Any]) -> Row:
        row = self._plain(key, check, "fail", status, evidence)
        limit = self._limit(check, key) if key[1] else None
        return row._replace(limit=limit.most if limit and math.isfinite(limit.most) else None)

    def _unseen(self, plan: Plan) -> list[Row]:
        """A row for every tap that is not offered, and for every check that needs such a tap."""
        return [
            self._plain(("", scope, ""), name, "unlocalised", "not_asked", {})
            for name, check in CHECKS.items()
            if check.unseen and plan.makes(name)
            for scope in check.unseen(plan)
        ]

    def _left_out(self, plan: Plan) -> list[Row]:
        """A row for every measurement that is not made because loading is slow."""
        if not plan.reloads:
            return []
        made, whole = expected(plan), expected(plan._replace(reloads=""))
        return [
            self._plain(key, check, "skipped", "not_asked", {"reloads": plan.reloads})
            for check, keys in whole.items()
            for key in keys
            if key not in set(made[check])
        ]


def share(value: float, limit: Limit) -> float | None:
    """The share of the limit that a value uses; None if there is no limit, or it is 0 and exceeded."""
    if math.isinf(limit.most):
        return None
    if limit.most == 0:
        return 0.0 if value == 0 else None
    return max(0.0, value) / limit.most


def absence(
    check: str, key: Key, errors: Mapping[str, str], lost: str, tapped: Collection[str]
) -> tuple[str, dict[str, Any]]:
    """Status and evidence of a missing measurement."""
    if check in errors:
        return "error", {"error": errors[check]}
    if lost:
        return "lost", {"error": lost}
    if check == "local" and key[1] in {*tapped, "logits"}:
        return "missing", {"reason": "input_not_tapped"}
    return "missing", {}
