"""Planted faults: the smallest edits of a correct specimen that make it wrong, on one shelf.

A fault is a change of source text of impls/gpt2_numpy.py, with what must trip over it. A fault
that does not apply, because the text is not there exactly once, is an error and never a score.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from harness.discover import IMPLS, Found

SPECIMEN = IMPLS / "gpt2_numpy.py"


class Fault(NamedTuple):
    """A planted mistake and the checks that must fail for it."""

    name: str
    edits: Sequence[tuple[str, str]]  # old text, new text
    trips: frozenset[str]
    first: str = ""  # the first tap, in order of execution, at which activations must fail


def fault(name: str, *edits: tuple[str, str], trips: str, first: str = "") -> Fault:
    return Fault(name, edits, frozenset(trips.split()), first)


FAULTS = [
    fault(
        "erf_gelu",
        ("import math\n", "import math\nfrom statistics import NormalDist\n"),
        (
            "return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))",
            "return x * np.vectorize(NormalDist().cdf)(x).astype(x.dtype)",
        ),
        trips="logits activations",
        first="h0/mlp/gelu",
    ),
    fault(
        "epsilon_1e-6",
        ("eps=1e-5", "eps=1e-6"),
        trips="logits activations",
        first="h0/ln_1",
    ),
    fault(
        "missing_scale",
        (" * (1 / math.sqrt(q.shape[-1]))", ""),
        trips="logits activations greedy",
        first="h0/attn/heads",
    ),
    fault(
        "mask_off_by_one",
        (
            "np.arange(n_keys) <= np.arange(n_keys - n, n_keys)[:, None]",
            "np.arange(n_keys) <= np.arange(n_keys - n, n_keys)[:, None] + 1",
        ),
        trips="logits activations causality kv_cache",
        first="h0/attn/heads",
    ),
    fault(
        "cache_position_not_advanced",
        ('p["wpe"][n_past : n_past + n]', 'p["wpe"][0:n]'),
        trips="kv_cache greedy lengths",
    ),
    fault(
        "transposed_c_proj",
        ('step("attn/heads", heads)', 'step("attn/heads", heads), turn=True'),
        ("def affine(leaf, value):", "def affine(leaf, value, turn=False):"),
        (
            'linear(value, p[f"{scope}/{leaf}/w"],',
            'linear(value, p[f"{scope}/{leaf}/w"].T if turn else p[f"{scope}/{leaf}/w"],',
        ),
        trips="logits activations greedy",
        first="h0/attn/c_proj",
    ),
    fault(
        "untied_head",
        ('x @ p["wte"].T, present', 'x @ np.roll(p["wte"], 1, axis=0).T, present'),
        trips="logits greedy",
    ),
    fault(
        "batch_rows_swapped",
        ('return x @ p["wte"].T, present', 'return (x @ p["wte"].T)[::-1], present'),
        trips="logits greedy batch",
    ),
    fault(
        "nan_in_one_logit",
        (
            'return x @ p["wte"].T, present',
            'logits = x @ p["wte"].T\n    logits[-1, -1, 7] = np.nan\n    return logits, present',
        ),
        trips="logits greedy kv_cache batch determinism lengths taps",
    ),
    fault(
        "taps_missing",
        ('tap(f"{scope}/{leaf}", value)', 'leaf == "mlp/gelu" or tap(f"{scope}/{leaf}", value)'),
        trips="activations",
        first="h0/mlp/gelu",
    ),
    fault(
        "taps_disturb",
        (
            "    tap = tap or (lambda name, array: None)\n    tokens",
            '    p = p if tap is None else {**p, "ln_f/b": p["ln_f/b"] + 0.01}\n'
            "    tap = tap or (lambda name, array: None)\n    tokens",
        ),
        trips="activations taps",
        first="ln_f",
    ),
    fault(
        "dropout_left_on",
        (
            'tap("embed", x)',
            "x = x * np.random.default_rng().choice([0.99, 1.01], x.shape).astype(x.dtype)\n"
            '    tap("embed", x)',
        ),
        trips="logits activations determinism taps",
        first="embed",
    ),
    fault(
        "result_overwritten",
        ('    return x @ p["wte"].T, present', '    return reuse(x @ p["wte"].T), present'),
        (
            "def refuse_bad_tokens",
            "BUFFERS = {}\n\n\ndef reuse(logits):\n"
            "    buffer = BUFFERS.setdefault(logits.shape, logits)\n"
            "    buffer[:] = logits\n    return buffer\n\n\ndef refuse_bad_tokens",
        ),
        trips="determinism",
    ),
    fault(
        "negative_tokens_wrap",
        ("tokens.min() < 0 or ", ""),
        trips="bad_tokens",
    ),
    fault(
        "tokens_clamped",
        (
            "    refuse_bad_tokens(tokens, n_past, hparams)\n",
            "    tokens = np.clip(tokens, 0, hparams.n_vocab - 1)\n"
            "    refuse_bad_tokens(tokens, n_past, hparams)\n",
        ),
        trips="bad_tokens",
    ),
    fault(
        "n_ctx_off_by_one",
        ("> hparams.n_ctx:", ">= hparams.n_ctx:"),
        trips="lengths logits",
    ),
    fault(
        "last_layer_skipped",
        ("for i in range(hparams.n_layer):", "for i in range(hparams.n_layer - 1):"),
        trips="logits activations",
        first="h3/ln_1",
    ),
    fault(
        "generate_repeats_itself",
        (
            "logits, past = forward(model, new[-1][:, None], past)",
            "logits, past = forward(model, new[0][:, None], past)",
        ),
        trips="greedy",
    ),
]


def source(found: Fault, text: str | None = None) -> str:
    """The specimen's source with the fault in it. Raises ValueError where it does not apply."""
    text = SPECIMEN.read_text(encoding="utf-8") if text is None else text
    for old, new in found.edits:
        if text.count(old) != 1:
            raise ValueError(f"{found.name}: the specimen has {text.count(old)} times: {old!r}")
        text = text.replace(old, new)
    return text


def plant(found: Fault, folder: Path) -> ModuleType:
    """The faulty specimen, written to folder and imported as a user's PATH.py would be."""
    path = folder / f"{found.name}.py"
    path.write_text(source(found), encoding="utf-8")
    return Found(found.name, str(path)).load()
