"""GPT-2 in PyTorch, on CPU or CUDA, to be read top to bottom as a forward pass.

Needs only PyTorch: copy the file and it runs alone. It uses the library's own fused operations, so
what is verified is what PyTorch users run. Float32 weights on a CPU are used without a copy, and the
cache is written in place. Shapes in comments: batch, n (new tokens), n_keys (cached and new), head.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

TAPS = "all"  # every tap of the contract is promised


class Model(NamedTuple):
    params: dict  # checkpoint name -> tensor, w as [n_in, n_out]
    hparams: object
    device: torch.device
    linear: Callable  # the fastest linear layer on this device


class Cache(NamedTuple):
    """Keys and values of n positions, in a buffer with room to grow.

    The first continuation of a cache writes after its n positions, in place. A second continuation of
    the same cache finds those positions in use, and copies the cache to its own buffer.
    """

    kv: torch.Tensor  # [n_layer, 2 (k and v), batch, n_head, room, head]
    n: int
    taken: list  # [number of positions of kv in use], one list for all caches in this buffer


def targets():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(device, dtype) for device in devices for dtype in ("float32", "bfloat16")]


def load(params, hparams, *, device, dtype):
    # Declared float32 means float32: no TF32 and no implicit low-precision reductions.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    # an index for CUDA only: "cpu:0" is not "cpu" to torch, and would copy the mapped weights
    place = torch.device("cuda:0" if device == "cuda" else device)

    def put(w):
        return torch.from_numpy(w).to(device=place, dtype=getattr(torch, dtype))

    fast = (device, dtype) == ("cpu", "float32") and torch.backends.mkldnn.is_available()
    params = {name: put(w) for name, w in params.items()}
    return Model(params, hparams, place, linear_without_mkl if fast else linear)


def numpy(x):
    return x.detach().float().cpu().numpy()  # NumPy has no bfloat16; float32 holds it exactly


def gelu(x):
    return F.gelu(x, approximate="tanh")  # the form in OpenAI's code, not the exact erf


def softmax(x):
    return F.softmax(x, dim=-1)


def layer_norm(x, g, b, eps=1e-5):
    return F.layer_norm(x, g.shape, g, b, eps)


def linear(x, w, b):
    """[..., n_in] -> [..., n_out]; w [n_in, n_out] is never copied, its transpose is a view."""
    return F.linear(x, w.T, b)


def linear_without_mkl(x, w, b):
    """linear in float32 on a CPU, without gradients: MKL is half as fast on CPUs other than Intel's."""
    if x.numel() == len(w) and b is not None:  # one row; the head's weight is stored the other way
        return weighted_rows(x, w, b)
    return torch.ops.mkldnn._linear_pointwise(x, w.T, b, "none", [], "")  # as torch.compile calls it


def weighted_rows(x, w, b):
    """One row x times w is a weighted sum of the rows of w: embedding_bag reads them at full speed.

    After such a read the caches are cold and calls are slow, so this calls what F.embedding_bag calls.
    """
    rows, first, ones = bags(len(w))
    sums, *_ = torch.embedding_bag(w, rows, first, False, 0, False, x.view(-1))  # 0: a sum
    return torch.addmv(b, sums.T, ones).view(*x.shape[:-1], -1)


