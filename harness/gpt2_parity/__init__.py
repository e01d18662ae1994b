"""gpt2-parity: is this GPT-2 right, where does it break, and how fast is it?

    import gpt2_parity

    verdict = gpt2_parity.verify("mine.py", targets=["cpu-float32"])
    verdict.passed, verdict.explain(), verdict.frame()

Importing this package is cheap: it imports neither NumPy nor a framework. The functions below are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from gpt2_parity.version import __version__

if TYPE_CHECKING:
    from gpt2_parity.api import CannotJudge, Fuzzed, Verdict, fuzz, gate, read, resume, verify
else:

    def __getattr__(name):
        if name in __all__:
            return getattr(importlib.import_module("gpt2_parity.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted(__all__)


__all__ = [
    "CannotJudge",
    "Fuzzed",
    "Verdict",
    "__version__",
    "fuzz",
    "gate",
    "read",
    "resume",
    "verify",
]
