"""What must never happen, each found in a well-known verifier, in the order of the design's list.

test_bench.py tests that no speed row is written for a wrong output.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from examine import examine
from faults import Fault
from faults.edits import NUMPY
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract import limits
from gpt2_parity.contract.rows import Row, exit_code
from gpt2_parity.implementation.discovery import find
from gpt2_parity.reference import distance
from gpt2_parity.verdict import judge
from score import score

QUICK = {"seed"}


def with_logits(change):
    """The NumPy specimen whose logits are changed before they are returned."""
    real = find("numpy").load()

    def forward(model, tokens, past=None, tap=None):
        found, present = real.forward(model, tokens, past, tap)
        return change(found.copy()), present

    names = ("targets", "load", "numpy", "TAPS")
    return SimpleNamespace(**{n: getattr(real, n) for n in names}, forward=forward, __name__="changed")


def failed(rows, check="logits"):
    return [row for row in rows if row.check == check and row.verdict == "fail"]


def row(verdict):
    figures = (1.0, 8.0, 0.1, verdict, "measured")
    return Row("x", "cpu", "float32", "m", "c", "logits", "s", "noise_units", *figures, "", "", {})


def measured_otherwise(monkeypatch, name, change):
    """A check whose measurements go through change before they are judged."""
    real = CHECKS[name].measure
    measure = lambda loaded, plan: change(list(real(loaded, plan)))  # noqa: E731
    monkeypatch.setitem(CHECKS, name, CHECKS[name]._replace(measure=measure))


def test_an_empty_comparison_never_passes():
    with pytest.raises(ValueError, match="nothing to compare"):
        distance.max_abs(np.zeros((1, 0, 5)), np.zeros((1, 0, 5)))
    assert exit_code([]) == 2


def test_nan_never_passes(prepared):
    def one_nan(found):
        found[0, 0, 0] = np.nan
        return found

    assert len(failed(examine(with_logits(one_nan), prepared, only=QUICK))) == len(
        CHECKS["logits"].limits
    )


def test_keys_are_never_intersected_or_cut_short(prepared, monkeypatch):
    """One measurement fewer than expected is one failure, by name."""
    measured_otherwise(monkeypatch, "activations", lambda found: found[:-1])
    rows = failed(examine(find("numpy").load(), prepared, only=QUICK), "activations")
    assert [(r.scope, r.status) for r in rows] == [("ln_f", "missing")]


def test_names_never_match_by_substring(prepared, monkeypatch):
    def renamed(found):
        return [m._replace(scope=m.scope.replace("h3/ln_1", "h3/ln_11")) for m in found]

    measured_otherwise(monkeypatch, "activations", renamed)
    rows = failed(examine(find("numpy").load(), prepared, only=QUICK), "activations")
    assert {r.scope for r in rows} == {"h3/ln_1", "h3/ln_11"}


def test_one_logit_at_an_early_position_is_never_averaged_away(prepared):
    """Neither a mean nor a look at the last token would see it."""

    def early(found):
        found[0, 0, 5] += 0.01
        return found

    assert failed(examine(with_logits(early), prepared, only=QUICK))


def test_the_right_direction_alone_never_passes(prepared):
    """Logits scaled as a whole have cosine 1 with the truth, and the same greedy tokens."""
    rows = examine(with_logits(lambda found: found * np.float32(1.001)), prepared, only=QUICK)
    assert failed(rows)
    assert failed(rows, "local")
    assert not failed(rows, "greedy")


def test_a_failure_never_exits_0_and_is_never_downgraded():
    everything = [row(verdict) for verdict in ("pass", "inconclusive", "unlocalised", "skipped")]
    assert exit_code(everything) == 0
    for i in range(len(everything) + 1):
        assert exit_code([*everything[:i], row("fail"), *everything[i:]]) == 1


def test_a_limit_is_never_dropped_on_the_way(prepared, monkeypatch):
    """The number in the table is the one that judges: lowered, it fails what passed."""
    check = CHECKS["logits"]
    tight = check.limits["noise_units"]._replace(most=1e-9)
    assert not failed(examine(find("numpy").load(), prepared, only=QUICK))
    tighter = check._replace(limits={**check.limits, "noise_units": tight})
    monkeypatch.setitem(CHECKS, "logits", tighter)
    assert {r.limit for r in failed(examine(find("numpy").load(), prepared, only=QUICK))} == {1e-9}


def test_a_limit_never_depends_on_the_size_of_an_array():
    """It is looked up by names alone, and the judge sees no arrays."""
    assert list(inspect.signature(limits.limit_of).parameters) == ["limits", "scope", "metric", "dtype"]
    assert "numpy" not in inspect.getsource(judge)


def test_a_skip_never_counts_as_a_pass():
    assert exit_code([row("skipped")]) == 2
    assert exit_code([row("unlocalised")]) == 2


def test_a_fault_that_crashes_is_never_scored(prepared):
    """Not as survived, and not as killed either: the catalogue is wrong, and that is an error."""
    expected = (frozenset(), "", frozenset())
    broken = Fault("broken", *expected, specimen=NUMPY, edits=[("TAPS = ", "1 / 0\nTAPS = ")])
    with pytest.raises(ZeroDivisionError):
        score(broken, "micro", None)
    with pytest.raises(ValueError, match="0 times"):
        score(broken._replace(edits=[("no such text", "")]), "micro", None)