@functools.cache
def bags(n, n_sums=8):
    """The indices of n rows, the first row of each of n_sums sums (for threads), and as many ones."""
    rows = torch.arange(n)
    first = rows[:: -(-n // n_sums)].contiguous()
    return rows, first, torch.ones(len(first))


def attention(qkv, kv, positions, mask, n_head):
    """Causal attention of the new positions over all of kv, after writing their own k and v to it."""
    batch, n, width = qkv.shape
    # [batch, n, 3 * n_embd] -> q, k, v, each [batch, n_head, n, head]
    split = qkv.view(batch, n, 3, n_head, width // 3 // n_head).permute(2, 0, 3, 1, 4)
    kv.index_copy_(3, positions, split.narrow(0, 1, 2))
    q, (keys, values) = split.select(0, 0), kv  # the latter [batch, n_head, n_keys, head], views of it
    causal = mask is None and n > 1  # no mask: keys and queries are the same tokens, or n is 1
    if n == 1 and q.is_cuda and q.dtype == torch.float32:
        return one_query(q, keys, values, mask)
    heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
    return heads.transpose(1, 2).reshape(batch, n, width // 3)  # heads merged


def one_query(q, keys, values, mask):
    """Attention of one position, [batch, 1, n_embd]: a fused float32 kernel reads keys serially."""
    scores = q @ keys.mT * (1 / math.sqrt(q.shape[-1]))  # [batch, n_head, 1, n_keys]
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf)
    return (softmax(scores) @ values).view(len(q), 1, -1)


def hidden(model, tokens, positions, kv, mask=None, tap=lambda name, array: None):
    """The head's input [batch, n, n_embd]; writes the new k and v to their positions in kv."""
    p, n_head = model.params, model.hparams.n_head

    def step(name, value):
        tap(name, value)
        return value

    def affine(name, x):
        return step(name, model.linear(x, p[f"{name}/w"], p[f"{name}/b"]))

    def norm(name, x):
        return step(name, layer_norm(x, p[f"{name}/g"], p[f"{name}/b"]))

    x = step("embed", F.embedding(tokens, p["wte"]) + F.embedding(positions, p["wpe"]))
    for i, layer_kv in enumerate(kv):
        qkv = affine(f"h{i}/attn/c_attn", norm(f"h{i}/ln_1", x))  # [batch, n, 3 * n_embd]
        heads = step(f"h{i}/attn/heads", attention(qkv, layer_kv, positions, mask, n_head))
        x = step(f"h{i}/resid_mid", x + affine(f"h{i}/attn/c_proj", heads))
        wide = affine(f"h{i}/mlp/c_fc", norm(f"h{i}/ln_2", x))  # [batch, n, 4 * n_embd]
        wide = step(f"h{i}/mlp/gelu", gelu(wide))
        x = step(f"h{i}", x + affine(f"h{i}/mlp/c_proj", wide))
    return norm("ln_f", x)


def head(model, x):
    return model.linear(x, model.params["wte"].T, None)  # tied to the embedding


@torch.inference_mode()
def forward(model, tokens, past=None, tap=None):
    """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after them."""
    tokens = torch.as_tensor(tokens)
    n_past = past.n if past else 0
    refuse_bad_tokens(tokens, n_past, model.hparams)  # on the host: a bad id on CUDA kills the process
    batch, n = tokens.shape
    present = extend(model, past or empty_cache(model, batch), n)
    places = torch.arange(present.n, device=model.device)
    positions = places.narrow(0, n_past, n)
    mask = places <= positions.unsqueeze(1) if n_past and n > 1 else None  # key <= query
    kv = filled(present.kv, present.n)
    x = hidden(model, tokens.to(model.device), positions, kv, mask, tap or (lambda name, array: None))
    return head(model, x), present


def filled(kv, n):
    return kv.narrow(4, 0, n)  # the first n positions of the room, as a view


def empty_cache(model, batch, room=0):
    hp = model.hparams
    shape = (hp.n_layer, 2, batch, hp.n_head, room, hp.n_embd // hp.n_head)
    dtype = model.params["wte"].dtype
    return Cache(torch.empty(shape, dtype=dtype, device=model.device), 0, [0])


def extend(model, past, n):
    """past with n more positions: in its own buffer if they are free there, else in a larger copy."""
    n_keys = past.n + n
    if past.taken[0] > past.n or n_keys > past.kv.shape[4]:
        larger = empty_cache(model, past.kv.shape[2], min(2 * n_keys, model.hparams.n_ctx))
        larger.kv.index_copy_(4, torch.arange(past.n, device=model.device), filled(past.kv, past.n))
        past = larger._replace(n=past.n)
    past.taken[0] = n_keys
    return past._replace(n=n_keys)


def refuse_bad_tokens(tokens, n_past, hparams):
    """Raise ValueError before a kernel fails."""
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must be [batch, n] and not empty, got {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
        raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
    if n_past + tokens.shape[1] > hparams.n_ctx:
        raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")


def generate(model, tokens, n_new):
    """Greedy continuation: int32 [batch, n_new]. Prefill once, then decode through the cache."""
    tokens = torch.as_tensor(tokens)
    refuse_bad_tokens(tokens, n_new - 1, model.hparams)
    fixed = model.device.type == "cuda"
    return choices(model, tokens.to(model.device), n_new, fixed).int().cpu().numpy()


@torch.inference_mode()
def choices(model, tokens, n_new, fixed):
    """Ids [batch, n_new] on the device; no step waits for the host.

    fixed: attend to the whole buffer under a mask, so that every step has the same shapes and can be
    replayed as one CUDA graph. On a CPU reading costs more than calls, so only what is filled is read.
    """
    batch, n = tokens.shape
    kv = empty_cache(model, batch, n + n_new - 1).kv
    if fixed:
        kv.zero_()  # a mask hides numbers, but not NaN
    places = torch.arange(kv.shape[4], device=model.device)
    token = torch.empty((batch, 1), dtype=torch.long, device=model.device)

    def choose(tokens, positions, kv, mask=None):
        x = hidden(model, tokens, positions, kv, mask).narrow(1, -1, 1)  # the last position only
        torch.argmax(head(model, x), dim=-1, out=token)

    choose(tokens, places.narrow(0, 0, n), filled(kv, n))
    new = [token.clone()]
    position = torch.full((1,), n, device=model.device)

    def step():  # token and position keep their memory, which a graph reads and writes
        if fixed:
            choose(token, position, kv, places <= position.unsqueeze(1))
        else:
            choose(token, position, filled(kv, int(position) + 1))
        position.add_(1)

    while len(new) < n_new:
        step()
        new.append(token.clone())
        if fixed and len(new) == 2:  # the first step ran directly and warmed the libraries up
            step = recorded(step)
    return torch.cat(new, dim=1)


def recorded(step):
    """step as one CUDA graph; recording does not run it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def loss_and_grads(model, tokens):
    """Mean next-token cross entropy (nats) of tokens [batch, n], and gradients by checkpoint name."""
    tokens = torch.as_tensor(tokens).long()
    refuse_bad_tokens(tokens, 0, model.hparams)
    tokens = tokens.to(model.device)
    params = {name: w.detach().requires_grad_() for name, w in model.params.items()}
    model = model._replace(params=params, linear=linear)
    # a buffer for each layer: what is saved for the backward pass must not be overwritten
    room = [empty_cache(model, *tokens.shape).kv[0] for _ in range(model.hparams.n_layer)]
    x = hidden(model, tokens, torch.arange(tokens.shape[1], device=model.device), room)
    logits = head(model, x[:, :-1])  # [batch, n - 1, n_vocab]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])
    grads = torch.autograd.grad(loss, list(params.values()))
    return loss.item(), dict(zip(params, grads, strict=True))
