"""Mistakes that only a GPU can make: edits of the PyTorch and JAX specimens."""

from pathlib import Path

from .attention import HEADS
from .edits import JAX, TORCH, Edit
from .products import PRODUCTS
from .shelf import put_edits

MATMUL = '    torch.set_float32_matmul_precision("highest")\n'


def on_cuda(name: str, *edits: Edit, specimen: Path = TORCH, trips: str = "local", **words: str) -> None:
    put_edits(f"{name}_on_cuda", specimen, *edits, trips=trips, device="cuda", **words)


on_cuda(
    "tf32",
    (MATMUL, MATMUL.replace("highest", "high")),
    blame=f"{PRODUCTS} logits",
    diagnosis="tf32_inputs",
    trips="local precision",
)
on_cuda(
    "jax_default_precision",
    ('precision="highest"', 'precision="default"'),
    specimen=JAX,
    blame=f"{PRODUCTS} {HEADS} logits",
    trips="local precision",
)
on_cuda(
    "jax_tf32_products",
    ("np.matmul(x, w.T, **EXACT)", "np.matmul(x, w.T, preferred_element_type=np.float32)"),
    specimen=JAX,
    blame=f"{PRODUCTS} logits",
    diagnosis="tf32_inputs",
    trips="local precision",
)
on_cuda(
    "float16_sums",
    (MATMUL, f"{MATMUL}    torch.backends.cuda.matmul.allow_fp16_accumulation = True\n"),
    ('("float32", "bfloat16")', '("float16",)'),
    dtype="float16",
    blame=f"{PRODUCTS} logits",
)
on_cuda(
    "autocast",
    ("def hidden(", "@torch.autocast('cuda', torch.bfloat16)\ndef hidden("),
    ("split.narrow(0, 1, 2))", "split.narrow(0, 1, 2).to(kv.dtype))"),
    ("= split.select(0, 0), kv ", "= split.select(0, 0), kv.to(split.dtype) "),
    blame=f"{PRODUCTS} {HEADS} h*/mlp/gelu",
    trips="local precision",
)
on_cuda(
    "erf_gelu",
    ('approximate="tanh"', 'approximate="none"'),
    blame="h*/mlp/gelu",
    diagnosis="erf_gelu",
)
on_cuda(
    "epsilon_1e-06", ("eps=1e-5", "eps=1e-6"), blame="h*/ln_1 h*/ln_2 ln_f", diagnosis="epsilon_1e-06"
)
on_cuda(
    "read_before_the_device_is_done",
    (
        "    return x.detach().float().cpu().numpy()",
        "    host = torch.empty(x.shape, pin_memory=True)\n"
        "    host.copy_(x.detach().float(), non_blocking=True)\n    return host.numpy()",
    ),
    blame="*?",
    trips="",  # which of them is chance
)
on_cuda(
    "bad_token_kills_the_process",
    ("    refuse_bad_tokens(tokens, n_past, model.hparams)  #", "    #"),
    blame="tokens",
    trips="bad_tokens",
)
on_cuda(
    "graph_replays_one_position",
    ("        position.add_(1)\n", "        pass\n"),
    blame="generate",
    trips="greedy",
)
on_cuda(
    "graph_output_not_copied",
    ("new.append(token.clone())\n        if fixed", "new.append(token)\n        if fixed"),
    blame="generate",
    trips="greedy",
)
