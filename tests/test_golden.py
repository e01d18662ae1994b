"""The golden records are verified, and refused if stale, tampered with or contradicted by an oracle."""

import json
import math
import shutil

import numpy as np
import pytest

from gpt2_parity.contract import dtypes, limits
from gpt2_parity.contract.architecture import HParams, tap_names
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import digest, safetensors_mmap
from gpt2_parity.implementation import second_oracle
from gpt2_parity.model import catalogue, checkpoint, synthetic
from gpt2_parity.model.catalogue import Model
from gpt2_parity.model.tokenizer import Tokenizer
from gpt2_parity.reference import build_golden, golden, noise, records


@pytest.fixture
def copy(tmp_path, home):
    """micro and its records, to be tampered with."""
    micro = catalogue.locate("micro")
    return Model(
        "micro",
        shutil.copytree(micro.checkpoint, tmp_path / "micro"),
        shutil.copytree(micro.records, tmp_path / "records"),
    )


def edit_manifest(model, change):
    path = model.records / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    (model.records / golden.SEAL).write_text(golden.seal(path))


def edit_record(model, case, change):
    """Change a record and its hash in the manifest: a forgery that SHA-256 cannot notice."""
    path = model.records / f"{case}.safetensors"
    arrays = {name: np.array(array) for name, array in safetensors_mmap.read(path).items()}
    change(arrays)
    safetensors_mmap.write(path, arrays)
    edit_manifest(model, lambda m: m["cases"][case].update(sha256=digest.sha256(path)))


def test_the_shipped_records_hold_every_case_and_array(prepared):
    found = {record.name: record for record in prepared.records}
    assert list(found) == ["seed", "unconditional", "one_token", "full_context", "batch"]
    for record in found.values():
        batch, n = record.tokens.shape
        kept = len(record.arrays["positions"])
        assert record.logits.shape == (batch, n, 1000)
        assert record.logits.dtype == np.float64
        for name in tap_names(4):
            assert record.tap(name).shape[:2] == (batch, kept)
            assert record.tap(name).dtype == np.float64
        assert kept == min(n, records.KEPT)
        assert {0, n - 1} <= set(record.arrays["positions"].tolist())
        for dtype in dtypes.DTYPES:
            assert record.arrays[f"noise/{dtype}/taps"].shape == (noise.DRAWS, len(tap_names(4)))
            assert (record.arrays[f"noise/{dtype}/logits"] > 0).all()
        assert record.arrays["logits_tensorflow"].dtype == np.float32
    assert found["full_context"].tokens.shape == (1, 256)
    assert found["batch"].tokens.shape[0] == 4


def test_the_seed_prompt_is_continued_as_published(prepared):
    record = prepared.records[0]
    tokenizer = Tokenizer(catalogue.GOLDEN / "micro", 1000)
    assert tokenizer.decode(record.tokens[0].tolist()) == records.PROMPT
    assert tokenizer.decode(record.arrays["greedy"][0].tolist()) == records.CONTINUATION
    # decided by far more than float32 noise
    assert record.arrays["margins"].min() > limits.near_tie(record.noise("float32"))


def test_micro_was_really_trained():
    report = json.loads((catalogue.GOLDEN / "micro_training.json").read_text())
    assert report["held_out_nats_per_token"] < 0.75 * report["unigram_nats_per_token"]


def test_tensorflow_float32_is_as_close_as_its_noise_says(prepared):
    for record in prepared.records:
        difference = np.abs(record.arrays["logits_tensorflow"] - record.logits).max()
        assert 0 < difference <= limits.NOISE.most * record.noise("float32")


def test_noise_grows_with_the_unit_roundoff(prepared):
    for record in prepared.records:
        sizes = [record.noise(dtype) for dtype in ("float64", "float32", "float16", "bfloat16")]
        assert sizes == sorted(sizes)
        assert record.noise("float32") > 1e6 * record.noise("float64")


def test_the_stored_records_are_what_the_oracle_says_today(copy):
    build_golden.verify(copy)


@pytest.mark.parametrize("case", ["seed", "unconditional", "one_token", "full_context", "batch"])
def test_one_flipped_byte_in_a_record_is_refused(case, copy):
    path = copy.records / f"{case}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CannotJudge, match=f"{case}.safetensors: SHA-256.*golden build"):
        golden.read(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=99), "not a golden manifest of format"),
        (lambda m: m.update(cases={}), "format 1 .*cases"),
        (lambda m: m["checkpoint_sha256"].pop("vocab.bpe"), "SHA-256 of every checkpoint file"),
        (lambda m: m["checkpoint_sha256"].update({"vocab.bpe": "0" * 64}), "vocab.bpe: SHA-256"),
        (lambda m: m["cases"]["seed"].update(sha256="0" * 64), "seed.safetensors: SHA-256"),
        (lambda m: m["cases"].update(ghost=m["cases"]["seed"]), "ghost.safetensors: cannot be read"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change, message, copy):
    edit_manifest(copy, change)
    with pytest.raises(CannotJudge, match=message):
        golden.read(copy)


