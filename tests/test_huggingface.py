"""Folders of Hugging Face are read without a framework, and refused by name if they are not GPT-2."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file as save_torch

import gpt2_parity
import huggingface_folder
from commands import here
from examine import FLOAT32
from gpt2_parity.bench import session
from gpt2_parity.bench.workload import Settings, Workload
from gpt2_parity.contract.architecture import HParams, parameter_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.implementation.discovery import find
from gpt2_parity.model import catalogue, checkpoint, synthetic
from gpt2_parity.model.tokenizer import tokenizer_of
from gpt2_parity.reference import oracle
from gpt2_parity.run.supervisor import Resources
from huggingface_folder import alter, configure

MICRO = catalogue.GOLDEN / "micro"
SMALL = HParams(n_vocab=37, n_ctx=24, n_embd=12, n_head=3, n_layer=2)
CAUSAL = np.tri(24, dtype=np.float32)[None, None]


@pytest.fixture
def weights():
    return synthetic.generate(SMALL)


@pytest.fixture
def folder(tmp_path, weights):
    return huggingface_folder.write(tmp_path / "mine", SMALL, weights)


# Folders that are read.


@pytest.fixture(scope="module")
def made():
    """A GPT-2 of transformers with random values in every parameter."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    n_vocab, n_ctx, n_embd, n_head, n_layer = SMALL
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n_vocab, n_positions=n_ctx, n_embd=n_embd, n_head=n_head, n_layer=n_layer,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("part", ["with_head", "without_head"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_that_transformers_wrote_gives_the_logits_that_transformers_computes(
    part, dtype, made, tmp_path, home
):
    """In float64, from the same rounded weights: what is left is rounding of float64."""
    import copy

    import torch

    model = copy.deepcopy(made).to(getattr(torch, dtype))
    (model if part == "with_head" else model.transformer).save_pretrained(tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.hparams == SMALL
    tokens = np.random.default_rng(0).integers(0, SMALL.n_vocab, (2, SMALL.n_ctx)).astype(np.int32)
    with torch.no_grad():
        want = model.double()(torch.from_numpy(tokens).long()).logits.numpy()
    got = oracle.forward(loaded.params, loaded.hparams, tokens)
    assert np.abs(want).max() > 1
    assert np.abs(got - want).max() < 1e-14 * np.abs(want).max()


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_micro_in_this_form_has_the_same_bits_and_the_same_tokens(prefix, prepared, tmp_path):
    known = prepared.checkpoint
    copy = huggingface_folder.write(
        tmp_path / "copy", known.hparams, known.params, prefix, tokenizer=MICRO
    )
    loaded = checkpoint.load(copy)
    assert loaded.hparams == known.hparams
    assert loaded.params.keys() == known.params.keys()
    for name, value in known.params.items():
        assert loaded.params[name].tobytes() == value.tobytes(), name
        assert loaded.params[name].shape == value.shape
    assert loaded.sha256.keys() == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    text = "Alan Turing theorized"
    assert tokenizer_of(copy, loaded.hparams).encode(text) == tokenizer_of(MICRO, known.hparams).encode(
        text
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(dtype, folder):
    """Subnormal numbers, the largest ones, and both zeros among them."""
    import torch

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (37, 12)).astype(np.uint16)
    bits[0, :4] = 0, 0x8000, 1, 0x8001
    stored = torch.from_numpy(bits.view(np.int16)).view(getattr(torch, dtype))
    stored = torch.where(torch.isfinite(stored), stored, torch.zeros_like(stored))
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors") | {"wte.weight": stored}
    save_torch(tensors, folder / "model.safetensors")
    assert checkpoint.load(folder).params["wte"].tobytes() == stored.float().numpy().tobytes()


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.bool_])
def test_mask_buffers_are_known_for_what_they_are(dtype, prefix, weights, tmp_path):
    folder = huggingface_folder.write(tmp_path / "mine", SMALL, weights, prefix)
    masks = {f"{prefix}h.{i}.attn.bias": CAUSAL.astype(dtype) for i in range(2)}
    alter(folder, **masks, **{f"{prefix}h.0.attn.masked_bias": np.array(-1e4, np.float32)})
    loaded = checkpoint.load(folder)
    assert loaded.params.keys() == parameter_shapes(SMALL).keys()
    assert loaded.params["h1/attn/c_attn/b"].tobytes() == weights["h1/attn/c_attn/b"].tobytes()


def test_without_stored_masks_none_is_made(tmp_path):
    """One would need 2**40 bytes."""
    long = HParams(n_vocab=3, n_ctx=2**20, n_embd=2, n_head=1, n_layer=1)
    folder = huggingface_folder.write(tmp_path / "long", long, synthetic.generate(long))
    assert checkpoint.load(folder).hparams == long


def test_a_head_of_the_same_bits_is_known_for_what_it_is(folder, weights):
    alter(folder, **{"lm_head.weight": weights["wte"].copy()})
    assert "lm_head" not in "".join(checkpoint.load(folder).params)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": ...},
        {"n_inner": 48},
        {"n_inner": None},
        {"reorder_and_upcast_attn": True},
        {"architectures": ["GPT2Model"]},
        {"resid_pdrop": 0.5, "torch_dtype": "float16", "id2label": {"0": "x"}},
        {"n_ctx": 7},
    ],
    ids=str,
)
def test_a_configuration_with_the_same_meaning_is_read(changes, folder):
    configure(folder, **changes)
    assert checkpoint.load(folder).hparams == SMALL


