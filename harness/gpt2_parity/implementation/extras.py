"""The extra of gpt2-parity that brings a module."""

import re
from importlib import metadata

DISTRIBUTION = "gpt2-parity"


def extra_for(module: str) -> str:
    """The extra that is named like a module, or else one that requires a package of that name.

    "" if there is none.
    """
    wanted = normalized(module)
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # the source folder is on the path, but nothing is installed
        return ""
    extras = about.get_all("Provides-Extra") or []
    if wanted in extras:
        return wanted
    for requirement in about.get_all("Requires-Dist") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra == ['"]([\w.-]+)""", requirement)
        if name and extra and normalized(name[0]) == wanted:
            return extra[1]
    return ""


def normalized(name: str) -> str:
    """A name as extras and packages are compared: llama_cpp is llama-cpp."""
    return re.sub(r"[-_.]+", "-", name).lower()


def advice(error: BaseException) -> str:
    """How to get a module that was not found, as the end of a message; "" if no extra brings it."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    extra = extra_for(error.name)
    return f'; get it with: pip install "{DISTRIBUTION}[{extra}]"' if extra else ""
