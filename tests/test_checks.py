"""Every check passes a right implementation and fails a faulty one; none passes without measurements."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import faults
import variants
from examine import FLOAT32, examine
from faults import BLACK_BOX, FAULTS, IN_LAYER, Fault, Plain, named, plant, source
from faults.edits import NUMPY
from faults.own_weights import those_of
from faults.shelf import altered, only_at
from gpt2_parity.checks import weights
from gpt2_parity.checks.registry import CHECKS
from gpt2_parity.contract.architecture import HParams, graph, tap_names
from gpt2_parity.contract.dtypes import round_nearest
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import Plan
from gpt2_parity.contract.rows import exit_code
from gpt2_parity.implementation import operation
from gpt2_parity.implementation.discovery import find
from gpt2_parity.implementation.loaded import Loaded
from gpt2_parity.mistakes.registry import MISTAKES
from gpt2_parity.model import synthetic
from gpt2_parity.reference import oracle, records, rounding
from gpt2_parity.verdict import explain
from score import culprits, diagnoses, score, try_variant
from variants import VARIANTS, kept, load

SCORE = Path(__file__).parent / "score.py"
QUICK = {"seed", "batch", "full_context"}  # cases enough to trip every fault


SPECIMENS = ("numpy", "torch")


def offering():
    """Implementations of which every check asks something."""
    return [*(find(name).load() for name in SPECIMENS), Plain.with_("own", weights=those_of)]


def offers(check):
    """An implementation of which a check asks something: one that has its capability."""
    capability = CHECKS[check].capability
    return next(each for each in offering() if capability is None or hasattr(each, capability.name))


def without_capability(specimen):
    """The checks whose capability a specimen does not offer."""
    checks = [check for check in CHECKS.values() if check.capability and check.name != "greedy"]
    return {check.name for check in checks if not hasattr(specimen, check.capability.name)}


def failed(rows):
    return {row.check for row in rows if row.verdict == "fail"}


def test_the_specimen_as_it_is_passes_everything(prepared):
    numpy = find("numpy").load()
    rows = examine(numpy, prepared)
    assert failed(rows) == set()
    made = set(CHECKS) - without_capability(numpy) - {"search"}  # which is not asked for here
    assert {row.check for row in rows if row.verdict == "pass"} == made
    assert exit_code(rows) == 0


# For each check the first fault that must trip it; nox -s faults tries all faults.
OF_EACH_CHECK = {  # the search has conditioned faults, in test_search.py and conditions.py
    check: next(fault for fault in FAULTS if check in fault.trips)
    for check in CHECKS
    if check != "search"
}


@pytest.mark.parametrize(
    "fault", {f.name: f for f in OF_EACH_CHECK.values()}.values(), ids=lambda fault: fault.name
)
def test_a_planted_fault_is_caught_blamed_and_diagnosed(fault: Fault):
    found = score(fault, "micro", QUICK)
    assert found.killed
    assert found.tripped, fault.trips
    assert found.blamed, found.blame
    assert found.diagnosed is not False, found.diagnosis


@pytest.mark.parametrize("spoilt", [3.0, np.nan])
def test_the_local_check_sees_the_same_whatever_its_blocks(prepared, monkeypatch, spoilt):
    """A wrong or missing value in the middle of the logits, with wte in one block and in many."""
    record, checkpoint = prepared.records[0], prepared.checkpoint
    columns = checkpoint.hparams.n_vocab
    loaded = Loaded.load(find("numpy").load(), FLOAT32, checkpoint.weights, checkpoint.hparams, [record])
    run = loaded.prefill(record)
    run.logits[0, 1, columns // 2] = spoilt
    head = graph(loaded.hparams.n_layer)[-1]
    captured = run.taps | {"logits": run.logits}
    scene = operation.Examined(loaded, record, captured, head, "rounding_units")
    assert len(scene.blocks()) == 1
    [whole] = operation.examine([scene])
    assert whole[1]["at"] == [0, 1, columns // 2]
    monkeypatch.setattr(operation, "BLOCK", 7 * loaded.hparams.n_embd)
    assert len(scene.blocks()) > 9
    np.testing.assert_equal(operation.examine([scene]), [whole])


def test_segments_go_one_after_the_other_and_operations_side_by_side(prepared, monkeypatch):
    """A segment may be a whole layer: several at once would take the memory of several."""
    side_by_side = []
    each = operation.parallel.each

    def watched(work, parts):
        side_by_side.extend(scene.op.name for scene, _ in parts)
        return each(work, parts)

    monkeypatch.setattr(operation.parallel, "each", watched)
    record, checkpoint = prepared.records[0], prepared.checkpoint
    loaded = Loaded.load(find("numpy").load(), FLOAT32, checkpoint.weights, checkpoint.hparams, [record])
    run = loaded.prefill(record)
    outputs = {name: run.taps[name] for name in ("embed", "h0", "h1", "h1/ln_1")}
    ln_1, h1 = (op for op in graph(loaded.hparams.n_layer) if op.name in ("h1", "h1/ln_1"))
    segment = operation.Examined(loaded, record, outputs, h1, "segment_noise_units")
    alone = operation.Examined(loaded, record, outputs, ln_1, "rounding_units")
    found = operation.examine([segment, alone])
    assert side_by_side == ["h1/ln_1"]
    assert "recomputed_from" in found[0][1]
    assert "right" in found[1][1]


def test_a_long_segment_makes_each_operation_once(monkeypatch):
    """Each block asks for its residual twice: made anew each time, a deep model would take for ever."""
    hparams = HParams(n_vocab=50, n_ctx=16, n_embd=8, n_head=2, n_layer=48)
    params, tokens = synthetic.generate(hparams), np.arange(9, dtype=np.int32)[None]
    case = records.Record("fresh", {"tokens": tokens}, 48)
    loaded = Loaded(None, None, FLOAT32, params, hparams, [case])
    last = next(op for op in graph(48) if op.name == "ln_f")
    scene = operation.Examined(loaded, case, {}, last, "segment_noise_units")
    right, tapped = scene.recompute(oracle.EXACT, []), {}
    oracle.forward(params, hparams, tokens, tap=tapped.__setitem__)
    np.testing.assert_allclose(right, tapped["ln_f"], rtol=1e-12)
    scene = scene._replace(captured={"ln_f": right})
    calls = []
    apply = oracle.apply
    monkeypatch.setattr(oracle, "apply", lambda op, *rest: calls.append(op.name) or apply(op, *rest))
    value, evidence = scene.segment()
    assert value == 0
    assert evidence == {"recomputed_from": []}  # the tokens
    assert len(calls) == (len(graph(48)) - 1) * (1 + operation.SEGMENT_DRAWS)


@pytest.mark.parametrize("token", [0, 333, 990])
def test_a_nan_in_any_part_of_the_embedding_fails_the_weights(token):
    """The vocabulary is looked up in four parts: NaN in one is not forgotten over the next."""
    hparams = HParams(n_vocab=1000, n_ctx=64, n_embd=8, n_head=2, n_layer=1)
    checkpoint = kept(hparams, synthetic.generate(hparams))

    def nan_in_lookup(tokens, *rest):
        return np.where(tokens[..., None] == token, np.nan, Plain.embed(tokens, *rest))

    spoilt = Plain.with_("nan_in_lookup", embed=nan_in_lookup)
    loaded = Loaded.load(spoilt, FLOAT32, checkpoint.weights, hparams, [])
    plan = Plan(hparams, (), ("embed",))
    [found] = CHECKS["weights"].measure(loaded, plan)
    assert np.isnan(found.value)
    assert found.evidence["token"] == token


@pytest.mark.parametrize("kind", ["linear", "layer_norm", "attention", "gelu"])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e13, 1e25])
def test_bounds_in_float32_are_what_they_are_in_float64(monkeypatch, kind, size):
    """To a per cent, with outliers and without; and never NaN, infinite or nothing."""
    hparams = HParams(n_vocab=50, n_ctx=16, n_embd=8, n_head=2, n_layer=1)
    params = synthetic.generate(hparams)
    op = next(op for op in graph(1) if op.kind == kind)
    x = np.random.default_rng(0).normal(size=(2, 9, 24 if kind == "attention" else 8))
    x[..., 3] *= size
    result = oracle.apply(op, [x], params, hparams, np.zeros((2, 9), np.int32))

    def bound():
        return rounding.bound(op, [x], result, params, hparams, rounding.Roundoff.of("float64"))

    single = bound()
    assert np.isfinite(single).all()
    assert (single > 0).all()
    monkeypatch.setattr(rounding, "HUGE", 0)
    np.testing.assert_allclose(single, bound(), rtol=0.01)


def test_nan_in_one_part_of_the_embedding_is_not_forgotten(prepared, monkeypatch):
    def forgetful(real, model, tokens, past=None, tap=None):
        spoilt = tap and (lambda n, x: tap(n, np.where((tokens == 300)[..., None], np.nan, x)))
        return real(model, tokens, past, spoilt)

    monkeypatch.setattr(weights, "ROWS", 1)
    rows = examine(wrapped(forgetful), prepared, only={"one_token"})
    [found] = [row for row in rows if row.check == "weights"]
    assert found.status == "nan"


def test_every_check_has_a_fault_that_trips_it():
    """Each check is named by a fault's trips, and the test above holds the fault to it."""
    assert set().union(*(fault.trips for fault in FAULTS)) == set(CHECKS) - {"search"}


