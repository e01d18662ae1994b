"""Record known answers for models about which nobody else publishes any: micro, or shape:124M if named.

The facts to record are listed below; the float64 oracle computes their values. A number is written with
the digits that float32 noise leaves certain: rounding and noise together are at most 0.38 of a unit of
the last digit. The check allows 0.6 (published/known_answers.py), so the right value passes, and a value
with a different last digit fails.

    python golden/record_known.py [micro] [shape:124M]
"""

import json
import sys
from typing import Any

import numpy as np

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import Tap
from gpt2_parity.files import atomic, safetensors_mmap
from gpt2_parity.model import catalogue, checkpoint
from gpt2_parity.published import known_answers, probes
from gpt2_parity.reference import oracle
from gpt2_parity.reference.noise import arithmetic
from gpt2_parity.reference.records import CONTINUATION, PROMPT

SOURCE = "golden/record_known.py: the float64 oracle"
DRAWS = 5  # draws of float32 noise, to find which digits are certain
ROOM = 3.0  # factor on the greatest noise among the draws
CERTAIN = 0.38  # of a unit of the last digit: a value one unit off then exceeds known_answers.LAST_DIGIT


class Oracle:
    """The float64 oracle, or one float32 draw of its noise, under the contract of an implementation."""

    def __init__(self, params: Any, hparams: HParams, arithmetic: oracle.Arithmetic = oracle.EXACT):
        self.params, self.hparams, self.arithmetic = params, hparams, arithmetic

    def forward(self, model: Any, tokens: np.ndarray, past: Any = None, tap: Tap | None = None) -> Any:
        tokens = tokens if past is None else np.concatenate([past, tokens], axis=1)
        logits = oracle.forward(self.params, self.hparams, tokens, tap, self.arithmetic)
        return logits, tokens  # it has no cache: it computes all positions again

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x


def without_values(name: str, hparams: HParams) -> list[probes.Fact]:
    """Facts without expected values. "skeleton" is the form of the value, where evaluation needs it."""
    last = hparams.n_layer - 1
    prompt: Any = PROMPT if name == "micro" else [3, 1, 4, 1, 5, 9]
    about = {"prompt": prompt}
    facts: list[probes.Fact] = [
        {"kind": "hparams"},
        {"kind": "tensor", "tensor": "wte", "slice": "-1, :6"},
        {"kind": "tensor", "tensor": "h0/attn/c_attn/w", "slice": "0, -6:"},
        {
            "kind": "tensor_statistics",
            "tensor": f"h{last}/mlp/c_proj/w",
            "skeleton": ["mean", "rms", "min"],
        },
        {"kind": "output_bias_difference", "pair": [7, 11]},
        about | {"kind": "tap", "tap": f"h{last}/mlp/gelu", "slice": "0, 1:3, 5:8"},
        about | {"kind": "logits", "slice": "0, 1:4, 1:4"},
        about | {"kind": "logit_difference", "pair": [1, 2]},
        about | {"kind": "top", "of": "logits", "at": [0, -1], "skeleton": 5},
        about | {"kind": "top", "of": "probs", "at": [-1], "skeleton": 3},
        about | {"kind": "logprobs", "first": 1, "of": "logprobs"},
        about | {"kind": "logprob_sum", "first": 4},
        about | {"kind": "mean_nll", "of": "nll"},
        {"kind": "greedy", "prompt": [5, 8, 13], "skeleton": 6},
    ]
    if name == "micro":  # a generated model has no text, and its forward passes take longer
        facts += [
            {"kind": "tokens", "text": "Alan Turing theorized, in 1936: don't stop!"},
            {"kind": "greedy", "prompt": PROMPT, "expected": CONTINUATION},
            *({"kind": "file", "file": file} for file in ("hparams.json", checkpoint.DATA)),
            {"kind": "tensor_statistics", "tensor": "wpe", "skeleton": ["rms", "max"]},
            about | {"kind": "tap", "tap": "embed", "slice": "0, -1, :4"},
            about | {"kind": "tap_statistics", "tap": "ln_f", "skeleton": ["min", "max", "rms"]},
            about | {"kind": "logits", "slice": "0, -1, -5:"},
            about | {"kind": "logprobs", "first": 2, "of": "nll"},
            about | {"kind": "logprobs", "first": 3, "of": "probs"},
            about | {"kind": "mean_nll", "of": "nll", "rows": 3},
            about | {"kind": "mean_nll", "of": "perplexity"},
        ]
    slug = name.replace(":", "-")
    return [
        {"id": f"{slug}-{i:02}-{fact['kind']}", "model": name} | fact for i, fact in enumerate(facts)
    ]


