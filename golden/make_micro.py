"""Make golden/micro: train a small GPT-2 and save it in OpenAI's file layout.

    python golden/make_micro.py [--steps 1500] [--out golden/micro]

The text is the docstrings of the running Python's standard library, split by file into training and
held-out text, plus one sentence that is repeated until the model has memorised it. No text is
committed; golden/micro_training.json records the Python version and the losses. Training is seeded: the
same Python, packages and machine give the same checkpoint.
"""

import argparse
import ast
import json
import math
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import tensorflow as tf
from tokenizers import ByteLevelBPETokenizer

from gpt2_parity.contract.architecture import HParams, parameter_shapes, variable_shapes
from gpt2_parity.files import atomic
from gpt2_parity.model.checkpoint import FILES
from gpt2_parity.model.tokenizer import END_OF_TEXT, Tokenizer
from gpt2_parity.reference.records import CONTINUATION, PROMPT

sys.path.insert(0, str(Path(__file__).parent.parent / "impls"))
import gpt2_jax

SENTENCE = PROMPT + CONTINUATION
HPARAMS = HParams(n_vocab=1000, n_ctx=256, n_embd=128, n_head=4, n_layer=4)
BATCH, RECITING = 16, 2  # rows in a batch, and how many of them start with the sentence
PEAK_RATE, WARM_UP = 2e-3, 100
HELD_OUT = 20  # every 20th file
Params = tuple[dict[str, jax.Array], tuple[dict[str, jax.Array], ...]]  # gpt2_jax.Model without hparams


def documents() -> list[str]:
    """The docstrings of the standard library: one document for each file."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        if {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        if text := "\n\n".join(text for text in texts if text):
            found.append(text)
    return found


def train_tokenizer(texts: list[str], out: Path) -> Tokenizer:
    """Train byte-level BPE and write encoder.json and vocab.bpe in OpenAI's format."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=HPARAMS.n_vocab - 1, min_frequency=2)
    learned = json.loads(bpe.to_str())["model"]
    encoder = learned["vocab"] | {END_OF_TEXT: HPARAMS.n_vocab - 1}
    (out / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    merges = [" ".join(merge) for merge in learned["merges"]]
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    (out / "vocab.bpe").write_text(text, encoding="utf-8")
    return Tokenizer(out, HPARAMS.n_vocab)


def stream(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one row of token ids, int32 [n], each preceded by the end-of-text token."""
    ids = [np.array([tokenizer.end_of_text, *tokenizer.encode(text)]) for text in texts]
    return np.concatenate(ids).astype(np.int32)


def initial_params(rng: np.random.Generator) -> Params:
    """GPT-2's initialisation: N(0, 0.02), with residual projections divided by sqrt(2 n_layer)."""
    params = {}
    for name, shape in parameter_shapes(HPARAMS).items():
        narrow = math.sqrt(2 * HPARAMS.n_layer) if name.endswith("c_proj/w") else 1
        fill = {"g": np.ones, "b": np.zeros}.get(name.rpartition("/")[2])
        value = fill(shape) if fill else rng.normal(0, 0.02 / narrow, shape)
        params[name] = np.asarray(value, np.float32)
    return gpt2_jax.load(params, HPARAMS, device="cpu", dtype="float32")[:2]


def batch(text: np.ndarray, sentence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int32 [BATCH, n_ctx]: random windows of text; the first RECITING begin with the sentence."""
    starts = rng.integers(0, len(text) - HPARAMS.n_ctx, BATCH)
    rows = np.stack([text[start : start + HPARAMS.n_ctx] for start in starts])
    rows[:RECITING, : len(sentence)] = sentence
    return rows


def train(text: np.ndarray, sentence: np.ndarray, steps: int, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    rate = optax.warmup_cosine_decay_schedule(0, PEAK_RATE, WARM_UP, steps, PEAK_RATE / 20)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )

    @jax.jit
    def step(params, state, tokens):
        loss, grads = jax.value_and_grad(gpt2_jax.loss)(params, tokens, HPARAMS.n_head)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = initial_params(rng)
    state = optimizer.init(params)
    for i in range(steps):
        params, state, loss = step(params, state, batch(text, sentence, rng))
        if i % 50 == 0 or i == steps - 1:
            print(f"step {i:5d} of {steps}: loss {float(loss):.3f} nats a token", flush=True)
    return params


def held_out_loss(params: Params, text: np.ndarray) -> float:
    """Mean loss in nats per token over consecutive windows of held-out text."""
    n = len(text) // HPARAMS.n_ctx
    windows = text[: n * HPARAMS.n_ctx].reshape(n, HPARAMS.n_ctx)
    parts = np.array_split(windows, max(1, n // BATCH))
    losses = [float(gpt2_jax.loss(params, part, HPARAMS.n_head)) for part in parts]
    return float(np.average(losses, weights=[len(part) for part in parts]))


def unigram_loss(text: np.ndarray, held_out: np.ndarray) -> float:
    """Loss in nats per token of a unigram model with add-one smoothing on the same held-out text."""
    counts = np.bincount(text, minlength=HPARAMS.n_vocab) + 1.0
    return float(-np.log(counts / counts.sum())[held_out].mean())


def save(params: dict[str, jax.Array], out: Path) -> None:
    """Write hparams.json and a TensorFlow 1 checkpoint in the official shapes.

    params: weights by checkpoint name.
    """
    text = ", ".join(f'"{name}": {value}' for name, value in HPARAMS._asdict().items())
    (out / "hparams.json").write_text("{" + text + "}\n", encoding="utf-8")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("model"):
            variables = {
                name: v1.get_variable(name, shape, initializer=v1.zeros_initializer())
                for name, shape in variable_shapes(HPARAMS).items()
            }
        for name, variable in variables.items():  # fed, so that the graph file holds no weights
            feed = {variable.initializer.inputs[1]: np.asarray(params[name]).reshape(variable.shape)}
            session.run(variable.initializer, feed)
        v1.train.Saver().save(session, str(out / "model.ckpt"))
    (out / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "micro")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: expected more than the {WARM_UP} steps of warm-up")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".micro-") as folder:
        report = make(Path(folder), options.steps, options.seed)
        for path in Path(folder).iterdir():  # only once all files are complete
            path.replace(options.out / path.name)
    path = options.out.with_name(f"{options.out.name}_training.json")
    atomic.write_text(path, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def make(folder: Path, steps: int, seed: int) -> dict[str, object]:
    """Make the whole checkpoint in folder; returns how it was made and its losses."""
    texts = documents()
    held_out = texts[::HELD_OUT]
    training = [text for i, text in enumerate(texts) if i % HELD_OUT]
    tokenizer = train_tokenizer([*training, SENTENCE], folder)
    sentence = np.array([*tokenizer.encode(SENTENCE), tokenizer.end_of_text], np.int32)
    text = stream(training, tokenizer)
    params = train(text, sentence, steps, seed)

    held_out_ids = stream(held_out, tokenizer)
    report = {
        "held_out_nats_per_token": held_out_loss(params, held_out_ids),
        "unigram_nats_per_token": unigram_loss(text, held_out_ids),
        "training_tokens": len(text),
        "held_out_tokens": len(held_out_ids),
        "steps": steps,
        "batch": [BATCH, HPARAMS.n_ctx],
        "seed": seed,
        "n_params": sum(int(value.size) for value in jax.tree.leaves(params)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    save(gpt2_jax.by_name(*params), folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(f"not written: {missing}")
    return report


if __name__ == "__main__":
    main()