def test_a_fault_that_does_not_apply_is_an_error():
    absent = Fault("absent", frozenset(), "", frozenset(), specimen=NUMPY, edits=[("no such text", "")])
    with pytest.raises(ValueError, match="0 times"):
        source(absent)
    with pytest.raises(KeyError, match="no_such_operation"):
        Plain.with_("absent", no_such_operation=print)


def test_every_fault_applies():
    for fault in [*FAULTS, *IN_LAYER]:
        if fault.specimen:
            compile(source(fault), fault.name, "exec")
        else:
            assert plant(fault).__name__ == fault.name


def test_what_is_for_a_gpu_applies_to_the_specimens_of_today(tmp_path):
    """It runs where there is a GPU; that its edits still fit can be seen anywhere."""
    torch = pytest.importorskip("torch")
    for fault in faults.ON_CUDA:
        compile(source(fault), fault.name, "exec")
    for variant in variants.ON_CUDA:
        pytest.importorskip(variant.specimen)
        assert variant.target.device == "cuda"
        load(variant, tmp_path)
    if torch.cuda.is_available():
        assert try_variant("torch_plain", "micro", 1, "cuda").alarms == []
    else:
        assert subprocess.run([sys.executable, SCORE, "--device", "cuda"], check=False).returncode == 2