def main(names: list[str]) -> None:
    kept = [fact for fact in known_answers.read() if fact["model"] not in names]
    new = [fact for name in names for fact in record(catalogue.locate(name))]
    lines = ",\n".join(f"  {json.dumps(fact, ensure_ascii=False)}" for fact in [*new, *kept])
    text = f'{{\n "format": 1,\n "facts": [\n{lines}\n ]\n}}\n'
    atomic.write_text(known_answers.FACTS, text)
    print(f"{len(new)} facts recorded, {len(kept)} kept: {known_answers.FACTS}")


def record(model: catalogue.Model) -> list[probes.Fact]:
    """The facts with the exact oracle's values, to the digits that float32 noise leaves certain."""
    files = known_answers.model_files(model, None, None)
    params = safetensors_mmap.read(files.weights)
    draws = [arithmetic("float32", np.random.default_rng([0, draw])) for draw in range(DRAWS)]
    exact, *noisy = (
        probes.Evaluator(Oracle(params, files.hparams, each), None, params, files)
        for each in (oracle.EXACT, *draws)
    )
    return [with_value(fact, exact, noisy) for fact in without_values(model.name, files.hparams)]


def with_value(fact: probes.Fact, exact: probes.Evaluator, noisy: list[probes.Evaluator]) -> probes.Fact:
    """The fact with its expected value and its source."""
    skeleton, kind = fact.pop("skeleton", None), fact["kind"]
    if kind == "greedy" and skeleton:
        fact["expected"] = [-1] * skeleton
        fact["expected"] = probes.greedy(exact, fact)["ids"]
    elif kind == "top":
        fact["expected"] = ranked(exact, fact, skeleton)
    elif isinstance(skeleton, list):
        fact["expected"] = dict.fromkeys(skeleton, 0)
    elif kind == "file":
        fact["expected"] = dict.fromkeys(("bytes", "sha256"), 0)
    evaluate = probes.KINDS[kind]
    if kind in probes.EXACT:
        fact["expected"] = evaluate(exact, fact)
    elif kind != "greedy":
        got = evaluate(exact, fact)
        spread = [evaluate(each, fact) for each in noisy]
        fact["expected"] = certain(got, spread) if kind != "top" else named(fact, got, spread)
    return fact | {"source": SOURCE}


def ranked(exact: probes.Evaluator, fact: probes.Fact, k: int) -> list[list[list[int]]]:
    """The ids of the k greatest logits at each position, without their values."""
    found = exact.logits(exact.prompt(fact))[0]
    return [[[int(i), 0] for i in np.argsort(-found[at])[:k]] for at in fact["at"]]


def named(fact: probes.Fact, got: Any, spread: list[Any]) -> list[Any]:
    """Token ids with their values."""
    values = certain(got, spread)
    return [
        [[token, value] for (token, _), (value, _) in zip(row, found, strict=True)]
        for row, found in zip(fact["expected"], values, strict=True)
    ]


def certain(got: Any, spread: list[Any]) -> Any:
    """Numbers as text with only their certain digits, in the same nested form.

    spread: the same values from each noisy oracle. Raises SystemExit if no digit is certain.
    """
    if isinstance(got, dict):
        return {key: certain(value, [each[key] for each in spread]) for key, value in got.items()}
    if isinstance(got, list):
        return [certain(value, [each[i] for each in spread]) for i, value in enumerate(got)]
    noise = ROOM * max(abs(each - got) for each in spread) + 1e-12
    for decimals in range(9, -1, -1):
        unit = 10.0**-decimals
        if abs(float(f"{got:.{decimals}f}") - got) + noise < CERTAIN * unit:
            return f"{got:.{decimals}f}"
    raise SystemExit(f"{got}: no digit of it is certain ({noise:.2g})")


if __name__ == "__main__":
    main(sys.argv[1:] or ["micro"])
