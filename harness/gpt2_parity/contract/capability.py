"""What an implementation may offer beyond the four functions: one declaration for each function."""

import ast
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class TooLong(NamedTuple):
    """A call with more tokens than a model has positions, which must raise."""

    beyond: int  # tokens beyond n_ctx in the prompt
    keywords: Mapping[str, Any] = {}  # of the call


class Capability(NamedTuple):
    """A function that an implementation may offer; its presence is the offer.

    call(loaded, tokens, **keywords) makes the call on tokens int32 [batch, n] and waits until its result
    is on the host. Ids out of range, no tokens and too many tokens must raise.
    """

    signature: str  # "generate(model, tokens, n_new)"
    returns: str  # in words, with shapes
    call: Callable[..., Any]
    too_long: Mapping[str, TooLong] = {"too_long": TooLong(beyond=1)}

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    @property
    def arguments(self) -> tuple[list[str], list[str]]:
        """Names of the positional and of the keyword-only arguments."""
        [function] = ast.parse(f"def {self.signature}: ...").body
        assert isinstance(function, ast.FunctionDef)
        both = (function.args.args, function.args.kwonlyargs)
        positional, keywords = ([argument.arg for argument in each] for each in both)
        return positional, keywords
