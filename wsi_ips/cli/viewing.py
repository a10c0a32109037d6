"""``view``: the command that stays."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import OpenUrls
from wsi_ips.cli.start import finish


def view(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    compare: Annotated[
        Path | None, typer.Option(help="Another run of the same slides, side by side with it.")
    ] = None,
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV with the labels; outlines in annotations/ beside it are shown.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of lesion outlines, SLIDE_ID.xml (ASAP).")
    ] = None,
    objects: Annotated[
        Path | None, typer.Option(help="The folder that detect wrote; default: RUN, if it did so there.")
    ] = None,
    open_urls: OpenUrls = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8080,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let every user of this machine look, with a plain address.")
    ] = False,
) -> None:
    """Browse a run: slides under their attention, in the browser; no model is needed."""
    from wsi_ips.commands.view import view as serve_view
    from wsi_ips.storage.location import locate

    outcome = serve_view(
        run,
        say=typer.echo,
        compare=compare,
        slides=None if slides is None else locate(slides),
        manifest=manifest,
        annotations=annotations,
        objects=objects,
        host=host,
        port=port,
        with_token=not no_token,
        open_urls=bool(open_urls),
    )
    finish(outcome)
