"""What a run reports while it is under way."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Update(NamedTuple):
    """One step of a run.

    step: "prepares"  the golden records are read
          "starts"    an implementation starts
          "checks"    a target begins, or one of its checks is done, which check and outcome then name
          "ends"      a target has ended
          "again"     a target, or the start, begins again, because its dask worker was lost
    """

    step: str
    implementation: str = ""
    target: str = ""
    done: int = 0  # checks of this target
    seconds: float = 0.0  # since this target began
    check: str = ""
    outcome: str = ""  # of the check, or of the whole target: PASS, FAIL or NO VERDICT
    targets_left: int = 0  # in all implementations that have reported their targets
    starting: int = 0  # implementations that have not reported their targets yet
    worker: str = ""  # address and host of the dask worker that was lost
    files: Mapping[str, str] = {}  # of "ends": SHA-256 by path of what the implementation imported here


Progress = Callable[[Update], None]