NO_PACKAGE = """
import sys
for name in ("tensorflow", "transformers", "torch", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
from pathlib import Path
from gpt2_parity.model import checkpoint
print(checkpoint.load(Path(sys.argv[1])).hparams.n_vocab)
"""


def test_it_is_read_without_any_package_of_theirs(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_PACKAGE, str(folder)],
        env=os.environ | {"PARITY_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "37\n"), done.stderr


def test_golden_is_built_for_a_folder_and_an_implementation_verified_with_it(folder, tmp_path):
    """TensorFlow is the second oracle, as for every model."""
    model = ("--model", folder)
    done = here("verify", "--impl", "numpy", *model)
    assert done.returncode == 2
    assert f"parity golden build --model {folder}" in done.stderr
    done = here("golden", "build", *model)
    assert done.returncode == 0, done.stdout + done.stderr
    done = here("golden", "verify", *model)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = gpt2_parity.verify("numpy", targets="cpu-float32", model=str(folder))
    assert verdict.passed, verdict.explain()
    assert verdict.environment["hparams"] == SMALL._asdict()
    made_of = {"config.json", "model.safetensors"}
    assert verdict.environment["checkpoint_sha256"].keys() == made_of
    settings = Settings(FLOAT32, (Workload("prefill", 8),), resources=Resources(threads=1))
    timed = session.measure([find("numpy")], catalogue.locate(str(folder)), settings)
    assert session.exit_code(timed.rows) == 0


# Folders that are refused.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neo"),
        ("model_type", ...),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("layer_norm_epsilon", "1e-5"),
        ("n_inner", 36),
        ("n_inner", 0),
        ("scale_attn_weights", False),
        ("scale_attn_weights", 1),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("tie_word_embeddings", False),
        ("quantization_config", {"load_in_8bit": True}),
        ("pruned_heads", {"0": [1]}),
        ("auto_map", {"AutoModel": "theirs.Model"}),
        ("architectures", ["GPT2ForSequenceClassification"]),
        ("rope_theta", 10000),
        ("n_embed", 12),
    ],
)
def test_a_configuration_of_another_model_is_refused_by_name(field, value, folder):
    checkpoint.load(folder)
    configure(folder, **{field: value})
    with pytest.raises(CannotJudge, match=rf"config\.json: '?{field}'? is ") as caught:
        checkpoint.load(folder)
    assert (
        value is ...
        or field == "n_embed"
        or field == "rope_theta"
        or str(value)[:9] in str(caught.value)
    )


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"])
@pytest.mark.parametrize("value", [..., 0, -1, 1.0, True, None, "12", 2**24])
def test_an_absurd_size_is_refused_by_name(field, value, folder):
    configure(folder, **{field: value})
    with pytest.raises(CannotJudge, match=rf"config\.json: .*{field} is "):
        checkpoint.load(folder)


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_embd", "n_layer"])
def test_sizes_of_another_model_are_refused_by_tensor(field, folder):
    checkpoint.load(folder)  # so that its weights are in the cache
    configure(folder, **{field: 1 if field == "n_layer" else 48})
    with pytest.raises(CannotJudge, match=r"model\.safetensors: tensor .* (has shape|is not one of)"):
        checkpoint.load(folder)


def _set(value):
    def change(array):
        array = array.copy()
        array.reshape(-1)[0] = value
        return array

    return change


NAN = "has values that are NaN or infinite"


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        ("ln_f.bias", ..., "is missing"),
        ("h.1.attn.c_attn.weight", lambda a: a.T.copy(), r"has shape \(36, 12\), .* \(12, 36\)"),
        ("wte.weight", lambda a: a[:-1].copy(), r"has shape \(36, 12\)"),
        ("wpe.weight", lambda a: a.astype(np.float64), "is F64, read are F32, F16, BF16"),
        ("wpe.weight", lambda a: a.astype(np.int32), "is I32, read are"),
        ("h.0.mlp.c_fc.bias", lambda a: a.astype(np.uint8), "is U8, read are"),
        ("h.0.ln_1.weight", _set(np.nan), NAN),
        ("h.0.ln_1.weight", lambda a: _set(np.inf)(a.astype(np.float16)), NAN),
        ("score.weight", np.ones((2, 12), np.float32), "is not one of GPT-2's"),
        ("h.2.ln_1.weight", np.ones(12, np.float32), "is not one of GPT-2's"),
        ("h.2.attn.bias", CAUSAL, "is not one of GPT-2's"),
        ("h.00.attn.bias", CAUSAL, "is not one of GPT-2's"),
        ("h.0.attn.q_attn.weight", np.ones((12, 12), np.float32), "is not one of GPT-2's"),
        ("_orig_mod.wte.weight", np.ones((37, 12), np.float32), "is not one of GPT-2's"),
        ("lm_head.bias", np.ones(37, np.float32), "is not one of GPT-2's"),
        ("lm_head.weight", np.ones((37, 12), np.float32), "differs from wte.weight"),
        ("lm_head.weight", np.ones((36, 12), np.float32), r"has shape \(36, 12\)"),
        ("h.0.attn.bias", np.ones(36, np.float32), r"has shape \(36,\), .* \(1, 1, 24, 24\)"),
        ("h.0.attn.bias", np.ones((1, 1, 24, 24), np.float32), "is not the causal mask"),
        ("h.0.attn.bias", CAUSAL.astype(np.int64), "is I64, read are"),
        ("h.0.attn.masked_bias", np.ones(12, np.float32), r"has shape \(12,\)"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tensor, change, said, folder):
    alter(folder, **{tensor: change})
    with pytest.raises(CannotJudge, match=rf"model\.safetensors: (tensor )?{tensor} {said}"):
        checkpoint.load(folder)