@pytest.mark.parametrize("text", ["", "[]", "not json"])
def test_a_manifest_that_is_none_names_the_remedy(text, copy):
    path = copy.records / "manifest.json"
    path.write_text(text)
    (copy.records / golden.SEAL).write_text(golden.seal(path))
    with pytest.raises(CannotJudge, match="parity golden build"):
        golden.read(copy)


@pytest.mark.parametrize("name", ["manifest.json", golden.SEAL])
def test_one_flipped_byte_in_the_manifest_or_its_seal_is_refused(name, copy):
    path = copy.records / name
    good = path.read_bytes()
    for i in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(CannotJudge, match=r"manifest\.json"):
            golden.read_manifest(copy)


def test_weights_that_changed_since_golden_was_made_are_told_so(tmp_path, home):
    """Records of a folder are found by the hash of its weights: damaged ones have none."""
    folder = tmp_path / "mine"
    shutil.copytree(catalogue.locate("micro").checkpoint, folder)
    before = catalogue.locate(str(folder)).records
    with pytest.raises(CannotJudge, match=r"no golden record \(No such file or directory\);"):
        golden.read_manifest(catalogue.locate(str(folder)))
    before.mkdir(parents=True)
    [weights] = folder.glob("*.data-*")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CannotJudge, match=f"of other weights: {before.name}; have the weights changed"):
        golden.read_manifest(catalogue.locate(str(folder)))


def test_no_records_at_all_name_the_remedy(copy):
    shutil.rmtree(copy.records)
    with pytest.raises(CannotJudge, match=r"no golden record.*parity golden build"):
        golden.read(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["logits"].__setitem__((0, 0, 0), a["logits"][0, 0, 0] + 1e-9), "logits is"),
        (lambda a: a["taps/h2/mlp/gelu"].__setitem__((0, 0, 0), 1.0), "h2/mlp/gelu is"),
        (lambda a: a["greedy"].__setitem__((0, 0), a["greedy"][0, 0] ^ 1), "greedy ids"),
        (lambda a: a["logits_tensorflow"].__iadd__(1e-3), "logits_tensorflow is"),
        (lambda a: a["noise/float32/logits"].__imul__(10), "float32 noise at logits is"),
    ],
)
def test_a_forged_record_is_found_by_recomputing(change, message, copy):
    edit_record(copy, "seed", change)
    golden.read(copy)  # the hashes agree: only the oracle can tell
    with pytest.raises(CannotJudge, match=message):
        build_golden.verify(copy)


@pytest.mark.parametrize("factor", [0.2, 0.44, 2.6, 5, math.nan])
def test_the_noise_of_a_record_may_be_that_of_another_kernel_and_no_more(factor, prepared):
    """0.44 to 2.6 is what OpenBLAS's kernels for other processors gave."""
    today = prepared.records[0]
    noise_of = {name: a * factor for name, a in today.arrays.items() if name == "noise/float32/taps"}
    stored = today._replace(arrays={**today.arrays, **noise_of})
    if 0.44 <= factor <= 2.6:
        build_golden._check_noise(stored, today)
    else:
        with pytest.raises(CannotJudge, match=r"float32 noise at embed is \S+ x the measured"):
            build_golden._check_noise(stored, today)


@pytest.mark.parametrize("name", ["logits_tensorflow", "taps/h0"])
def test_a_record_that_lacks_an_array_is_refused(name, copy):
    edit_record(copy, "seed", lambda a: a.pop(name))
    with pytest.raises(CannotJudge, match=f"lacks {name}"):
        golden.read(copy)


def test_oracles_that_disagree_write_nothing(copy):
    """The fault: a second oracle with one gain off by 1e-12."""

    def wrong(loaded, dtype):
        from gpt2_parity.reference import oracle

        def forward(tokens, tap):
            params = dict(loaded.params)
            params["h1/ln_1/g"] = params["h1/ln_1/g"].astype(np.float64) * (1 + 1e-12)
            return oracle.forward(params, loaded.hparams, tokens, tap)

        return forward

    before = {path.name: path.read_bytes() for path in copy.records.iterdir()}
    with pytest.raises(CannotJudge, match=r"the oracles disagree at .* nothing was written"):
        build_golden.build(copy, wrong)
    assert {path.name: path.read_bytes() for path in copy.records.iterdir()} == before
    assert sorted(path.name for path in copy.records.parent.iterdir()) == ["micro", "records"]


