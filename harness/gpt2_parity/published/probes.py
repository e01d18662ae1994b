"""Evaluate published facts: one function for each kind of fact.

Each takes a loaded implementation (the Evaluator) and a fact, and returns plain numbers in the form of
the fact's ``expected``. Nothing is judged here; see known_answers.py.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict

import numpy as np

from gpt2_parity.contract.architecture import HParams, tap_names
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.files import digest, safetensors_mmap
from gpt2_parity.implementation.discovery import Found
from gpt2_parity.implementation.without_cache import with_cache
from gpt2_parity.model import weight_layout
from gpt2_parity.model.tokenizer import Tokenizer, tokenizer_of
from gpt2_parity.reference.distance import log_softmax

EXACT = ("tokens", "hparams", "file")  # kinds whose values must be equal
# Float32 implementations are published to differ by up to 24 roundings of the greatest logit on the
# official 124M (2.9e-4). Two logits may differ in opposite directions: 48. 64 leaves some room.
NEAR_TIE = 64 * 2.0**-24


class Fact(TypedDict, total=False):
    """One fact of golden/known_answers.json. Which of the fields it has depends on its kind."""

    id: Required[str]
    model: Required[str]  # 124M and so on; "official": every official size
    source: Required[str]
    kind: Required[str]  # a name in KINDS
    expected: Any
    within: float  # allowed absolute difference
    relative: float  # allowed difference beyond that, as a share of the expected value
    prompt: str | list[int]
    text: str
    of: str  # logits, probs, logprobs, nll or perplexity
    slice: str  # of an array, in Python's notation
    at: list[int]  # positions
    first: int  # the position of the first token whose log-probability counts
    pair: tuple[int, int]  # token ids
    tensor: str
    tap: str
    file: str
    sha1: str
    rows: int  # tokens in a row
    tokens: dict[str, Any]  # where the tokens are: see Evaluator.tokens


class NotRun(Exception):
    """The fact cannot be evaluated here. The text says why."""


class ModelFiles(NamedTuple):
    """The files of a model, and third-party files that the user may have."""

    checkpoint: Path
    weights: Path
    hparams: HParams
    texts: Path | None = None
    gluon_logits: Path | None = None


class Evaluator:
    """A loaded implementation, whose results are converted to float64 on the host."""

    def __init__(self, impl: Any, model: Any, params: Mapping[str, np.ndarray], files: ModelFiles):
        self.impl, self.model, self.params, self.files = impl, model, params, files
        self.hparams = files.hparams
        self.tokenizer: Tokenizer | None = tokenizer_of(files.checkpoint, files.hparams)
        self._latest: tuple[bytes, np.ndarray] | None = None

    @classmethod
    def load(cls, found: Found, target: Target, files: ModelFiles) -> "Evaluator":
        impl, hparams = with_cache(found.load()), files.hparams
        if target not in [Target(*each) for each in impl.targets()]:
            raise CannotJudge(f"{found.name} does not offer {target}")
        model = impl.load(weight_layout.params_for(impl, files.weights), hparams, **target._asdict())
        return cls(impl, model, safetensors_mmap.MappedArrays(files.weights), files)

    def encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise NotRun("the model has no tokenizer")
        return self.tokenizer.encode(text)

    def prompt(self, fact: Fact) -> list[int]:
        prompt = fact["prompt"]
        return self.encode(prompt) if isinstance(prompt, str) else prompt

    def forward(self, ids: Any, past: Any = None, tap: Any = None) -> tuple[np.ndarray, Any]:
        """Logits float64 [batch, n, n_vocab] of ids [batch, n], and the cache."""
        logits, present = self.impl.forward(self.model, np.array(ids, np.int32), past, tap)
        return np.array(self.impl.numpy(logits), np.float64), present

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Float64 [1, n, n_vocab], kept for the next fact, which often has the same prompt."""
        key = np.asarray(ids).tobytes()
        if self._latest is None or self._latest[0] != key:
            self._latest = (key, self.forward([ids])[0])
        return self._latest[1]

    def tap(self, ids: Sequence[int], name: str) -> np.ndarray:
        """Float64 [1, n, width]. Raises NotRun where the implementation does not tap it."""
        found: dict[str, np.ndarray] = {}

        def tap(tapped: str, value: Any) -> None:
            if tapped == name:
                found[name] = np.array(self.impl.numpy(value), np.float64)

        self.forward([ids], tap=tap)
        if name not in found:
            if name not in tap_names(self.hparams.n_layer):
                raise ValueError(f"there is no tap {name}")
            raise NotRun(f"the implementation does not tap {name}")
        return found[name]

    def tokens(self, wanted: dict[str, Any]) -> list[int]:
        """Token ids from a file that the user has: a list in a JSON file, or a part of a text.

        Raises NotRun where the file is missing or is another one.
        """
        if self.files.texts is None or not (path := self.files.texts / wanted["file"]).is_file():
            raise NotRun(f"{wanted['file']} is missing: name its folder with --texts")
        if "key" in wanted:
            return json.loads(path.read_text(encoding="utf-8"))[wanted["key"]]
        if (sha := digest.sha256(path)) != wanted["sha256"]:
            raise NotRun(f"{path}: SHA-256 is {sha}, the fact is about {wanted['sha256']}")
        text = path.read_text(encoding="utf-8")
        start, end = (int(share * len(text)) for share in wanted["span"])
        return self.encode(text[start:end])


