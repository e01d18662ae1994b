"""Optional functions of an implementation, beyond the required four: one declaration each."""

import ast
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class TooLong(NamedTuple):
    """A call with more tokens than a model has positions, which must raise."""

    beyond: int  # tokens beyond n_ctx in the prompt
    keywords: Mapping[str, Any] = {}  # further arguments of the call


class Capability(NamedTuple):
    """An optional function. An implementation offers it by defining it.

    call(loaded, tokens, **keywords) calls it with tokens int32 [batch, n] and waits until the result is
    on the host. It must raise for ids out of range, for no tokens and for too many tokens. One
    that takes no tokens is called as call(loaded).
    """

    signature: str  # "generate(model, tokens, n_new)"
    returns: str  # what it returns, with shapes
    call: Callable[..., Any]
    too_long: Mapping[str, TooLong] = {"too_long": TooLong(beyond=1)}

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    @property
    def takes_tokens(self) -> bool:
        """Whether there are tokens that it must refuse."""
        return "tokens" in self.arguments[0]

    @property
    def arguments(self) -> tuple[list[str], list[str]]:
        """Names of the positional and of the keyword-only arguments."""
        [function] = ast.parse(f"def {self.signature}: ...").body
        assert isinstance(function, ast.FunctionDef)
        both = (function.args.args, function.args.kwonlyargs)
        positional, keywords = ([argument.arg for argument in each] for each in both)
        return positional, keywords
