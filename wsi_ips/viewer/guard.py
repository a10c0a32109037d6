"""Who may ask, and for what: every request passes here first.

A page of another site that a browser has open must learn nothing of the slides: the Host header has to be this
server's own (DNS rebinding), and no answer may be embedded elsewhere. Beyond this machine a token is asked
for, once in the address, from then on in a cookie.
"""

from hashlib import sha256
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from socket import gethostname
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that binds to ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def cookie_name(token: str) -> str:
    """One a token: cookies know no ports, and a host may have several servers."""
    return f"wsi_ips_view_{sha256(token.encode()).hexdigest()[:8]}"


class Guard:
    """Middleware. host: what the server binds to. token: what a request has to show, None for nobody."""

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
        """The name that was bound to; on this machine its usual ones. Of a server on all addresses any numeric
        one, and the machine's names: rebinding needs a name of its own."""
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
    """The token goes from the address into a cookie, so that no link that is passed on holds it."""
    rest = urlencode([(name, value) for name, value in asked.multi_items() if name != "token"])
    # "//host" would lead to another host.
    path = "/" + scope["path"].lstrip("/\\")
    response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
    response.set_cookie(cookie_name(token), token, httponly=True, samesite="strict")
    return response


def _without_port(header: str) -> str:
    """``host``, ``host:80``, ``[::1]:80``."""
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
