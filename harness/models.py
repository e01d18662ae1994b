"""Where a model's checkpoint and its golden records are, by the model's name."""

from pathlib import Path
from typing import NamedTuple

from harness import checkpoint
from harness.contract import CannotJudge

GOLDEN = Path(__file__).parent.parent / "golden"
OFFICIAL = ("124M", "355M", "774M", "1558M")


class Model(NamedTuple):
    """A name and its two folders."""

    name: str
    checkpoint: Path
    records: Path

    @property
    def argument(self) -> str:
        """What to give to --model to name it."""
        return self.name if self.name in ("micro", *OFFICIAL) else str(self.checkpoint)


def locate(name: str) -> Model:
    """micro, an official size that is in the cache, or the path of a folder in OpenAI's layout.

    Raises CannotJudge for an unknown name and for an official size that is not there.
    """
    if name == "micro":
        return Model(name, GOLDEN / "micro", GOLDEN / "records" / "micro")
    if name in OFFICIAL:
        directory = checkpoint.home() / "models" / name
        if not directory.is_dir():
            raise CannotJudge(
                f"model {name}: not at {directory}. Put OpenAI's seven files there "
                f"({', '.join(checkpoint.FILES)})"
            )
        return Model(name, directory, checkpoint.home() / "records" / name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        found = checkpoint.hashes(directory)[checkpoint.DATA]
        records = checkpoint.home() / "records" / f"{directory.resolve().name}-{found[:12]}"
        return Model(directory.resolve().name, directory, records)
    raise CannotJudge(
        f"model {name!r}: unknown. Name micro, one of {', '.join(OFFICIAL)}, "
        "or a folder with a checkpoint in OpenAI's layout"
    )
