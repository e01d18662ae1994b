"""Compare the golden with independent implementations of GPT-2 on micro, in noise units.

    nox -s peers

Hugging Face transformers (PyTorch) and the model of gpt-2-simple (OpenAI's, adapted to TensorFlow 2,
run as it is by reference/openai_source.py) compute float32 logits of every golden case. Prints a table;
exit code 1 where one is beyond the limit for float32 logits, 2 where one could not run.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gpt2_parity.contract import limits
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.model import catalogue
from gpt2_parity.model.checkpoint import Checkpoint
from gpt2_parity.reference import golden, openai_source
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.records import Record

Peer = Callable[[Checkpoint, Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def transformers(loaded: Checkpoint, tokens: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 logits [batch, n, n_vocab] by case from GPT2LMHeadModel with the checkpoint's weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    h = loaded.hparams
    sizes = {"n_positions": h.n_ctx, "n_embd": h.n_embd, "n_head": h.n_head, "n_layer": h.n_layer}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=h.n_vocab, **sizes)).eval()
    state = {theirs(name): torch.from_numpy(np.array(w)) for name, w in loaded.params.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the head is tied to wte
        raise CannotJudge(f"transformers: weights do not fit ({missing}, {unexpected})")
    with torch.no_grad():
        return {
            case: model(torch.from_numpy(np.array(ids)).long()).logits.numpy()
            for case, ids in tokens.items()
        }


def theirs(name: str) -> str:
    """h0/attn/c_attn/w is transformer.h.0.attn.c_attn.weight there, and wte transformer.wte.weight."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    *scope, leaf = name.split("/")
    if scope and scope[0].startswith("h"):
        scope[0] = f"h.{scope[0][1:]}"
    return ".".join(["transformer", *scope, leaves[leaf]])


def gpt_2_simple(loaded: Checkpoint, tokens: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Its src/model.py alone: the package itself imports parts of TensorFlow that are gone."""
    spec = importlib.util.find_spec("gpt_2_simple")
    if spec is None or spec.origin is None:
        raise CannotJudge("gpt-2-simple is not installed")
    return openai_source.logits(Path(spec.origin).parent, loaded, tokens)


PEERS: dict[str, Peer] = {"transformers": transformers, "gpt-2-simple": gpt_2_simple}


def compare(peer: Peer, loaded: Checkpoint, records: list[Record]) -> dict[str, float]:
    """Greatest difference from golden by case, in float32 noise units."""
    found = peer(loaded, {record.name: np.asarray(record.tokens) for record in records})
    return {
        record.name: max_abs(found[record.name], record.logits) / record.noise("float32")
        for record in records
    }


def main(peers: Mapping[str, Peer] = PEERS) -> int:
    """Print the table. Returns 0 agreement, 1 a disagreement, 2 a peer that could not run."""
    loaded, records = golden.read(catalogue.locate("micro"))
    most = limits.NOISE.most
    title = f"micro: peers' float32 logits against golden, noise units (at most {most:g})"
    table = Table("peer", *(record.name for record in records), title=title, title_justify="left")
    codes = []
    for name, peer in peers.items():
        try:
            units = compare(peer, loaded, records)
        except (CannotJudge, ImportError) as error:
            table.add_row(name, f"did not run: {error}")
            codes.append(2)
            continue
        table.add_row(f"{name} {version(name)}", *(f"{value:.2f}" for value in units.values()))
        codes.append(0 if all(value <= most for value in units.values()) else 1)
    Console(width=140).print(table)
    return 1 if 1 in codes else 2 if 2 in codes or not codes else 0


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