def test_a_name_that_is_on_no_shelf_is_scored_neither_right_nor_wrong():
    done = subprocess.run(
        [sys.executable, SCORE, "--only", "nonesuch"], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"nothing on the shelves has 'nonesuch' in its name" in done.stdout


def test_the_shelves_are_full():
    """As many as were promised, no two of a name."""
    assert len({fault.name for fault in faults.ON_CUDA}) == len(faults.ON_CUDA) >= 9
    assert len({variant.name for variant in variants.ON_CUDA}) == len(variants.ON_CUDA) >= 25
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 70
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) >= 25
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 25
    assert len({fault.name for fault in IN_LAYER}) == len(IN_LAYER) >= 10
    named = {fault.diagnosis for fault in [*FAULTS, *IN_LAYER]} - {""}
    assert named <= {mistake.name for mistake in MISTAKES}


IN_NUMPY = [v.name for v in VARIANTS if v.specimen in ("plain", "numpy")]
SLOW = "numpy_sums_one_by_one"


@pytest.mark.parametrize("name", [name for name in IN_NUMPY if name != SLOW])
def test_an_honest_variant_does_not_alarm(name):
    """Those in NumPy on one model, one seed; nox -s faults tries them all on three with 20."""
    assert try_variant(name, "outliers", seeds=1).alarms == []


@pytest.mark.parametrize(
    "name",
    [v.name for v in VARIANTS if v.specimen == "torch" and v.target.dtype == "bfloat16"]
    + ["torch_every_step_rounded_float16", "torch_attention_by_hand"],
)
def test_an_honest_torch_variant_does_not_alarm(name):
    pytest.importorskip("torch")
    assert try_variant(name, "outliers", seeds=1).alarms == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_residual_rounded_for_the_tap_only_is_within_the_limit_of_its_sum(dtype):
    """As XLA has it on a GPU. |x| is at most |y| + |branch|, so all three roundings are at most 2."""
    rng = np.random.default_rng(0)
    kept = rng.normal(size=(1, 64, 512)).astype(np.float32)  # x and branch as they are added
    branch = (-kept + 1e-3 * rng.normal(size=kept.shape)).astype(np.float32)
    taps = [round_nearest(array, dtype).astype(float) for array in (kept, branch)]
    got = round_nearest(kept + branch, dtype).astype(float)
    hparams = HParams(n_vocab=300, n_ctx=64, n_embd=512, n_head=4, n_layer=1)
    op = next(op for op in graph(1) if op.kind == "add")
    exact = taps[0] + taps[1]
    biases = {"h0/attn/c_proj/b": np.zeros(512)}
    size = rounding.bound(op, taps, exact, biases, hparams, rounding.Roundoff.of(dtype))
    assert 1.5 < rounding.units(got, exact, size).max() <= rounding.LIMITS.of("add", dtype).most


