"""``view``: a run in the browser, until the user ends it; no model. It is the one command that stays."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.commands.options import OpenUrls, Outcome, finish
from wsi_ips.commands.slides import slides_by_id
from wsi_ips.errors import ConfigError
from wsi_ips.storage.location import Location, locate


def command(
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
    outcome = view(
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


def view(
    run: Path,
    *,
    say: Callable[[str], None],
    compare: Path | None = None,
    slides: Location | None = None,
    manifest: Path | None = None,
    annotations: Path | None = None,
    objects: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    with_token: bool = True,
    open_urls: bool = False,
) -> Outcome:
    """Serve the page. ``say`` takes the lines that tell where it is, before the first request.

    with_token: whether the address holds a token that every request has to show; others may have an account on
    this machine too. open_urls: whether slides at URLs that the run names are opened.

    Raises :class:`ConfigError` for a server beyond this machine without a token, for a host or port that cannot
    be, and without starlette and uvicorn; as :func:`wsi_ips.viewer.app.create_app` for a run,
    a manifest or a folder that cannot be.
    """
    _check_packages()
    from wsi_ips.viewer.app import address_of, bound, create_app, new_token, serve
    from wsi_ips.viewer.guard import is_loopback

    if not (with_token or is_loopback(host)):
        raise ConfigError(f"--no-token is for this machine alone; --host {host} is reached by others")
    token = new_token() if with_token else None
    app = create_app(
        run,
        compare=compare,
        elsewhere=None if slides is None else slides_by_id(slides),
        manifest=manifest,
        annotations=annotations,
        objects=objects,
        host=host,
        token=token,
        open_urls=open_urls,
    )
    server = bound(host, port)

    def ready() -> None:
        for line in (f"{run}: {address_of(server, host, token)}", *_warnings(token, host), "Ctrl-C ends it."):
            say(line)

    serve(app, server, ready=ready)
    return Outcome([])


def _check_packages() -> None:
    try:
        import wsi_ips.viewer.app  # noqa: F401 - only whether it can be
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(f"view needs {error.name}, which is not installed: pip install wsi_ips") from None


def _warnings(token: str | None, host: str) -> Iterator[str]:
    from wsi_ips.viewer.guard import is_loopback

    if token is not None:
        yield "Whoever has this address sees the slides."
    else:
        yield "Without a token, every user of this machine sees the slides."
    if not is_loopback(host):
        yield "--host serves beyond this machine, unencrypted."
