"""``search``: scale-permuted networks by trial."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import Device, Set
from wsi_ips.cli.start import start


def search(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see pipelines/spinenet_search.yaml.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the recipe's.")
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Of each strategy, in all.")] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Search for a SpineNet by a proxy task; goes on where a killed search was."""
    flags = {"out": out, "candidates": candidates, "device": device}
    start("search", flags, recipe=recipe, overrides=set_)