# Each check with the first and the last one.
BESIDE = {name: {"logits", name, "bad_tokens"} for name in CHECKS}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_compares_nothing_fails(name, prepared, monkeypatch):
    nothing = CHECKS[name]._replace(measure=lambda loaded, plan: iter(()))
    monkeypatch.setitem(CHECKS, name, nothing)
    rows = examine(offers(name), prepared, only=QUICK, checks=BESIDE[name])
    assert {row.check for row in rows} == BESIDE[name]
    assert failed(rows) == {name}
    assert {row.status for row in rows if row.verdict == "fail"} == {"missing"}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_breaks_off_fails_and_the_others_are_kept(name, prepared, monkeypatch):
    original = CHECKS[name].measure

    def measure(loaded, plan):
        yield next(iter(original(loaded, plan)))
        raise RuntimeError("broke off")

    monkeypatch.setitem(CHECKS, name, CHECKS[name]._replace(measure=measure))
    rows = examine(offers(name), prepared, only=QUICK, checks=BESIDE[name])
    assert {row.check for row in rows} == BESIDE[name]
    assert failed(rows) == {name}
    assert any("broke off" in row.evidence["error"] for row in rows if row.verdict == "fail")


def test_every_check_expects_something_of_micro_and_says_what_it_establishes(prepared):
    examined = [examine(each, prepared, only=QUICK) for each in offering()]
    examined.append(examine(offers("logits"), prepared, checks={"search"}))
    assert {row.check for rows in examined for row in rows} == set(CHECKS)
    assert all(len(check.establishes) > 30 for check in CHECKS.values())


def wrapped(forward, **extra):
    """The NumPy specimen with another forward, as a namespace that looks like its module."""
    from types import SimpleNamespace

    real = find("numpy").load()
    names = ("targets", "load", "numpy", "generate", "TAPS")
    chosen = {name: getattr(real, name) for name in names} | {"__name__": "wrapped"} | extra
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return SimpleNamespace(**chosen, forward=lambda *args, **kw: forward(real.forward, *args, **kw))


def test_short_logits_fail_by_shape(prepared):
    def last_only(real, model, tokens, past=None, tap=None):
        logits, present = real(model, tokens, past, tap)
        return logits[:, -1:], present

    rows = examine(wrapped(last_only), prepared, only=QUICK)
    assert "logits" in failed(rows)
    assert any("the contract says" in explain.detail(row) for row in rows)


def test_a_tap_of_an_unknown_name_fails(prepared):
    def renamed(real, model, tokens, past=None, tap=None):
        other = tap and (lambda name, value: tap(name.replace("h1/", "h01/"), value))
        return real(model, tokens, past, other)

    rows = examine(wrapped(renamed), prepared, only=QUICK)
    assert {"activations", "taps"} <= failed(rows)
    assert any("'h01/ln_1' is not in the contract" in explain.detail(row) for row in rows)


def test_a_black_box_is_judged_by_its_answer_and_says_what_was_not_localised(prepared):
    def silent(real, model, tokens, past=None, tap=None):
        return real(model, tokens, past)

    rows = examine(wrapped(silent, TAPS=None, generate=None), prepared)
    assert failed(rows) == set()
    assert "local" not in {row.check for row in rows}
    silent_taps = {row.scope for row in rows if row.verdict == "unlocalised"}
    assert silent_taps == set(tap_names(4))
    assert [row.metric for row in rows if row.check == "weights"] == ["noise_units"]
    assert exit_code(rows) == 0