def test_an_oracle_that_taps_too_little_is_refused(prepared):
    truth = prepared.records[0]
    units = dict.fromkeys((*tap_names(4)[1:], "logits"), 0.5)
    with pytest.raises(CannotJudge, match="gave no embed"):
        build_golden.worst_of(truth, units)


def test_an_oracle_that_gives_nan_is_refused(copy):
    """NaN is no smaller than what stands before it in a list, so a plain maximum would pass over it."""
    from gpt2_parity.reference import oracle

    def wrong(loaded, dtype):
        def forward(tokens, tap):
            def spoil(name, value):
                tap(name, np.full_like(value, np.nan) if name == "h2/ln_2" else value)

            return oracle.forward(loaded.params, loaded.hparams, tokens, spoil)

        return forward

    with pytest.raises(CannotJudge, match=r"disagree at h2/ln_2 by nan"):
        build_golden.build(copy, wrong)


def test_evaluations_side_by_side_are_what_each_is_alone(prepared):
    from gpt2_parity.reference import oracle

    params, hparams = prepared.checkpoint.params, prepared.checkpoint.hparams
    tokens = prepared.records[0].tokens
    together = {}
    for name, i, value in oracle.stream(params, hparams, tokens, noise.draws("bfloat16", 3)[:2]):
        together[name, i] = value
    for i in range(2):
        rng = np.random.default_rng([3, i])
        alone = {}
        logits = oracle.forward(
            params, hparams, tokens, alone.__setitem__, noise.arithmetic("bfloat16", rng)
        )
        np.testing.assert_array_equal(together["logits", i], logits)
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name, i], value)
    assert (together["logits", 0] != together["logits", 1]).any()


def test_the_oracle_keeps_no_more_than_it_needs():
    """Memory beyond the mapped weights is of one weight and a few activations, however many layers."""
    import tracemalloc

    from gpt2_parity.reference import oracle

    def peak(n_layer, keep):
        hparams = synthetic.OFFICIAL["124M"]._replace(n_vocab=20000, n_embd=192, n_layer=n_layer)
        params = synthetic.generate(hparams)
        tokens = np.arange(32, dtype=np.int32)[None]
        kept = []
        tracemalloc.start()
        for _, _, value in oracle.stream(params, hparams, tokens):
            kept += [value] * keep  # the fault: a caller, or the oracle, that keeps what it has seen
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(8, False) < 1.1 * peak(1, False) < 2.5 * 8 * 192 * oracle.VOCABULARY
    assert peak(8, True) > 1.1 * peak(1, True)


@pytest.mark.xdist_group("tensorflow")  # it takes seconds to import, and so once is enough
def test_building_anew_gives_the_same_records(copy):
    """TensorFlow runs in this very process here, as it does in parity golden build."""
    pytest.importorskip("tensorflow")
    old = {
        name: safetensors_mmap.read(copy.records / f"{name}.safetensors") for name in ("seed", "batch")
    }
    old = {case: {name: np.array(a) for name, a in arrays.items()} for case, arrays in old.items()}
    manifest = build_golden.build(copy, second_oracle.tensorflow)
    assert all(entry.agreement_noise_units <= 8 for entry in manifest.cases.values())
    build_golden.verify(copy)
    for case, arrays in old.items():
        new = safetensors_mmap.read(copy.records / f"{case}.safetensors")
        assert new.keys() == arrays.keys()
        np.testing.assert_allclose(new["logits"], arrays["logits"], rtol=1e-11, atol=1e-11)
        np.testing.assert_array_equal(new["greedy"], arrays["greedy"])
    assert checkpoint.load(copy.checkpoint, manifest.checkpoint_sha256).hparams.n_layer == 4


def test_fresh_tokens_differ_by_seed_and_repeat_by_seed(prepared):
    hparams = prepared.checkpoint.hparams
    first, again, other = (records.fresh_case(hparams, seed).tokens for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 5, 24, 1024])
def test_fresh_tokens_have_what_some_take_for_padding(n_ctx):
    hparams = HParams(n_vocab=50257, n_ctx=n_ctx, n_embd=4, n_head=2, n_layer=1)
    tokens = records.fresh_case(hparams, 3).tokens
    assert tokens.shape == (2, min(24, n_ctx))
    for row, id_ in ((0, 0), (1, 50256)):
        assert tokens[row, 0] == id_
        assert tokens[row, tokens.shape[1] // 2] == id_
    if n_ctx >= 5:
        assert all({0, 50256} <= set(row) for row in tokens.tolist())
        assert tokens[:, -1].tolist() == [50256, 0]
