"""GPT-2 in NumPy, plain: the specimen that faults are planted in.

``Plain`` reads top to bottom as a forward pass: four entry points, then what they call, down to single
operations. Each is a method that a fault may replace. Nothing is done for speed, nothing in place.
Every operation gets its inputs, its weights and, last, ``at``: its position in the forward pass.
Scalars are Python floats on purpose: an ``np.float64`` scalar would turn float32 work into float64.

Shapes in comments: batch, n (new tokens), n_keys = n_past (cached tokens) + n, head = n_embd / n_head.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class Model(NamedTuple):
    params: dict  # checkpoint name -> array, w as [n_in, n_out]
    hparams: Any
    dtype: str


class At(NamedTuple):
    """The position of an operation in a forward pass."""

    name: str  # its tap: "h2/mlp/c_fc"
    n_past: int
    model: Model
    tap: Any

    def step(self, leaf):
        return self._replace(name=f"{self.name}/{leaf}")

    def weights(self, *leaves):
        return [self.model.params[f"{self.name}/{leaf}"] for leaf in leaves]


def length(past):
    """How many tokens a cache holds. A cache is a list of (keys, values), one pair for each layer."""
    return past[0][0].shape[2] if past else 0


def causal(scores):
    """Which keys each query may see: True for all up to its own position."""
    n, n_keys = scores.shape[-2:]
    return np.tri(n, n_keys, n_keys - n, dtype=bool)


class Plain:
    """An implementation. ``Plain.with_(name, gelu=erf_gelu)`` is another one, with a fault in it."""

    __name__ = "plain"
    TAPS = "all"
    WEIGHTS = "checkpoint"
    weights = None  # the capability of that name, which is not offered

    def __init__(self):
        self.memory = {}  # what a fault remembers from one call to the next

    @staticmethod
    def with_(name, **replaced):
        """An implementation of that name in which other functions stand for some of Plain's own.

        They are called as what they replace is: entry points with self, single operations without.
        """
        members = {
            member: staticmethod(other) if isinstance(vars(Plain)[member], staticmethod) else other
            for member, other in replaced.items()
        }
        return type(name, (Plain,), members | {"__name__": name})()

    # -- entry points

    def targets(self):
        return [("cpu", "float32"), ("cpu", "float64")]

    def load(self, params, hparams, *, device, dtype):
        if (device, dtype) not in self.targets():
            raise ValueError(f"{self.__name__} runs on {self.targets()}, not on {(device, dtype)}")
        return Model(self.converted(params, hparams, dtype), hparams, dtype)

    def numpy(self, x):
        return np.asarray(x)

    def forward(self, model, tokens, past=None, tap=None):
        """Logits [batch, n, n_vocab] of every position of tokens [batch, n], and the cache after it."""
        tokens = np.asarray(tokens)
        self.refuse(tokens, length(past), model.hparams)
        at = At("embed", length(past), model, tap)
        wte, wpe = model.params["wte"], model.params["wpe"]
        x = self.show(self.embed(tokens, wte, wpe, at), at)  # [batch, n, n_embd]
        present = []
        for i in range(model.hparams.n_layer):
            x, keys_and_values = self.block(x, past[i] if past else None, at._replace(name=f"h{i}"))
            present.append(keys_and_values)
        x = self.norm(x, at._replace(name="ln_f"))
        return self.head(x, wte, at._replace(name="logits")), present

    def generate(self, model, tokens, n_new):
        """Greedy continuation, int32 [batch, n_new]: prefill once, then decode through the cache."""
        logits, past = self.forward(model, tokens)
        new = [self.choose(logits)]
        while len(new) < n_new:
            logits, past = self.forward(model, new[-1], past)
            new.append(self.choose(logits))
        return np.concatenate(new, axis=1)

    # -- a block, and its steps: each is an operation whose result is tapped

    def block(self, x, past, at):
        """Attention and MLP, each behind a layer norm, each added back; and the cache of this layer."""
        qkv = self.affine(self.norm(x, at.step("ln_1")), at.step("attn/c_attn"))  # [batch, n, 3 n_embd]
        heads, present = self.attend(qkv, past, at.step("attn/heads"))
        x = self.residual(x, self.affine(heads, at.step("attn/c_proj")), at.step("resid_mid"))
        hidden = self.affine(self.norm(x, at.step("ln_2")), at.step("mlp/c_fc"))  # [batch, n, 4 n_embd]
        hidden = self.show(self.gelu(hidden, at.step("mlp/gelu")), at.step("mlp/gelu"))
        return self.residual(x, self.affine(hidden, at.step("mlp/c_proj")), at), present

    def norm(self, x, at):
        return self.show(self.layer_norm(x, *at.weights("g", "b"), at), at)

    def affine(self, x, at):
        return self.show(self.linear(x, *at.weights("w", "b"), at), at)

    def attend(self, qkv, past, at):
        q, k, v = self.split_heads(qkv, at)
        keys, values = self.extend(past, k, v, at)
        return self.show(self.attention(q, keys, values, at), at), (keys, values)

    def attention(self, q, keys, values, at):
        """Causal attention of the new positions over all so far: [batch, n, n_embd]."""
        scores = self.mask(self.scores(q, keys, at), at)
        return self.merge_heads(self.weigh(self.softmax(scores, at), values, at), at)

    def residual(self, x, branch, at):
        return self.show(self.add(x, branch, at), at)

    # -- operations

    @staticmethod
    def converted(params, hparams, dtype):
        """Copies in the declared precision."""
        return {name: np.array(w, dtype) for name, w in params.items()}

    @staticmethod
    def refuse(tokens, n_past, hparams):
        """Raise ValueError for what NumPy would wrap (negative ids) or fail on obscurely."""
        if tokens.ndim != 2 or tokens.size == 0:
            raise ValueError(f"tokens must be [batch, n] and not empty, got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:
            raise ValueError(f"token ids must be in [0, {hparams.n_vocab})")
        if n_past + tokens.shape[1] > hparams.n_ctx:
            raise ValueError(f"{n_past} + {tokens.shape[1]} tokens exceed n_ctx = {hparams.n_ctx}")

    @staticmethod
    def show(x, at):
        """Hand a result to the tap, if there is one, and pass it on."""
        if at.tap:
            at.tap(at.name, x)
        return x

    @staticmethod
    def embed(tokens, wte, wpe, at):
        return wte[tokens] + wpe[at.n_past : at.n_past + tokens.shape[1]]

    @staticmethod
    def layer_norm(x, g, b, at, eps=1e-5):
        """Zero mean and unit (biased) variance over the last axis, then scale by g and shift by b."""
        y = x - x.mean(axis=-1, keepdims=True)
        variance = (y * y).mean(axis=-1, keepdims=True)
        return y / np.sqrt(variance + eps) * g + b

    @staticmethod
    def linear(x, w, b, at):
        return x @ w + b

    @staticmethod
    def split_heads(qkv, at):
        """[batch, n, 3 n_embd] -> q, k, v, each [batch, n_head, n, head]."""
        batch, n, _ = qkv.shape
        return qkv.reshape(batch, n, 3, at.model.hparams.n_head, -1).transpose(2, 0, 3, 1, 4)

    @staticmethod
    def extend(past, k, v, at):
        """Keys and values so far, [batch, n_head, n_keys, head]: those of the cache, then the new."""
        if past is None:
            return k, v
        return np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)

    @staticmethod
    def scores(q, keys, at):
        return q @ keys.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # [batch, n_head, n, n_keys]

    @staticmethod
    def mask(scores, at):
        return np.where(causal(scores), scores, -np.inf)

    @staticmethod
    def softmax(scores, at):
        """Over the last axis, less the maximum so that exp cannot overflow."""
        y = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return y / y.sum(axis=-1, keepdims=True)

    @staticmethod
    def weigh(probs, values, at):
        return probs @ values  # [batch, n_head, n, head]

    @staticmethod
    def merge_heads(y, at):
        batch, n_head, n, head = y.shape
        return y.swapaxes(1, 2).reshape(batch, n, n_head * head)

    @staticmethod
    def add(x, branch, at):
        return x + branch

    @staticmethod
    def gelu(x, at):
        """GELU by its tanh approximation, as OpenAI has it (not the exact erf form)."""
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))

    @staticmethod
    def head(x, wte, at):
        return x @ wte.T  # tied to the embedding

    @staticmethod
    def choose(logits):
        """The likeliest next token of each row: [batch, 1]."""
        return logits[:, -1:].argmax(axis=-1).astype(np.int32)
