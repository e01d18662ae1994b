"""Honest variants: other right ways to compute GPT-2. None may ever fail.

A variant is a small edit of a specimen's text, with the precision that it declares. An edit that does
not apply is an error. The specimen "plain", in which faults are planted, is tried unchanged, and with the
functions of by_shape.py in it.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from by_shape import BY_SHAPE
from faults import edits
from faults.edits import Edit, helper, instead
from faults.plain import Plain
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Target
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation.discovery import IMPLS
from gpt2_parity.model import synthetic
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference import records
from gpt2_parity.run.preparation import Prepared


class Variant(NamedTuple):
    """A right implementation."""

    name: str
    specimen: str
    target: Target
    edits: Sequence[Edit]

    def on(self, device: str) -> "Variant":
        return self._replace(target=self.target._replace(device=device))


VARIANTS: list[Variant] = []
ON_CUDA: list[Variant] = []  # on a GPU alone: nox -s faults -- --device cuda


def variant(
    name: str, *edits: Edit, specimen: str = "numpy", dtype: str = "float32", device: str = "cpu"
) -> None:
    """Add a variant to the list of its device."""
    shelf = VARIANTS if device == "cpu" else ON_CUDA
    shelf.append(Variant(f"{specimen}_{name}", specimen, Target(device, dtype), edits))


# -- what faults are planted in

variant("float32", specimen="plain")
variant("float64", specimen="plain", dtype="float64")
for _name in BY_SHAPE:  # another path for other shapes
    variant(_name, specimen="plain")

# -- NumPy: orders of summation, layouts, formulas

ADDED = 'linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"])'
GELU = "    rows = x.reshape(-1, x.shape[-1])\n"
HIDE = "            np.copyto(scores[..., n_past + start :], -np.inf, where=future)\n"
LOAD = "    return Model({name: np.asarray(w, dtype) for name, w in params.items()}, hparams, dtype)"
LOGITS = '    return x @ p["wte"].T, present'
PLAIN = "    y = x.reshape(-1, x.shape[-1]) @ w"
PROBS = "        heads[:, start:stop] = (softmax(scores) @ v.swapaxes(-1, -2)).swapaxes(1, 2)\n"
SCALE = "    q = q * (1 / math.sqrt(q.shape[-1]))\n"
VARIANCE = "    variance = np.vecdot(y, y)[..., None] / x.shape[-1]\n"
BLACK_BOX = (  # taps nothing
    ('TAPS = "all"', "TAPS = ()"),
    ("    keep = (lambda", "    tap = None\n    keep = (lambda"),
)

variant("plain")
variant("float64", dtype="float64")
variant(
    "its_first_call_sums_otherwise",  # as of one who compiles, or tries kernels
    instead(
        PLAIN,
        "CALLS.append(1)\n    if len(CALLS) < 8:\n        return x[..., ::-1] @ w[::-1] + b\n    return x @ w + b",
    ),
    helper("CALLS = []"),
)
variant(
    "softmax_by_powers_of_2",
    ("    np.exp(x, out=x)\n", "    np.exp2(x, out=x)\n"),
    (SCALE, "    q = q * (math.log2(math.e) / math.sqrt(q.shape[-1]))\n"),
)
variant(
    "norms_and_scale_folded_into_products",
    *BLACK_BOX,
    (SCALE, ""),
    (
        LOAD,
        "    p = {name: np.array(w, dtype) for name, w in params.items()}\n"
        "    for i in range(hparams.n_layer):\n"
        '        for ln, to in (("ln_1", "attn/c_attn"), ("ln_2", "mlp/c_fc")):\n'
        '            g, b = p[f"h{i}/{ln}/g"], p[f"h{i}/{ln}/b"]\n'
        '            p[f"h{i}/{to}/b"] = p[f"h{i}/{to}/b"] + b @ p[f"h{i}/{to}/w"]\n'
        '            p[f"h{i}/{to}/w"] = g[:, None] * p[f"h{i}/{to}/w"]\n'
        '            p[f"h{i}/{ln}/g"], p[f"h{i}/{ln}/b"] = np.ones_like(g), np.zeros_like(b)\n'
        '        for leaf in ("w", "b"):\n'
        '            p[f"h{i}/attn/c_attn/{leaf}"][..., : hparams.n_embd] /= math.sqrt(hparams.n_embd // hparams.n_head)\n'
        "    return Model(p, hparams, dtype)",
    ),
)
variant("sums_reversed", instead(PLAIN, "return x[..., ::-1] @ w[::-1] + b"))
variant("sums_in_blocks", instead(PLAIN, "return sum(x[..., i::7] @ w[i::7] for i in range(7)) + b"))
variant("sums_one_by_one", instead(PLAIN, "y = x[..., :1] * w[0]\n    for i in range(1, len(w)):\n"
        "        y += x[..., i : i + 1] * w[i]\n    return y + b"))  # fmt: skip
variant("bias_first", instead(PLAIN, "return (np.concatenate([np.ones_like(x[..., :1]), x], -1)"
        " @ np.concatenate([b[None], w])).astype(x.dtype)"))  # fmt: skip
for _sum, _added in {"after": "(x + y) + b", "before": "(x + b) + y"}.items():
    variant(
        f"bias_{_sum}_the_residual",
        (
            '    x = step("resid_mid", x + affine("attn/c_proj", heads))\n',
            '    y, b = heads @ p[f"{scope}/attn/c_proj/w"], p[f"{scope}/attn/c_proj/b"]\n'
            '    step("attn/c_proj", y + b)\n'
            f'    x = step("resid_mid", {_added})\n',
        ),
    )
variant("einsum", instead(PLAIN, 'return np.einsum("...i,io->...o", x, w, optimize=True) + b'))
variant("weights_out_in", instead(PLAIN, "return x @ np.ascontiguousarray(w.T).T + b"))
variant("head_by_einsum", (LOGITS, '    return np.einsum("bne,ve->bnv", x, p["wte"]), present'))
variant("qkv_in_three_products", (ADDED, "parts(value, p[f'{scope}/{leaf}/w'], p[f'{scope}/{leaf}/b'])"),
        ("def softmax(x):", "def parts(x, w, b):\n    n = len(w) if w.shape[1] == 3 * len(w) else w.shape[1]\n"
         "    return np.concatenate([linear(x, w[:, i : i + n], b[i : i + n])"
         " for i in range(0, w.shape[1], n)], axis=-1)\n\n\ndef softmax(x):"))  # fmt: skip
variant("mask_-1e4", (HIDE, HIDE.replace("-np.inf", "-1e4")))
variant(
    "mask_additive",
    (
        HIDE,
        "            scores[..., n_past + start :] += np.where(future, -np.inf, 0).astype(scores.dtype)\n",
    ),
)
variant(
    "scale_on_the_scores",
    (SCALE, ""),
    ("q[:, :, start:stop] @ k", "q[:, :, start:stop] @ k / math.sqrt(q.shape[-1])"),
)
variant("softmax_by_division_last", (PROBS,
        "        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
        "        heads[:, start:stop] = (probs @ v.swapaxes(-1, -2) / probs.sum(axis=-1, keepdims=True)).swapaxes(1, 2)\n"))  # fmt: skip
variant("a_head_at_a_time", ("softmax(scores) @ v.swapaxes(-1, -2)",
        "np.stack([softmax(scores[:, i]) @ v[:, i].swapaxes(-1, -2) for i in range(n_head)], axis=1)"))  # fmt: skip
variant("variance_in_one_pass", (VARIANCE, "    mean = x.mean(axis=-1, keepdims=True)\n"
        "    variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean\n"))  # fmt: skip
variant("norm_in_float64", ("def layer_norm(x, g, b, eps=1e-5):\n", "def layer_norm(x, g, b, eps=1e-5):\n"
        "    return norm64(x.astype(float), g, b, eps).astype(x.dtype)\n\n\ndef norm64(x, g, b, eps):\n"))  # fmt: skip
variant(
    "gelu_by_sigmoid",
    instead(GELU, "return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))"),
)
variant(
    "gelu_horner",
    instead(
        GELU,
        "c = math.sqrt(2 / math.pi)\n    return 0.5 * x * (1 + np.tanh(x * (c + c * 0.044715 * x * x)))",
    ),
)
variant("all_in_float64", (LOAD, LOAD.replace("dtype", "float")))
for _dtype in ("bfloat16", "float16"):
    variant(f"all_in_float32_declaring_{_dtype}", ('("cpu", "float64")', f'("cpu", "{_dtype}")'),
            (LOAD, LOAD.replace("dtype", '"float32"')), dtype=_dtype)  # fmt: skip
IN_INT8 = (
    "    p = {name: np.array(w, dtype) for name, w in params.items()}\n"
    '    for name in [name for name in p if name.endswith("/w")]:\n'
    "        QUANTISED\n"
    "    return Model(p, hparams, dtype)\n\n\n"
    "def weights(model):\n    return GIVEN"
)
variant(
    "weights_in_int8_declared",  # in groups, as ggml has it
    ("TAPS = ", 'WEIGHTS = "quantized"\nTAPS = '),
    (
        LOAD,
        IN_INT8.replace(
            "QUANTISED",
            "group = 32 if len(p[name]) % 32 == 0 else 16\n"
            "        w = p[name].T.reshape(-1, group)\n"
            "        scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)\n"
            "        p[name] = (np.round(w / scale) * scale).reshape(p[name].T.shape).T",
        ).replace("GIVEN", "model.params"),
    ),
)
variant(
    "weights_in_int8_scaled_after_the_product",  # as torchao has it: no product has the weights it gives
    ("TAPS = ", 'WEIGHTS = "quantized"\nTAPS = '),
    (
        ADDED,
        'linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"], p[f"{scope}/{leaf}/w/scale"])',
    ),
    (
        "def linear(x, w, b):\n",
        "def linear(x, w, b, scale):\n    return x @ w * scale + b\n\n\ndef _(x, w, b):\n",
    ),
    (
        LOAD,
        IN_INT8.replace(
            "QUANTISED",
            'scale = p[name + "/scale"] = np.abs(p[name]).max(axis=0) / np.float32(127)\n'
            "        p[name] = np.round(p[name] / scale)",
        ).replace(
            "GIVEN",
            "{\n        name: w.astype(float) * model.params.get(name + '/scale', 1)\n"
            "        for name, w in model.params.items()\n"
            "        if not name.endswith('/scale')\n    }",
        ),
    ),
)
variant(
    "weights_overwritten_once_copied",
    (LOAD, LOAD.replace("return ", "copied = ").replace("np.asarray", "np.array")
     + "\n    for w in params.values():\n        w.fill(0)\n    return copied"),
)  # fmt: skip
variant(
    "tokens_overwritten_once_looked_up",  # not in decode, where generate's own ids are given
    (
        '    keep("embed", x)\n',
        '    keep("embed", x)\n    shape = tokens.shape\n    tokens[:] = tokens if past else 1\n',
    ),
    ("extended(past, *tokens.shape, model)", "extended(past, *shape, model)"),
)
variant("makes_numpy_raise", (LOAD, f'    np.seterr(all="raise")\n{LOAD}'))
variant(
    "hook_left_behind",  # by a tap that raised
    (
        "    keep = (lambda",
        "    HOOKS.extend([tap] if tap else [])\n    hooks = list(HOOKS)\n"
        "    tap = (lambda name, x: [hook(name, x) for hook in hooks]) if hooks else None\n    keep = (lambda",
    ),
    ("    return x @ p", "    HOOKS.clear()\n    return x @ p"),
    ("TAPS = ", "HOOKS = []\nTAPS = "),
)
variant("cache_copied", ("if past and past.filled == [n_past]", "if past and not past.filled"))
variant("cache_preallocated", ("room = min(2 * (n_past + n), n_ctx)", "room = n_ctx"))
variant("mask_in_decode_too", ("        if n > 1:", "        if True:"))
variant("black_box", *BLACK_BOX)

# -- PyTorch: kernels, threads, precisions

SDPA = "heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)"
DTYPES = '("float32", "bfloat16")'
THREADS = '    torch.set_float32_matmul_precision("highest")\n'
for _dtype in ("float32", "bfloat16", "float16", "float64"):
    variant("plain" if _dtype == "float32" else _dtype, (DTYPES, f'("{_dtype}",)'),
            ("x.detach().float()", "x.detach().double()"), specimen="torch", dtype=_dtype)  # fmt: skip
for _backend in ("MATH", "FLASH_ATTENTION"):
    for _dtype in ("float32", "bfloat16"):
        variant(f"sdpa_{_backend.lower()}_{_dtype}",
                (SDPA, f"with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.{_backend}):\n        {SDPA}"),
                specimen="torch", dtype=_dtype)  # fmt: skip
variant("one_thread", (THREADS, THREADS + "    torch.set_num_threads(1)\n"), specimen="torch")
variant("two_threads", (THREADS, THREADS + "    torch.set_num_threads(2)\n"), specimen="torch")
ATTENTION_BY_HAND = (SDPA, "scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5\n"
                     "    seen = torch.arange(keys.shape[2], device=q.device) <= positions[:, None]\n"
                     "    heads = scores.masked_fill(~seen, float('-inf')).softmax(-1) @ values")  # fmt: skip
variant("attention_by_hand", ATTENTION_BY_HAND, specimen="torch")
LINEAR = "    if x.numel() == len(w)"  # whatever it is multiplied by on a CPU in float32 is replaced
for _name, _product in {
    "by_mkl": "F.linear(x, w.T, b)",
    "by_onednn": 'torch.ops.mkldnn._linear_pointwise(x, w.T, b, "none", [], "")',
    "weights_out_in": "F.linear(x, w.T.contiguous(), b)",
    "addmm": "torch.addmm(x.new_zeros(()) if b is None else b, x.flatten(0, -2), w).view(*x.shape[:-1], -1)",
}.items():
    variant(_name, instead(LINEAR, f"return {_product}"), specimen="torch")
variant("one_sum_of_rows", ("n_sums=8", "n_sums=1"), specimen="torch")
variant("cache_always_copied", ("if past.taken[0] > past.n or", "if True or"), specimen="torch")
variant(
    "decode_under_a_mask", ("if n_past and n > 1 else None", "if n_past else None"), specimen="torch"
)
variant(
    "one_query_by_hand",
    ("if n == 1 and q.is_cuda and q.dtype == torch.float32:", "if n == 1:"),
    specimen="torch",
)
# what a CUDA graph would record, run step by step on the CPU
variant("fixed_shapes", ('fixed = model.device.type == "cuda"', "fixed = True"), ("step = recorded(step)", "pass"),
        specimen="torch")  # fmt: skip

# below float32: every step rounded, matrices alone narrow, or products alone (autocast)
GELU_BY_HAND = (
    'F.gelu(x, approximate="tanh")',
    "0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x * x * x)))",
)
NORM_BY_HAND = (
    "    return F.layer_norm(x, g.shape, g, b, eps)",
    "    y = x - x.mean(-1, keepdim=True)\n"
    "    return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps) * g + b",
)
BIAS_BY_HAND = (
    "    return F.linear(x, w.T, b)",
    "    y = F.linear(x, w.T)\n    return y if b is None else y + b",
)
for _dtype, _steps in {
    "bfloat16": (GELU_BY_HAND, NORM_BY_HAND, ATTENTION_BY_HAND, BIAS_BY_HAND),
    "float16": (GELU_BY_HAND, ATTENTION_BY_HAND, BIAS_BY_HAND),  # squares of outliers overflow
}.items():
    variant(f"every_step_rounded_{_dtype}", *_steps, specimen="torch", dtype=_dtype)
    tapless = (('TAPS = "all"', "TAPS = ()"), ("        tap(name, value)\n", ""))
    variant(f"black_box_{_dtype}", *_steps, *tapless, specimen="torch", dtype=_dtype)
variant(
    "matrices_in_bfloat16",
    ("name: put(w) for", "name: put(w) if w.ndim > 1 else put(w).float() for"),
    ("return F.linear(x, w.T, b)", "y = F.linear(x.to(w.dtype), w.T)\n    return y if b is None else (y + b).to(w.dtype)"),
    ("F.layer_norm(x, g.shape", "F.layer_norm(x.float(), g.shape"),
    specimen="torch",
    dtype="bfloat16",
)  # fmt: skip
variant(
    "autocast",
    ("dtype=getattr(torch, dtype))", "dtype=torch.float32)"),
    ('fast = (device, dtype) == ("cpu", "float32")', "fast = False"),
    ("split.narrow(0, 1, 2))", "split.narrow(0, 1, 2).to(kv.dtype))"),
    ("= split.select(0, 0), kv ", "= split.select(0, 0), kv.to(split.dtype) "),
    ("def hidden(", "@torch.autocast(DEVICE, torch.bfloat16)\ndef hidden("),
    ("def head(", "@torch.autocast(DEVICE, torch.bfloat16)\ndef head("),
    ("TAPS = ", "DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'\nTAPS = "),
    specimen="torch",
    dtype="bfloat16",
)
variant(
    "embedding_in_float32",  # and with it the head, which is tied to it
    ("    fast = (device", "    wte = torch.from_numpy(params['wte']).to(place)\n    fast = (device"),
    ("    return Model(params", "    params['wte'] = wte\n    return Model(params"),
    ('F.embedding(tokens, p["wte"]) + F.embedding(positions, p["wpe"])',
     '(F.embedding(tokens, p["wte"]) + F.embedding(positions, p["wpe"])).to(p["wpe"].dtype)'),
    ('model.linear(x, model.params["wte"].T', 'model.linear(x.float(), model.params["wte"].T'),
    ('dtype = model.params["wte"].dtype', 'dtype = model.params["wpe"].dtype'),
    specimen="torch",
    dtype="bfloat16",
)  # fmt: skip
variant(
    "positions_in_float32",
    ("    fast = (device", "    wpe = torch.from_numpy(params['wpe']).to(place)\n    fast = (device"),
    ("    return Model(params", "    params['wpe'] = wpe\n    return Model(params"),
    ('F.embedding(tokens, p["wte"]) + F.embedding(positions, p["wpe"])',
     '(F.embedding(tokens, p["wte"]) + F.embedding(positions, p["wpe"])).to(p["wte"].dtype)'),
    specimen="torch",
    dtype="bfloat16",
)  # fmt: skip

# -- TensorFlow, before JAX: where XLA has compiled hundreds of programs in a process, each operation of
# TensorFlow takes three times as long (it throws and catches, and unwinding looks through all of them)

variant("plain", specimen="tensorflow")
variant("float64", specimen="tensorflow", dtype="float64")

# -- JAX

for _dtype in ("float32", "bfloat16", "float16"):
    variant(
        "plain" if _dtype == "float32" else _dtype,
        (DTYPES, f'("{_dtype}",)'),
        specimen="jax",
        dtype=_dtype,
    )
variant("not_jitted",
        ('@functools.partial(jax.jit, static_argnames=("n_head", "want_taps"))\n', ""),
        ('@functools.partial(jax.jit, static_argnames="n_head")\n', ""),
        ('@functools.partial(jax.jit, static_argnames="n_head")  #', "#"),
        ('@functools.partial(jax.jit, static_argnames="n_head", donate_argnames=("k", "v"))\n', ""),
        specimen="jax")  # fmt: skip
variant("small_buckets", ("SHORT, STEP = 32, 128", "SHORT, STEP = 4, 16"), specimen="jax")

# -- CUDA: which kernels there are depends on the dtype and the mask, and MATH is always there

for _backend, _dtype in (
    ("FLASH_ATTENTION", "bfloat16"),
    ("EFFICIENT_ATTENTION", "float32"),
    ("EFFICIENT_ATTENTION", "bfloat16"),
    ("CUDNN_ATTENTION", "bfloat16"),
):
    _backends = f"[torch.nn.attention.SDPBackend.{_backend}, torch.nn.attention.SDPBackend.MATH]"
    variant(f"sdpa_{_backend.lower()}_or_math_{_dtype}",
            (SDPA, f"with torch.nn.attention.sdpa_kernel({_backends}):\n        {SDPA}"),
            specimen="torch", dtype=_dtype, device="cuda")  # fmt: skip
variant("step_by_step", ("step = recorded(step)", "pass"), specimen="torch", device="cuda")
variant("split_sums_in_bfloat16", ("reduced_precision_reduction = False", "reduced_precision_reduction = True"),
        specimen="torch", dtype="bfloat16", device="cuda")  # fmt: skip
variant("three_times_tf32", ('precision="highest"', 'precision="TF32_TF32_F32_X3"'),
        specimen="jax", device="cuda")  # fmt: skip
ON_CUDA += [
    found.on("cuda")
    for found in VARIANTS
    if found.specimen in ("torch", "jax") and "sdpa_flash" not in found.name
]


def load(found: Variant, folder: Path) -> Any:
    """The variant, written to folder and imported. Raises ValueError where an edit does not apply."""
    if found.specimen == "plain":
        return Plain.with_(found.name, **BY_SHAPE.get(found.name.removeprefix("plain_"), {}))
    specimen = IMPLS / f"gpt2_{found.specimen}.py"
    return edits.load(found.name, edits.edited(found.name, specimen, found.edits), folder)


# -- models that are hard on an implementation


@functools.cache
def outliers() -> Checkpoint:
    """Residual channels of several thousand, as trained GPT-2 has them."""
    hparams = HParams(n_vocab=300, n_ctx=32, n_embd=64, n_head=4, n_layer=4)
    params = synthetic.generate(hparams, seed=1)
    params["h0/mlp/c_proj/b"][[5, 40]] = 3000, -2000
    params["h2/mlp/c_proj/b"][[5, 9]] = -1500, 800
    return kept(hparams, params)


@functools.cache
def deep() -> Checkpoint:
    """24 layers."""
    hparams = HParams(n_vocab=300, n_ctx=32, n_embd=48, n_head=3, n_layer=24)
    return kept(hparams, synthetic.generate(hparams, seed=2))


def kept(hparams: HParams, params: dict[str, np.ndarray]) -> Checkpoint:
    """A checkpoint whose weights are in a file until this process ends."""
    folder = tempfile.mkdtemp(prefix="parity-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    weights = Path(folder, synthetic.WEIGHTS)
    safetensors_mmap.write(weights, params)
    return Checkpoint(hparams, params, weights, {})


def prepare(checkpoint: Checkpoint, seed: int) -> Prepared:
    """The truth about a model that has no golden: a fresh case, and the full context."""
    rng = np.random.default_rng(3)
    full = rng.integers(0, checkpoint.hparams.n_vocab, (1, checkpoint.hparams.n_ctx)).astype(np.int32)
    cases = [
        records.Case("full_context", full, 0),
        records.Case("prompt", full[:, :10], 4),
        records.fresh_case(checkpoint.hparams, seed),
    ]
    return Prepared(checkpoint, [], cases, None, {})
