"""The file that ``parity new`` writes: the contract as a module to fill in, or a whole example."""

import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.spelling import meant
from gpt2_parity.files import atomic
from gpt2_parity.implementation import discovery

TEXT = '''"""NAME: GPT-2. Verify it with: parity gate NAME.py

Fill in load and forward; parity reports what is missing. The NumPy specimen, gpt2_numpy.py, is a
complete example to copy from; parity list says in which folder it is. The whole contract is in
docs/contract.md of the repository of gpt2-parity.

GPT-2 in short: layer norm with epsilon 1e-5 before attention and before the MLP, scores divided by
sqrt(n_embd / n_head), the tanh form of GELU, a last layer norm, wte transposed as the head.
"""

import numpy as np

# forward may tap activations: the more it taps, the better the verdict can name the operation that is
# wrong. Names: embed, h0/ln_1, h0/attn/c_attn, h0/attn/heads, h0/attn/c_proj, h0/resid_mid, h0/ln_2,
# h0/mlp/c_fc, h0/mlp/gelu, h0/mlp/c_proj, h0 (and so on for h1, h2, ...), ln_f. Promise them with
# TAPS = "all" or a list of names: then a tap that is missing is a failure.
# To get each w in memory as [n_out, n_in], while its shape stays [n_in, n_out]: ORDER = "F".
# If load compiles, so that each takes long: RELOADS = "slow". Then fewer small models are loaded.


def targets():
    """The (device, dtype) pairs that can run on this machine; also float64, bfloat16, float16."""
    return [("cpu", "float32")]


def load(params, hparams, *, device, dtype):
    """The model, in any form: forward receives what you return.

    params: float32 arrays by OpenAI's names (wte [n_vocab, n_embd], wpe [n_ctx, n_embd],
    h0/attn/c_attn/w [n_embd, 3 * n_embd], h0/attn/c_attn/b, h0/ln_1/g, ..., ln_f/g, ln_f/b), each w as
    [n_in, n_out]. They are mapped from a file for you alone: you may keep them and write into them.
    hparams: hparams.n_vocab, .n_ctx, .n_embd, .n_head, .n_layer. device and dtype are those of one of
    your targets. Small models of other sizes or weights are loaded too; all must keep working.
    """
    raise NotImplementedError("load is yours to write: return a model")


def forward(model, tokens, past=None, tap=None):
    """(logits [batch, n, n_vocab] of every position, cache) for int32 tokens [batch, n].

    past is the cache that an earlier call returned: tokens continue from there. If tap is not None, call
    tap("h0/ln_1", x) with activations [batch, n, width]. tap() may raise to stop the pass early; let the
    exception propagate. Raise any exception for token ids outside 0 to n_vocab - 1, for no tokens, and
    for more than n_ctx tokens with those in past.
    """
    raise NotImplementedError("forward is yours to write: return logits and cache")


def numpy(x):
    """x (logits or an activation) on the host, as a floating NumPy array."""
    return np.asarray(x)


'''
OPTIONAL = "# Optional: {signature} returns {returns}\n"  # a line for each capability


def write(name: str, folder: Path, capabilities: Sequence[Capability]) -> Path:
    """Write NAME.py into folder and return its path; capabilities: the optional functions it mentions.

    Raises CannotJudge for a bad name, and if the file exists.
    """
    path = path_of(name, folder)
    optional = "".join(
        OPTIONAL.format(signature=each.signature, returns=each.returns) for each in capabilities
    )
    atomic.write_text(path, TEXT.replace("NAME", path.stem) + optional)
    return path


def copy_example(name: str, folder: Path, example: str) -> Path:
    """Write NAME.py into folder, a shipped implementation with its comments, and return its path.

    Raises CannotJudge for a bad name, if the file exists, and for an example that does not exist.
    """
    if example not in discovery.names():
        known = ", ".join(discovery.names())
        raise CannotJudge(f"example {example!r}: not one of {known}{meant(example, discovery.names())}")
    path = path_of(name, folder)
    source = Path(discovery.find(example).module).read_text(encoding="utf-8")
    atomic.write_text(path, source)
    return path


def path_of(name: str, folder: Path) -> Path:
    """Where NAME.py is written. Raises CannotJudge for a bad name, and if the file exists."""
    stem = name.removesuffix(".py")
    if not re.fullmatch(r"[A-Za-z_]\w*", stem):
        raise CannotJudge(f"{name!r}: not a name for a Python module; use letters, digits and _")
    if keyword.iskeyword(stem):
        raise CannotJudge(f"{name!r}: not a name for a module, because it is a keyword of Python")
    if stem in sys.stdlib_module_names:
        raise CannotJudge(f"{name!r}: it would hide the module of that name in Python's library")
    path = folder / f"{stem}.py"
    if path.exists():
        raise CannotJudge(f"{path}: exists already; choose another name or remove it")
    return path
