"""GPT-2 in PyTorch, on CPU or CUDA, to be read top to bottom as a forward pass.

Needs PyTorch and nothing else: copy the file and it runs alone. It leans on the library's own
fused operations (layer_norm, scaled_dot_product_attention, gelu), so what is verified is what
PyTorch users run. Shapes in comments: batch, n (new tokens), n_past (cached), head = n_embd / n_head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    params: dict  # checkpoint name -> tensor, w as [n_in, n_out]
    hparams: object
    device: torch.device


def targets():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(device, dtype) for device in devices for dtype in ("float32", "bfloat16")]


def load(params, hparams, *, device, dtype):
    # Declared float32 means float32: no TF32 and no low-precision reductions behind our back.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    # an index for CUDA only: "cpu:0" is not "cpu" to torch, and would copy the mapped weights
    place = torch.device("cuda:0" if device == "cuda" else device)

    def put(w):
        return torch.from_numpy(w).to(device=place, dtype=getattr(torch, dtype))

    return Model({name: put(w) for name, w in params.items()}, hparams, place)


def numpy(x):
    return x.detach().float().cpu().numpy()  # NumPy has no bfloat16; float32 holds it exactly


def gelu(x):
    return F.gelu(x, approximate="tanh")  # OpenAI's form, not the exact erf


def softmax(x):
    return F.softmax(x, dim=-1)


def layer_norm(x, g, b, eps=1e-5):
    return F.layer_norm(x, g.shape, g, b, eps)


def linear(x, w, b):
    return torch.addmm(b, x.flatten(0, -2), w).view(*x.shape[:-1], -1)  # [..., n_in] -> [..., n_out]


def attention(qkv, past, n_head):
    """Causal attention of the new positions over the cached and the new ones."""
    batch, n, width = qkv.shape
    # [batch, n, 3 * n_embd] -> q, k, v, each [batch, n_head, n, head]
    q, k, v = qkv.view(batch, n, 3, n_head, width // 3 // n_head).permute(2, 0, 3, 1, 4)
    mask = None
    if past is not None:  # [batch, n_head, n_past, head] + new -> [batch, n_head, n_past + n, head]
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        n_keys = k.shape[2]
        mask = torch.ones(n, n_keys, dtype=torch.bool, device=k.device).tril(n_keys - n)  # key <= query
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past is None)
    return heads.transpose(1, 2).reshape(batch, n, width // 3), (k, v)  # heads merged again


def block(x, p, scope, past, n_head, tap):
    """One transformer block: attention and MLP, each behind a layer norm, each added back."""

    def step(leaf, value):
        tap(f"{scope}/{leaf}", value)
        return value

    def affine(leaf, value):
        return step(leaf, linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"]))

    def norm(leaf, value):
        return step(leaf, layer_norm(value, p[f"{scope}/{leaf}/g"], p[f"{scope}/{leaf}/b"]))

    qkv = affine("attn/c_attn", norm("ln_1", x))  # [batch, n, 3 * n_embd]
    heads, present = attention(qkv, past, n_head)
    x = step("resid_mid", x + affine("attn/c_proj", step("attn/heads", heads)))
    hidden = step("mlp/gelu", gelu(affine("mlp/c_fc", norm("ln_2", x))))  # [batch, n, 4 * n_embd]
    x = x + affine("mlp/c_proj", hidden)
    tap(scope, x)
    return x, present


@torch.inference_mode()
def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    p, hparams, device = model
    tap = tap or (lambda name, array: None)
    tokens = torch.as_tensor(tokens)
    n_past = 0 if past is None else past[0][0].shape[2]
    refuse_bad_tokens(tokens, n_past, hparams)  # on the host: a bad id on CUDA kills the process
    tokens = tokens.to(device)
    n = tokens.shape[1]
    x = F.embedding(tokens, p["wte"]) + p["wpe"].narrow(0, n_past, n)  # [batch, n, n_embd]
    tap("embed", x)
    present = []
    for i in range(hparams.n_layer):
        layer_past = None if past is None else past[i]
        x, layer_present = block(x, p, f"h{i}", layer_past, hparams.n_head, tap)
        present.append(layer_present)
    x = layer_norm(x, p["ln_f/g"], p["ln_f/b"])
    tap("ln_f", x)
    return x @ p["wte"].T, present  # the head is tied to the embedding


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError rather than let a kernel fail later."""
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]. Prefill once, then decode through the cache."""
    new = []
    logits, past = forward(model, tokens)
    while True:
        new.append(logits[:, -1].argmax(dim=-1, keepdim=True))
        if len(new) == n_new:
            return torch.cat(new, dim=1).int().cpu().numpy()
        logits, past = forward(model, new[-1], past)
