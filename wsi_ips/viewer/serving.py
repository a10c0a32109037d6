"""Serving the viewer: the listening socket (:func:`bound`), its address, the token, the loop (:func:`serve`)."""

import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from wsi_ips.errors import ConfigError
from wsi_ips.viewer.guard import ACCEPTED_AT_ONCE, PatientProtocol, SaidOnce

ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - told apart, not bound to
"""Hosts that mean all addresses of this machine."""


def new_token() -> str:
    """A random token that every request has to show: others may have an account on this machine, or reach it."""
    return secrets.token_urlsafe(24)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket on ``host``; port 0 takes any free one.

    Raises :class:`ConfigError` for a host or port that cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: ports are 1 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address of this machine ({_reason(error)})") from None
    # With its protocol named: asyncio switches Nagle's algorithm off only then, which costs 40 ms an answer.
    server = socket.socket(family, kind, protocol)
    if os.name == "posix":  # elsewhere it would share a port that is in use
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(address)
        server.listen()
    except OSError as error:
        server.close()
        raise ConfigError(
            f"port {port} of {host} cannot be served ({_reason(error)}); choose another with --port, 0 for any "
            "free one"
        ) from None
    return server


def address_of(server: socket.socket, host: str, token: str | None) -> str:
    """The address to open in a browser: on this machine, or on the users' own if the server is for others."""
    name = socket.gethostname() if host in ALL_ADDRESSES else host
    port = server.getsockname()[1]
    in_brackets = f"[{name}]" if ":" in name else name
    return f"http://{in_brackets}:{port}/" + (f"?token={token}" if token else "")


def serve(app: Starlette, server: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answer requests until the process is interrupted. ``ready`` is called once a request would be answered."""
    ready()  # the socket listens: who comes before the loop runs waits a moment
    # uvicorn warns of what strangers send; errors are our own.
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
    )
    said_once, asyncio_s = SaidOnce(), logging.getLogger("asyncio")
    asyncio_s.addFilter(said_once)
    try:
        with suppress(KeyboardInterrupt):  # how it is meant to end
            uvicorn.Server(config).run(sockets=[server])
    finally:
        asyncio_s.removeFilter(said_once)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
