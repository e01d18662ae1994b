"""Fixtures that all tests share: a cache of their own, and micro with its golden records."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gpt2_parity.model import catalogue
from gpt2_parity.run.preparation import Prepared, prepare

SEED = 20261123  # of the fresh tokens; fixed, so that a failure repeats

# No verdict here depends on time: a busy machine must not fail a test.
settings.register_profile("parity", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("parity")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """A cache folder for this run, shared by xdist's workers; the user's own cache is not touched."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "parity-home"
    os.environ["PARITY_HOME"] = str(place)
    os.environ["PARITY_SEARCH"] = (
        "0"  # the search has tests of its own; elsewhere it would only take time
    )
    return place


@pytest.fixture(scope="session")
def prepared(home, tmp_path_factory) -> Prepared:
    """micro's checkpoint, its golden records and a fresh case."""
    folder: Path = tmp_path_factory.mktemp("prepared")
    return prepare(catalogue.locate("micro"), SEED, folder)
