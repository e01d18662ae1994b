"""Implementations without a cache, and those that write into the cache that they are given."""

import numpy as np
import pytest

from examine import FLOAT32, examine
from faults import Plain
from gpt2_parity.checks.registry import CAPABILITIES
from gpt2_parity.contract.architecture import tap_names
from gpt2_parity.contract.interface import ContractBroken
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.implementation import signatures
from gpt2_parity.implementation.without_cache import WithoutCache, with_cache
from gpt2_parity.verdict import explain

SOME = {"seed", "batch", "fresh"}


class Anew(Plain):
    """Computes all tokens in each call; its cache is the tokens."""

    generate = None

    def forward(self, model, tokens, past=None, tap=None):
        whole = tokens if past is None else np.concatenate([past, tokens], axis=1)
        n = tokens.shape[1]
        cut = tap and (lambda name, x: tap(name, x[:, -n:]))
        if tokens.size == 0:
            raise ValueError("no tokens")
        return super().forward(model, whole, None, cut)[0][:, -n:], whole


class Bare(Plain):
    """Has no cache and says so: forward(model, tokens, tap) and no past."""

    CACHE = None
    generate = None

    def forward(self, model, tokens, *, tap=None):
        return super().forward(model, tokens, None, tap)[0]


class BlackBox(Plain):
    """Nothing but forward(model, tokens)."""

    CACHE, TAPS, generate = None, (), None

    def forward(self, model, tokens):
        return super().forward(model, tokens)[0]


class InPlace(Plain):
    """Keeps the keys of all positions in one array for each layer, and writes into it."""

    generate = None

    def forward(self, model, tokens, past=None, tap=None):
        logits, present = super().forward(model, tokens, past and past["layers"], tap)
        cache = past or {}
        cache["layers"] = present
        return logits, cache


@pytest.mark.parametrize("kind", [Bare, BlackBox])
def test_what_has_no_cache_and_says_so_passes(kind, prepared):
    rows = examine(with_cache(kind()), prepared, only=SOME)
    assert [explain.location(row) for row in rows if row.verdict == "fail"] == []
    assert exit_code(rows) == 0
    assert any(row.check == "kv_cache" for row in rows)
    assert not any(row.metric.endswith("_decode") for row in rows)
    local = {row.scope for row in rows if row.check == "local"}
    assert local == ({*tap_names(4), "logits"} if kind is Bare else set())


def test_its_calls_are_still_judged(prepared):
    """A wrong mask is found where nothing but forward(model, tokens) exists."""

    class Wrong(BlackBox):
        def forward(self, model, tokens):
            logits = super().forward(model, tokens)
            return logits * (1 + 0.01 * (tokens.shape[1] > 3))

    rows = examine(with_cache(Wrong()), prepared, only=SOME)
    assert {"logits", "kv_cache"} <= {row.check for row in rows if row.verdict == "fail"}


def test_it_refuses_what_it_has_no_room_for_and_no_tokens():
    impl = with_cache(BlackBox())
    hparams = type("HParams", (), {"n_ctx": 4})
    impl.loaded.append(("model", hparams.n_ctx))
    for past, n in ((None, 5), (np.zeros((1, 3), np.int32), 2), (None, 0)):
        with pytest.raises(ValueError, match="tokens"):
            impl.forward("model", np.zeros((1, n), np.int32), past)


def test_who_says_nothing_keeps_its_own_forward():
    plain = Plain()
    assert with_cache(plain) is plain
    assert isinstance(with_cache(Bare()), WithoutCache)
    assert signatures.check(BlackBox(), CAPABILITIES)
    with pytest.raises(ContractBroken, match="CACHE is 'sometimes'"):
        signatures.check(type("Odd", (Plain,), {"CACHE": "sometimes"})(), CAPABILITIES)


def test_a_cache_of_tokens_is_recognised_where_attention_seems_wrong_in_decode(prepared):
    """What was computed anew was rounded otherwise than what had been tapped."""

    class Noisy(Anew):
        @staticmethod
        def linear(x, w, b, at):
            y = Plain.linear(x, w, b, at)
            return y * np.float32(1 + 1e-5 * x.shape[1]) if at.name.endswith("c_attn") else y

    rows = examine(Noisy(), prepared, only=SOME)
    local = [row for row in rows if row.check == "local" and row.scope.endswith("attn/heads")]
    told = [explain.detail(row) for row in local if row.verdict == "fail"]
    assert told
    assert all("declare CACHE = None" in text for text in told)


def test_a_cache_written_in_place_is_called_that(prepared):
    rows = examine(InPlace(), prepared, only=SOME)
    failed = [row for row in rows if row.verdict == "fail" and row.check == "kv_cache"]
    assert failed
    assert any("written in place" in explain.detail(row) for row in failed)


def test_declared_it_passes(prepared):
    class Declared(InPlace):
        CACHE = "in place"

    rows = examine(Declared(), prepared, only=SOME)
    assert [explain.location(row) for row in rows if row.verdict == "fail"] == []
    assert not any(row.scope.startswith("continued") for row in rows)
    assert FLOAT32 in signatures.check(Declared(), CAPABILITIES)