def pick(array: np.ndarray, text: str) -> Any:
    """A part of an array by its Python index, such as "0, 1:4, :10", as numbers."""
    index = tuple(
        slice(*(int(part) if part.strip() else None for part in axis.split(":")))
        if ":" in axis
        else int(axis)
        for axis in text.split(",")
    )
    return np.asarray(array[index], np.float64).tolist()


def tokens(evaluator: Evaluator, fact: Fact) -> list[int]:
    """Token ids of a text."""
    return evaluator.encode(fact["text"])


def hparams(evaluator: Evaluator, fact: Fact) -> dict[str, int]:
    """Sizes, parameters and tensors of the checkpoint."""
    arrays = evaluator.params.values()
    counted = {"n_params": sum(int(a.size) for a in arrays), "n_tensors": len(arrays)}
    return evaluator.hparams._asdict() | counted


def file(evaluator: Evaluator, fact: Fact) -> dict[str, Any]:
    """Size and SHA-256 of a file of the checkpoint."""
    path = evaluator.files.checkpoint / fact["file"]
    got = {"bytes": path.stat().st_size, "sha256": digest.sha256(path)}
    return {key: got[key] for key in fact["expected"]}


def tensor(evaluator: Evaluator, fact: Fact) -> Any:
    """Some elements of a weight."""
    return pick(evaluator.params[fact["tensor"]], fact["slice"])


def statistics(array: np.ndarray, fact: Fact) -> dict[str, float]:
    x = np.asarray(array, np.float64)
    got = {"min": x.min(), "max": x.max(), "sum": x.sum(), "mean": x.mean()}
    got["rms"] = np.sqrt(np.mean(x * x))
    return {key: float(got[key]) for key in fact["expected"]}


def tensor_statistics(evaluator: Evaluator, fact: Fact) -> dict[str, float]:
    """Mean and the like of a weight."""
    return statistics(evaluator.params[fact["tensor"]], fact)


def output_bias_difference(evaluator: Evaluator, fact: Fact) -> float:
    """How much more ln_f's bias adds to the logit of one token than to that of another."""
    wte, b = evaluator.params["wte"].astype(np.float64), evaluator.params["ln_f/b"]
    first, second = fact["pair"]
    return float((wte[first] - wte[second]) @ b)


def tap(evaluator: Evaluator, fact: Fact) -> Any:
    """Some elements of an activation [1, n, width]."""
    return pick(evaluator.tap(evaluator.prompt(fact), fact["tap"]), fact["slice"])


def tap_statistics(evaluator: Evaluator, fact: Fact) -> dict[str, float]:
    """Sum and the like of an activation."""
    return statistics(evaluator.tap(evaluator.prompt(fact), fact["tap"]), fact)


def logits(evaluator: Evaluator, fact: Fact) -> Any:
    """Some logits [1, n, n_vocab]."""
    return pick(evaluator.logits(evaluator.prompt(fact)), fact["slice"])


def logit_difference(evaluator: Evaluator, fact: Fact) -> float:
    """The logit of one next token minus that of another."""
    last = evaluator.logits(evaluator.prompt(fact))[0, -1]
    first, second = fact["pair"]
    return float(last[first] - last[second])


