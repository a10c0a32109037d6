"""``data``: a data set on disk."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.start import finish

data_app = typer.Typer(
    help="A data set on disk: is it whole, and which of its slides are there?", no_args_is_help=True
)


@data_app.command("verify")
def data_verify(
    folder: Annotated[Path, typer.Argument(help="Folder with checksums.md5 or checksums.txt in it.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Are all its slides there? A CSV, camelyon16 or camelyon17.")
    ] = None,
) -> None:
    """Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered."""
    from wsi_ips.commands.data import verify
    from wsi_ips.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = verify(folder, progress, manifest=manifest)
    finish(outcome)


@data_app.command("manifest")
def data_manifest(
    root: Annotated[Path, typer.Argument(help="Folder with CAMELYON's slides, in either layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write.")],
    name: Annotated[
        str | None, typer.Option(help="camelyon16 or camelyon17; default: what is there.")
    ] = None,
) -> None:
    """Write a manifest of the slides that are there, with CAMELYON's labels and splits."""
    from wsi_ips.commands.data import list_slides

    finish(list_slides(root, out, name=name))