def test_a_head_that_differs_in_a_sign_of_zero_is_refused(folder, weights):
    zero = weights["wte"].copy()
    zero[3, 3] = 0
    alter(folder, **{"wte.weight": zero, "lm_head.weight": np.where(zero == 0, np.float32(-0.0), zero)})
    with pytest.raises(CannotJudge, match=r"lm_head\.weight differs"):
        checkpoint.load(folder)


def test_both_prefixes_at_once_are_refused(folder, weights):
    alter(folder, **{"transformer.wte.weight": weights["wte"].copy()})
    with pytest.raises(CannotJudge, match=r"tensor transformer\.\S+ is missing"):
        checkpoint.load(folder)


class Evil:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_by_name_and_not_read(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "was read")))
    with pytest.raises(CannotJudge, match=r"pytorch_model\.bin: a pickle, .*save_pretrained"):
        catalogue.locate(str(folder))
    assert not (tmp_path / "was read").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "was read").exists()


def test_shards_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CannotJudge, match=r"index\.json: the weights are split .*max_shard_size"):
        catalogue.locate(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "merges.txt"])
def test_a_missing_file_is_named(name, folder):
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / name).unlink()
    with pytest.raises(CannotJudge, match=rf"{name}: missing or empty"):
        checkpoint.load(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(folder, prepared):
    hparams = prepared.checkpoint.hparams
    copy = huggingface_folder.write(
        folder.parent / "copy", hparams, prepared.checkpoint.params, tokenizer=MICRO
    )
    assert tokenizer_of(copy, hparams).n_vocab == 1000
    with pytest.raises(CannotJudge, match=r"vocab\.json: 1000 entries, hparams say 999"):
        tokenizer_of(copy, hparams._replace(n_vocab=999))
    assert tokenizer_of(folder, SMALL) is None
    merges = (copy / "merges.txt").read_text().splitlines()
    (copy / "merges.txt").write_text("\n".join(merges[:-1]) + "\n")
    with pytest.raises(CannotJudge, match=r"merges\.txt and .*vocab\.json: not a consistent"):
        tokenizer_of(copy, hparams)


def test_ids_that_a_padded_vocabulary_adds_have_no_text(prepared, tmp_path):
    hparams = prepared.checkpoint.hparams
    folder = huggingface_folder.write(
        tmp_path / "padded", hparams, prepared.checkpoint.params, tokenizer=MICRO
    )
    tokenizer = tokenizer_of(folder, hparams._replace(n_vocab=1024))
    assert (
        tokenizer.decode([*tokenizer.encode("one"), 1000, 1023, 999]) == "one\ufffd\ufffd<|endoftext|>"
    )


def test_weights_that_changed_since_golden_was_made_are_other_records(folder, weights):
    before = catalogue.locate(str(folder)).records
    alter(folder, **{"ln_f.bias": weights["ln_f/b"] + 1})
    assert catalogue.locate(str(folder)).records != before


# Names of the Hub.


def test_a_misspelt_path_is_not_taken_for_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(CannotJudge, match=r"model 'models/mine': no such folder\. Name micro"):
        catalogue.locate("models/mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt2", "it is 124M here; use --model 124M (get it with: parity fetch 124M)"),
        ("openai-community/gpt2", "hf download openai-community/gpt2 --local-dir gpt2, and use"),
        ("gpt2-medium", "--model 355M"),
        ("gpt2-large", "--model 774M"),
        ("openai-community/gpt2-xl", "--model 1558M"),
        ("distilgpt2", "hf download distilgpt2 --local-dir distilgpt2, and use --model ./distilgpt2"),
        ("someone/gpt2-tuned", "hf download someone/gpt2-tuned --local-dir gpt2-tuned"),
    ],
)  # fmt: skip
def test_a_name_of_the_hub_says_what_to_do_in_one_line(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotJudge) as caught:
        catalogue.locate(name)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"model {name!r}: ")
    assert "\n" not in str(caught.value)
