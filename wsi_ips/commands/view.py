"""``view``: a run in the browser, until the user ends it; no model."""

from collections.abc import Callable
from pathlib import Path

from wsi_ips.commands.inputs import slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ConfigError
from wsi_ips.location import Location


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
) -> Outcome:
    """Serve the page. ``say`` takes the lines that tell where it is, before the first request.

    Raises :class:`ConfigError` for a host or port that cannot be, and without the packages of ``wsi_ips[view]``;
    as :func:`wsi_ips.viewer.app.create_app` for a run, a manifest or a folder that cannot be.
    """
    try:
        from wsi_ips.viewer.app import create_app
        from wsi_ips.viewer.serving import address_of, bound, new_token, serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"view needs {error.name}, which is not installed: pip install 'wsi_ips[view]'"
        ) from None
    token = new_token(host)
    app = create_app(
        run,
        compare=compare,
        elsewhere=None if slides is None else slides_by_id(slides),
        manifest=manifest,
        annotations=annotations,
        objects=objects,
        host=host,
        token=token,
    )
    server = bound(host, port)

    def ready() -> None:
        say(f"{run}: {address_of(server, host, token)}")
        if token:
            say("Whoever has this address sees the slides: --host serves beyond this machine, unencrypted.")
        say("Ctrl-C ends it.")

    serve(app, server, ready=ready)
    return Outcome([])
