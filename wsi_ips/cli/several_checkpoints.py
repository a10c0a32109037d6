"""``--checkpoint A B C``: an option that takes several values, which click's own options do not."""

from collections.abc import Iterable, Iterator
from typing import Any

from typer.core import TyperCommand

OPTION, SUFFIX = "--checkpoint", ".safetensors"


class SeveralCheckpoints(TyperCommand):
    """A command whose ``--checkpoint`` takes all ``*.safetensors`` that follow it; no slide has that name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(repeated(args)))


def repeated(arguments: Iterable[str]) -> Iterator[str]:
    """The same arguments with the option said again before its second value and all later ones."""
    before = ""
    values = False  # whether what came before was a value of the option
    for argument in arguments:
        first = before == OPTION
        further = values and argument.endswith(SUFFIX) and not argument.startswith("-")
        if further:
            yield OPTION
        yield argument
        values = first or further or argument.startswith(f"{OPTION}=")
        before = argument
