"""Commands whose help shows a type only where there is something to type."""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup


def without_types(params: list[Any]) -> list[Any]:
    """The parameters of a command. Flags and arguments show no type, such as <bool>."""
    for param in params:
        if isinstance(param, TyperArgument) or getattr(param, "is_flag", False):
            vars(param)["display_type_rich"] = no_type
    return params


def no_type(ctx: Any) -> str:
    return ""


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A command that has commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))
