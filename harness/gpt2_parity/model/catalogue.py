"""Find a model's checkpoint and its golden records by its name."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.contract.spelling import meant
from gpt2_parity.files import shipped
from gpt2_parity.model import checkpoint, huggingface, synthetic

GOLDEN = shipped.folder("golden")
OFFICIAL = tuple(synthetic.OFFICIAL)
SHAPE = "shape:"  # the same sizes with generated weights


class Model(NamedTuple):
    """A name and its two folders."""

    name: str
    checkpoint: Path
    records: Path

    @property
    def argument(self) -> str:
        """The value of --model that names it."""
        return (
            self.name if named_checkpoints().get(self.name) == self.checkpoint else str(self.checkpoint)
        )


def named_checkpoints() -> dict[str, Path]:
    """The checkpoint folders of all models that have a name."""
    home = checkpoint.home() / "models"
    return {"micro": GOLDEN / "micro"} | {
        name: home / name.replace(":", "-") for size in OFFICIAL for name in (size, SHAPE + size)
    }


def locate(name: str) -> Model:
    """The model of a name: micro, an official size, shape:SIZE, or a folder with a checkpoint.

    The weights of a shape are generated when it is first located. Raises CannotJudge for an unknown
    name, and for an official size that is not in the cache.
    """
    if name == "micro":
        return Model(name, named_checkpoints()[name], GOLDEN / "records" / "micro")
    if name in OFFICIAL:
        directory = named_checkpoints()[name]
        if not directory.is_dir():
            raise CannotJudge(
                f"model {name}: not at {directory}. Get it with: parity fetch {name}, or put OpenAI's "
                f"seven files there ({', '.join(checkpoint.FILES)})"
            )
        return Model(name, directory, checkpoint.home() / "records" / name)
    if (size := name.removeprefix(SHAPE)) in OFFICIAL:
        directory = named_checkpoints()[name]
        synthetic.ensure(directory, synthetic.OFFICIAL[size])
        return Model(name, directory, checkpoint.home() / "records" / f"shape-{size}")
    if folder := _folder(name):
        found = checkpoint.hashes(folder)
        sha = found[checkpoint.data_file(folder)]
        records = checkpoint.home() / "records" / f"{folder.resolve().name}-{sha[:12]}"
        return Model(folder.resolve().name, folder, records)
    raise unknown(name)


def unknown(name: str) -> CannotJudge:
    """The refusal of a name that no model has."""
    if hint := _on_the_hub(name):
        return CannotJudge(f"model {name!r}: {hint}")
    what = "no such folder" if "/" in name else "unknown"
    return CannotJudge(
        f"model {name!r}: {what}. Name micro, one of {', '.join(OFFICIAL)}, shape: and one of these, "
        "or a folder with OpenAI's seven files or with Hugging Face's config.json and model.safetensors"
        f"{meant(name, named_checkpoints())}"
    )


def refuse_unknown(name: str) -> None:
    """Raise CannotJudge if no model has this name. Nothing is read, generated or prepared."""
    if name not in named_checkpoints() and _folder(name) is None:
        raise unknown(name)


def _on_the_hub(name: str) -> str:
    """What to do about a name that a model has, or may have, on the Hugging Face Hub; else ""."""
    if os.path.lexists(name.partition("/")[0]):  # a path on this machine, misspelt
        return ""
    sizes = {repository: size for size, repository in huggingface.REPOSITORIES.items()}
    folder = name.rpartition("/")[2]
    get = f"run: hf download {name} --local-dir {folder}, and use --model ./{folder}"
    if size := sizes.get(name) or sizes.get(f"openai-community/{name}"):
        return (
            f"it is {size} here; use --model {size} (get it with: parity fetch {size}). To verify the "
            f"Hugging Face Hub's copy, {get}"
        )
    if name == "distilgpt2" or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        return f"no such folder. If it is a model on the Hugging Face Hub, {get}"
    return ""


def _folder(name: str) -> Path | None:
    """The folder of that name, or None. The name may be any text, even one too long for a path."""
    try:
        directory = Path(name).expanduser()
        return directory if name and directory.is_dir() else None  # "" would be the current folder
    except (OSError, RuntimeError, ValueError):  # ValueError: a null byte; RuntimeError: ~nobody
        return None
