"""OpenAI's own code as an oracle, with our stand-in for the clone; and the comparison with peers."""

import importlib.util
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import peers
from gpt2_parity.contract import limits
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest
from gpt2_parity.implementation import second_oracle
from gpt2_parity.model import catalogue
from gpt2_parity.model.catalogue import Model
from gpt2_parity.reference import build_golden, golden, openai_source

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)
STAND_IN = Path(__file__).parent / "official_stand_in"


@pytest.fixture
def planted(tmp_path):
    """A copy of the stand-in with one edit."""

    def plant(old: str, new: str) -> Path:
        source = shutil.copytree(STAND_IN, Path(tempfile.mkdtemp(dir=tmp_path)) / "source")
        text = (source / openai_source.MODEL).read_text()
        assert text.count(old) == 1, old
        (source / openai_source.MODEL).write_text(text.replace(old, new))
        return source

    return plant


@pytest.fixture
def copy(tmp_path, home):
    micro = catalogue.locate("micro")
    return Model("micro", micro.checkpoint, shutil.copytree(micro.records, tmp_path / "records"))


@pytest.mark.xdist_group("tensorflow")  # it takes seconds to import, and so once is enough
def test_its_logits_enter_the_agreement_figure(copy):
    before = sorted(path.name for path in copy.records.iterdir())
    manifest = build_golden.build(copy, second_oracle.tensorflow, official_source=STAND_IN)
    for entry in manifest.cases.values():
        # real float32 noise: neither nothing nor too much
        assert 0 < entry.official_noise_units <= limits.NOISE.most
        assert 0 < entry.official_logits_max_abs < 1e-3
    sha = digest.sha256(STAND_IN / openai_source.MODEL)
    assert manifest.oracles[2] == (
        f"TensorFlow float32 (src/model.py, SHA-256 {sha}, NOT the file that OpenAI published)"
    )
    assert golden.read_manifest(copy) == manifest
    assert sorted(path.name for path in copy.records.iterdir()) == before
    golden.read(copy)


def test_a_planted_error_makes_the_build_refuse(planted, copy):
    """The smallest of the usual mistakes: epsilon 1e-6."""
    before = {path.name: path.read_bytes() for path in copy.records.iterdir()}
    with pytest.raises(CannotJudge, match=r"OpenAI's src/model.py disagrees .* nothing was written"):
        build_golden.build(
            copy, second_oracle.tensorflow, official_source=planted("variance + 1e-5", "variance + 1e-6")
        )
    assert {path.name: path.read_bytes() for path in copy.records.iterdir()} == before


UNFIT = {
    "names": ('"wpe", [', '"positions", [', "its variables are not the checkpoint's .*positions, wpe"),
    "surface": ('return {"logits":', 'return {"other":', "cannot be run .KeyError: 'logits'"),
    "import": ("import math\n", "import math, no_such\n", "cannot be run .ModuleNotFoundError"),
    "shape": ('{"logits": logits,', '{"logits": logits[:, -1:],', "logits are float32"),
    "absent": ("", "", "src/model.py: no such file; --official-source is a clone"),
    "death": ("import math\n", "import math, os\nos._exit(3)\n", ""),
}


def the_stand_in_for_contrib_ends_with_the_import():
    import tensorflow
    import tensorflow.compat.v1 as tf

    before = sys.modules["tensorflow"]
    module = openai_source.load(STAND_IN / openai_source.MODEL, tf)
    assert sys.modules["tensorflow"] is before is tensorflow
    assert not any("contrib" in name for name in sys.modules if name.startswith("tensorflow.c"))
    assert module.default_hparams().override_from_dict({"n_ctx": 7}).n_ctx == 7


def test_a_source_that_cannot_serve_is_named(planted, prepared):
    """One process for all of them: TensorFlow takes seconds to start. The last one ends it."""
    tokens = {"x": np.zeros((1, 3), np.int32)}
    loaded = prepared.checkpoint
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(the_stand_in_for_contrib_ends_with_the_import).result()
        for name, (old, new, message) in UNFIT.items():
            source = planted(old, new) if old else Path("nowhere")
            job = pool.submit(openai_source.evaluate, source, loaded.weights, loaded.hparams, tokens)
            if name == "death":
                with pytest.raises(BrokenProcessPool):
                    job.result()
                continue
            with pytest.raises(CannotJudge, match=message) as caught:
                job.result()
            assert str(source / openai_source.MODEL) in str(caught.value)


def die(*_):
    os._exit(3)


def test_a_source_that_kills_its_process_is_named(prepared, monkeypatch):
    monkeypatch.setattr(openai_source, "evaluate", die)
    with pytest.raises(CannotJudge, match="the process running it died"):
        openai_source.logits(STAND_IN, prepared.checkpoint, {})


def test_peers_are_told_apart_by_their_distance(prepared, capsys):
    def truth(loaded, tokens):
        return {r.name: r.logits.astype(np.float32) for r in prepared.records if r.name in tokens}

    def wrong(loaded, tokens):
        return {name: logits + 1e-3 for name, logits in truth(loaded, tokens).items()}

    def nan(loaded, tokens):
        return {name: logits * np.nan for name, logits in truth(loaded, tokens).items()}

    def absent(loaded, tokens):
        raise CannotJudge("not installed")

    assert peers.main({"truth": truth}) == 0
    assert peers.main({"truth": truth, "wrong": wrong}) == 1
    assert peers.main({"nan": nan}) == 1
    assert peers.main({"truth": truth, "absent": absent}) == 2
    assert peers.main({}) == 2
    assert "did not run: not installed" in capsys.readouterr().out