def test_a_tap_that_comes_only_sometimes_fails(prepared):
    def fickle(real, model, tokens, past=None, tap=None):
        some = tap and (lambda name, x: tap(name, x) if tokens.shape[0] == 1 or name != "ln_f" else None)
        return real(model, tokens, past, some)

    rows = examine(wrapped(fickle, TAPS=None), prepared)
    rows = [row for row in rows if row.check == "activations" and row.verdict == "fail"]
    assert {(row.case, row.scope) for row in rows} == {("batch", "ln_f"), ("fresh", "ln_f")}


def test_segments_between_missing_taps_are_judged_by_their_own_noise(prepared):
    """An honest box that taps only the blocks passes; one with a wrong GELU fails at each block."""
    some = ["embed", "h0", "h1", "h2", "h3"]

    def sparse(real, model, tokens, past=None, tap=None):
        return real(model, tokens, past, tap and (lambda n, x: tap(n, x) if n in some else None))

    rows = [row for row in examine(wrapped(sparse, TAPS=some), prepared) if row.check == "local"]
    assert {row.metric.removesuffix("_decode") for row in rows if row.scope == "h1"} == {
        "segment_noise_units"
    }
    assert {row.verdict for row in rows} == {"pass"}

    def wrong(real, model, tokens, past=None, tap=None):
        params = {**model.params, "h2/mlp/c_fc/b": model.params["h2/mlp/c_fc/b"] * 1.01}
        return sparse(real, model._replace(params=params), tokens, past, tap)

    rows = examine(wrapped(wrong, TAPS=some), prepared)
    assert {row.scope for row in rows if row.check == "local" and row.verdict == "fail"} == {"h2"}
    (told,) = explain.paragraphs(rows).values()
    assert told[0].startswith("h2 is wrong: an operation between the preceding taps and this one")
    assert "recomputed from h1" in told[0]
    assert "residual addition" not in told[0]  # which is right: it only comes last


def test_several_faults_at_once_are_all_named(prepared):
    both = Plain.with_("both", **named("erf_gelu").replaced, **named("cache_stale_keys").replaced)
    rows = examine(both, prepared, only=QUICK)
    assert set(culprits(rows, 4)) == {"h*/mlp/gelu", "h*/attn/heads (decode)"}
    assert diagnoses(rows) == ["cache_stale", "erf_gelu"]


def test_a_wrong_embedding_row_of_a_black_box_is_told_by_its_token(prepared):
    rows = examine(plant(named("embedding_row_lost_in_a_black_box")), prepared)
    assert {row.check for row in rows if row.verdict == "fail"} == {"weights"}
    (told,) = explain.paragraphs(rows).values()
    assert told[0].startswith("embed is at fault. At worst (check weights, case all_tokens, embed): ")
    assert "token 333 at position 77" in told[0]  # 333 = 256 + 77, in the second row of n_ctx tokens


def sealed(fault):
    """The fault in an implementation that taps nothing."""
    return Plain.with_(fault.name, **{**fault.replaced, **BLACK_BOX})


THROUGH_THE_CACHE = ("logits", "kv_cache", "batch", "greedy")


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS if fault.name.startswith("cache_")])
def test_a_fault_of_the_cache_of_a_black_box_is_blamed_on_the_cache(name, prepared):
    """Not on what also goes through it: batches in chunks, greedy decoding. And it shows there."""
    rows = examine(sealed(named(name)), prepared, only=QUICK, checks=THROUGH_THE_CACHE)
    (told,) = explain.paragraphs(rows).values()
    assert told[0].startswith("cache is at fault")
    assert "At worst (check kv cache, " in told[0]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nan_in_one_logit", "case seed, logits): NaN"),  # not randomness, though NaN is not NaN
        ("float16_result", "kl noise units"),  # nor a batch that rounds otherwise
        ("sums_in_bfloat16", "kl noise units"),  # nor a cache
        ("only_last_position", "kl noise units"),
        ("output_of_wrong_width", "the contract says floating"),
    ],
)
def test_what_is_wrong_in_a_single_row_is_blamed_on_nothing_else(name, shown, prepared):
    rows = examine(sealed(named(name)), prepared, only={"seed"})
    (told,) = explain.paragraphs(rows).values()
    assert told[0].startswith("logits is at fault")
    assert shown in told[0]


