"""A capability from outside the package: one declaration, and everything else follows from it.

An unknown distribution adds the check "log_probabilities" by an entry point. The capability
is verified where it is right and blamed where it is wrong. It is refused where it accepts bad tokens or
cannot be called. It appears in the skeleton, the lists and the report.
"""

import json
import os
import textwrap

import pytest

from commands import parity

CHECK = """
    import numpy as np

    from gpt2_parity.contract.capability import Capability
    from gpt2_parity.contract.check import Check
    from gpt2_parity.contract.limits import NOISE
    from gpt2_parity.contract.rows import Measurement
    from gpt2_parity.reference.distance import log_softmax, max_abs

    CAPABILITY = Capability(
        signature="log_probabilities(model, tokens)",
        returns="log-probabilities (nats) of each next token, [batch, n - 1]",
        call=lambda loaded, tokens: np.array(loaded.impl.log_probabilities(loaded.model, tokens)),
    )


    def expected(plan):
        return [("fresh", "log_probabilities", "noise_units")] * (CAPABILITY in plan.offers)


    def measure(loaded, plan):
        if CAPABILITY in plan.offers:
            record = loaded.records[-1]
            got = CAPABILITY.call(loaded, record.tokens)
            rows = np.take_along_axis(log_softmax(record.logits[:, :-1]), record.tokens[:, 1:, None], -1)
            gap = max_abs(got, rows[..., 0])
            units = gap / record.noise(loaded.target.dtype)
            yield Measurement("fresh", "log_probabilities", "noise_units", units, {"greatest_gap": gap})


    CHECK = Check(
        name="log_probabilities",
        establishes="log-probabilities of the next tokens agree with the float64 truth",
        expected=expected,
        measure=measure,
        limits={"noise_units": NOISE},
        after="greedy",
        blames="log_probabilities",
        precedence=105,
        look_at="the log-softmax and which token each position predicts",
        capability=CAPABILITY,
    )
"""
OFFER = """
    import sys
    sys.path.append({tests!r})
    from faults import Plain
    import numpy as np

    plain = Plain()
    TAPS, load, numpy, forward = plain.TAPS, plain.load, plain.numpy, plain.forward

    def targets():
        return [("cpu", "float32")]

    def log_probabilities({arguments}):
        {body}
        logits = forward(model, tokens)[0][:, :-1]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0] * {factor}
"""
IMPLEMENTATIONS = {
    "right": {},
    "in_bits": {"factor": "np.log2(np.e)"},
    "accepts": {"body": "if tokens.size == 0 or tokens.max() >= 1000 or tokens.min() < 0: return 0"},
    "uncallable": {"arguments": "model, tokens, temperature"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, home):
    """The environment with the distribution installed, and the folder with the implementations."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "toy_check.py").write_text(textwrap.dedent(CHECK))
    info = folder / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gpt2_parity.checks]\ntoy = toy_check\n")
    usual = {"tests": os.path.dirname(__file__), "arguments": "model, tokens", "body": "", "factor": "1"}
    for name, changes in IMPLEMENTATIONS.items():
        text = textwrap.dedent(OFFER).format(**usual | changes)
        (folder / f"{name}.py").write_text(text)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return folder, os.environ | {"PYTHONPATH": path}


@pytest.fixture(scope="module")
def verified(world):
    """A run over all of them: what it printed, and its rows."""
    folder, environment = world
    named = [word for name in IMPLEMENTATIONS for word in ("--impl", folder / f"{name}.py")]
    done = parity("verify", *named, "--out", folder / "out", "--seed", "1", env=environment)
    assert done.returncode == 1, done.stderr
    return done, json.loads((folder / "out" / "results.json").read_text())["rows"]


def failures(rows, name):
    return [row for row in rows if row["implementation"] == name and row["verdict"] == "fail"]


def test_it_is_verified(verified):
    _, rows = verified
    assert failures(rows, "right") == []
    own = [
        row for row in rows if (row["implementation"], row["check"]) == ("right", "log_probabilities")
    ]
    assert [row["verdict"] for row in own] == ["pass"]


def test_it_is_blamed(verified):
    done, rows = verified
    assert [(row["check"], row["blame"]) for row in failures(rows, "in_bits")] == [
        ("log_probabilities", "log_probabilities")
    ]
    assert "Look at the log-softmax and which token each position predicts." in done.stdout
    assert "greatest gap" in done.stdout


def test_its_bad_tokens_must_be_refused(verified):
    _, rows = verified
    scopes = {row["scope"] for row in failures(rows, "accepts")}
    kinds = ("too_large", "negative", "too_large_at_the_end", "negative_at_the_end", "empty")
    assert scopes >= {f"{kind}_in_log_probabilities" for kind in kinds}
    assert {row["blame"] for row in failures(rows, "accepts")} == {"tokens"}


def test_its_signature_is_held_to(verified):
    _, rows = verified
    [row] = failures(rows, "uncallable")
    assert "cannot be called as log_probabilities(model, tokens)" in row["evidence"]["error"]


def test_it_is_documented_and_reported(world, verified, tmp_path):
    folder, environment = world
    assert "log probabilities" in (folder / "out" / "report.html").read_text()
    listed = parity("list", env=environment).stdout
    assert "log-probabilities of the next tokens agree" in " ".join(listed.split())
    limits = parity("list", "--limits", env=environment).stdout
    assert "log_probabilities" in limits
    assert parity("new", "mine", env=environment, cwd=tmp_path).returncode == 0
    assert "# Optional: log_probabilities(model, tokens) returns" in (tmp_path / "mine.py").read_text()


def test_without_the_distribution_nothing_of_it_is_there():
    assert "log_probabilities" not in parity("list", "--limits").stdout