def top(evaluator: Evaluator, fact: Fact) -> list[list[list[float]]]:
    """At each position: the values of the tokens named, and beside each the value of that rank.

    Both must be as published, so no other token can be among the greatest, and two tokens whose values
    are equal within the tolerance may come in either order.
    """
    found = evaluator.logits(evaluator.prompt(fact))[0]
    if fact["of"] == "probs":
        found = np.exp(log_softmax(found))
    got = []
    for position, row in zip(fact["at"], fact["expected"], strict=True):
        ranked = np.sort(found[position])[::-1]
        got.append([[float(found[position, int(row[k][0])]), float(ranked[k])] for k in range(len(row))])
    return got


def logprobs(evaluator: Evaluator, fact: Fact) -> list[float]:
    """Log-probability (nats), its negative, or probability of each token from fact["first"] on."""
    found = log_probabilities(evaluator, evaluator.prompt(fact))[fact["first"] - 1 :]
    return {"logprobs": found, "nll": -found, "probs": np.exp(found)}[fact["of"]].tolist()


def log_probabilities(evaluator: Evaluator, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities in nats [n - 1] of every token but the first, given those before it."""
    known = log_softmax(evaluator.logits(ids)[0, :-1])
    return known[np.arange(len(ids) - 1), np.asarray(ids[1:])]


def logprob_sum(evaluator: Evaluator, fact: Fact) -> float:
    """The log-probability (nats) of a continuation."""
    return float(log_probabilities(evaluator, evaluator.prompt(fact))[fact["first"] - 1 :].sum())


def mean_nll(evaluator: Evaluator, fact: Fact) -> float:
    """Mean negative log-probability (nats) of the next token, or its exponential, the perplexity.

    With rows, the text is cut into rows of so many tokens, each evaluated alone; the rest is left out.
    """
    ids = evaluator.tokens(fact["tokens"]) if "tokens" in fact else evaluator.prompt(fact)
    n = fact.get("rows", len(ids) - 1)
    starts = range(0, len(ids) - n, n)
    if not starts:
        raise ValueError(f"{len(ids)} tokens are too few for a row of {n}")
    rows = [log_probabilities(evaluator, ids[start : start + n + 1]) for start in starts]
    nll = -float(np.mean(rows))
    return math.exp(nll) if fact["of"] == "perplexity" else nll


def greedy(evaluator: Evaluator, fact: Fact) -> dict[str, Any]:
    """Greedy ids, and the margin of each in logits, as many as judge_greedy needs."""
    ids, past = evaluator.prompt(fact), None
    wanted = fact["expected"]
    text = isinstance(wanted, str)
    if text and evaluator.tokenizer is None:
        raise NotRun("the model has no tokenizer")
    got: dict[str, Any] = {"ids": [], "margins": [], "tie": [], "text": ""}
    feed: list[int] = list(ids)
    while len(got["ids"]) < (len(wanted.encode()) if text else len(wanted)):
        found, past = evaluator.forward([feed], past)
        last = found[0, -1]
        second, best = np.argsort(last)[-2:]
        feed = [int(best)]
        got["ids"] += feed
        got["margins"].append(float(last[best] - last[second]))
        got["tie"].append(NEAR_TIE * float(np.abs(last).max()))
        if text and evaluator.tokenizer is not None:
            got["text"] = evaluator.tokenizer.decode(got["ids"])
            if not wanted.startswith(got["text"].rstrip("\ufffd")) or got["text"] == wanted:
                break
    return got


def logits_file(evaluator: Evaluator, fact: Fact) -> float:
    """The greatest difference from published logits, as a multiple of what is allowed."""
    given = evaluator.files.gluon_logits
    path = given / fact["file"] if given is not None and given.is_dir() else given
    if path is None or not path.is_file():
        raise NotRun(f"{fact['file']} is missing: name it, or its folder, with --gluon-logits")
    if (sha := sha1(path)) != fact["sha1"]:
        raise NotRun(f"{path}: SHA-1 is {sha}, the published {fact['file']} has {fact['sha1']}")
    want = np.load(path, allow_pickle=False).astype(np.float64)
    got = evaluator.logits(evaluator.prompt(fact))
    if got.shape != want.shape:
        raise ValueError(f"logits are {got.shape}, published are {want.shape}")
    return float(np.max(np.abs(got - want) / (fact["within"] + fact["relative"] * np.abs(want))))


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


KINDS: dict[str, Callable[[Evaluator, Fact], Any]] = {
    function.__name__: function
    for function in (
        *(tokens, hparams, file, tensor, tensor_statistics, output_bias_difference),
        *(tap, tap_statistics, logits, logits_file, logit_difference, top),
        *(logprobs, logprob_sum, mean_nll, greedy),
    )
}