def test_a_wider_computation_than_declared_is_told_and_passes(tmp_path, prepared):
    found = next(variant for variant in VARIANTS if variant.name == "numpy_all_in_float64")
    rows = examine(load(found, tmp_path), prepared, only=QUICK)
    told = {explain.detail(row) for row in rows if row.check == "precision"}
    assert told == {"measured float64, declared float32: wider than declared"}
    assert failed(rows) == set()


def test_a_mistake_that_nobody_knows_is_said_to_be_unexplained(prepared):
    strange = Plain.with_("strange", gelu=lambda x, at: Plain.gelu(x, at) * (1 + 0.02 * np.sin(9 * x)))
    rows = examine(strange, prepared, only=QUICK)
    failed = [row for row in rows if explain.diagnosis(row)]
    assert {row.mistake for row in failed} == {""}
    assert all("nearest" in row.evidence for row in failed)


def test_a_column_wrong_in_an_unknown_way_is_no_single_weight(prepared):
    """At a single position, which two of the cases have, any weight of the column would explain it."""

    def odd(x, w, b, at):
        y = x @ w + b
        return np.where(np.arange(y.shape[-1]) == 5, y + 0.1 * np.sin(9 * y), y)

    rows = examine(Plain.with_("odd", linear=only_at("h1/attn/c_attn", "linear", odd)), prepared)
    failed = [row for row in rows if row.check == "local" and row.verdict == "fail"]
    assert {row.case for row in failed} >= {"unconditional", "one_token", "seed"}
    assert diagnoses(rows) == ["?"]


def test_a_few_wrong_places_are_no_rounding(prepared):
    """Of what rounds, the middle error counts: right places must not speak for a wrong one."""

    def wrong_at_3(heads):
        return np.where(np.arange(heads.shape[1])[:, None] == 3, 1.2 * heads, heads)

    few = Plain.with_("few", attention=altered("attention", wrong_at_3))
    rows = examine(few, prepared, only=QUICK)
    assert diagnoses(rows) == ["?"]


def test_the_story_says_what_where_how_much_and_why(prepared):
    rows = examine(plant(named("erf_gelu")), prepared, only=QUICK)
    (told,) = explain.paragraphs(rows).values()
    first = told[0]
    assert first.startswith("h*/mlp/gelu introduces an error")
    for words in ("rounding units", "stays below 16", "erf instead of tanh GELU explains it", "Look at"):
        assert words in first
    assert "inherit it" in told[1]
    assert len(told) == 2


def test_a_segment_and_an_operation_by_itself_are_told_apart(prepared):
    """Where only one layer is tapped in full, its block output is an addition, the others' a segment."""
    some = ["h0", *(name for name in tap_names(4) if name.startswith("h1")), "h2", "h3"]

    def wrong(real, model, tokens, past=None, tap=None):
        def seen(name, x):
            if name in some:
                tap(name, x * (1.01 if name in ("h1", "h2") else 1))

        return real(model, tokens, past, tap and seen)

    rows = examine(wrapped(wrong, TAPS=some), prepared, only=QUICK)
    (told,) = explain.paragraphs(rows).values()
    assert [text.partition(":")[0] for text in told if text.startswith("h1 ")] == [
        "h1 introduces an error"
    ]
    assert any(text.startswith(("h2 is wrong", "h{2,3} is wrong")) for text in told)


def test_a_promise_of_unknown_taps_fails(prepared):
    rows = examine(wrapped(lambda real, *args: real(*args), TAPS=["h9/ln_1"]), prepared)
    assert [row.verdict for row in rows] == ["fail"]
    assert "h9/ln_1" in explain.detail(rows[0])


def test_memorised_golden_logits_do_not_pass(prepared):
    """Right answers for every golden case, without computing anything: the fresh case finds out."""
    known = {record.tokens.tobytes(): record.logits for record in prepared.records}

    def parrot(real, model, tokens, past=None, tap=None):
        logits, present = real(model, np.zeros_like(tokens), past, tap)
        return known.get(tokens.tobytes(), logits).astype(np.float32), present

    rows = examine(wrapped(parrot), prepared)
    assert any(row.case == "fresh" and row.verdict == "fail" for row in rows if row.check == "logits")


def test_an_unloadable_target_fails(prepared):
    rows = examine(find("numpy").load(), prepared, Target("cpu", "bfloat16"))
    assert [(row.check, row.verdict) for row in rows] == [("load", "fail")]
    assert "bfloat16" in explain.detail(rows[0])
