"""Access control (:class:`Guard`) and limits on connections (:class:`PatientProtocol`).

Every request passes :class:`Guard` first. A page of another site that a browser has open must learn nothing of the
slides: the Host header has to be this server's own (against DNS rebinding), and no answer may be embedded
elsewhere. Beyond this machine, a token is required, once in the address and from then on in a cookie.

Whoever can reach the port can open connections and send half a request, without a token. These would use up the
files that a process may open, so that nobody is answered any more. Connections are therefore limited in number,
and each has to send a whole request within seconds.
"""

import asyncio
import logging
import time
from hashlib import sha256
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from socket import gethostname
from typing import Any
from urllib.parse import urlencode

import h11
from starlette.datastructures import MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from wsi_ips.storage.system import most_open_files

MOST_CONNECTIONS = 128
"""The most connections at a time; a browser opens six. :func:`most_connections` allows fewer if few files may be
open.
"""

REQUEST_S = 10.0
"""Seconds within which a request has to be complete, from its first byte or from the connection on."""

ACCEPTED_AT_ONCE = 64
"""Waiting connections that are accepted at once; asyncio logs every one that it could not accept."""

SAY_AGAIN_S = 60.0
"""Seconds after which a log line is repeated."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that only it can reach."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of every answer: the page may load its own files only."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers that every answer gets."""


class Guard:
    """ASGI middleware that decides which requests are answered.

    ``host`` is what the server binds to; ``token`` is what a request has to show, None if nothing is required.
    """

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1", token: str | None = None) -> None:
        self._app = app
        self._host = host.lower()
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("read-only\n", 405, {"Allow": "GET, HEAD"})
        if not self._known_host(headers.get("host", "")):
            return PlainTextResponse("this is not the host of this server\n", 421)
        if self._token is None:
            return None
        asked = QueryParams(scope.get("query_string", b""))
        if _same(asked.get("token", ""), self._token):
            return _let_in(scope, asked, self._token)
        if _same(_cookie(headers.get("cookie", ""), cookie_name(self._token)), self._token):
            return None
        return PlainTextResponse("open the address with the token that wsi-ips view printed\n", 401)

    def _known_host(self, header: str) -> bool:
        """Whether the Host header names this server.

        On this machine that is the name that was bound to, or one of its usual names. For a server on all
        addresses it is any numeric address or one of the machine's names: DNS rebinding needs a name of its own.
        """
        name = _without_port(header).lower()
        if is_loopback(self._host):
            return name in LOOPBACK_NAMES or name == self._host
        if name in LOOPBACK_NAMES or name == self._host:
            return True
        if self._host not in ("0.0.0.0", "::", ""):  # noqa: S104 - told apart, not bound to
            return False
        try:
            ip_address(name)
        except ValueError:
            here = gethostname().lower()
            return name in (here, here.partition(".")[0])
        return True


def _let_in(scope: Scope, asked: QueryParams, token: str) -> Response:
    """Move the token from the address into a cookie, so that no link that is passed on contains it."""
    rest = urlencode([(name, value) for name, value in asked.multi_items() if name != "token"])
    # "//host" would lead to another host.
    path = "/" + scope["path"].lstrip("/\\")
    response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
    response.set_cookie(cookie_name(token), token, httponly=True, samesite="strict")
    return response


def _without_port(header: str) -> str:
    """The host of a Host header: ``host``, ``host:80``, ``[::1]:80``."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _cookie(header: str, name: str) -> str:
    try:
        held = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return held.value if held else ""


def _same(given: str, wanted: str) -> bool:
    return compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def is_loopback(host: str) -> bool:
    """Whether a server that binds to ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def cookie_name(token: str) -> str:
    """The name of the cookie for a token.

    Each token has a name of its own: cookies do not know ports, and a host may have several servers.
    """
    return f"wsi_ips_view_{sha256(token.encode()).hexdigest()[:8]}"


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but a connection that does not send a request in time is dropped.

    If there are too many connections, the one that has waited longest is dropped; if all others are being
    answered, the new one is.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most_connections()
        self._patience: asyncio.TimerHandle | None = None

    @property
    def waits_until(self) -> float | None:
        """When the connection will be dropped, on the loop's clock.

        It is None while the connection is answered or between requests.
        """
        return self._patience.when() if self._patience is not None else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the connection's time limit, and drop a connection if there are too many."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._most:
            waiting = [
                each for each in self.connections if isinstance(each, PatientProtocol) and each.waits_until
            ]
            min(waiting, key=lambda each: each.waits_until or 0.0).drop()

    def data_received(self, data: bytes) -> None:
        """Take in data of a request; once the request is complete, its time limit ends."""
        self._wait()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection's time limit."""
        self._wait_no_more()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection at once, without an answer."""
        self._wait_no_more()
        self.connections.discard(self)
        self.transport.abort()

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(REQUEST_S, self.drop)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def most_connections() -> int:
    """The most connections at a time.

    They are at most a quarter of the files that this process may open, as slides need some too.
    """
    files = most_open_files()
    return MOST_CONNECTIONS if files is None else max(8, min(MOST_CONNECTIONS, files // 4))


class SaidOnce(logging.Filter):
    """Logging filter that lets the same message through once a minute.

    asyncio logs every connection that it cannot accept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is written."""
        text, now = str(record.msg)[:60], time.monotonic()
        if now - self._said.get(text, -SAY_AGAIN_S) < SAY_AGAIN_S:
            return False
        if len(self._said) > 100:
            self._said.clear()
        self._said[text] = now
        return True
