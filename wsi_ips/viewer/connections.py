"""Connections that a server can bear: so many at once, and each says within seconds what it wants.

Whoever can reach the port can open connections and send half a request, without a token. Left alone, those use
up the files that a process may open, and then nobody is answered.
"""

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 128
"""A browser opens six. Fewer where the process may open few files: see :func:`most_connections`."""

REQUEST_S = 10.0
"""A request has to be whole within this time after its first byte, or after the connection came."""

ACCEPTED_AT_ONCE = 64
"""Of the connections that wait; asyncio tells of every one that it could not accept."""

SAY_AGAIN_S = 60.0


def most_connections() -> int:
    """At most a quarter of the files that this process may open: slides and results need some, too."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST_CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(8, min(MOST_CONNECTIONS, files // 4))


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which drops a connection that keeps it waiting for a request.

    When there are too many, the one that has waited longest goes; where all others are being answered, the new
    one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most_connections()
        self._patience: asyncio.TimerHandle | None = None

    @property
    def waits_until(self) -> float | None:
        """When it will be dropped, on the loop's clock; None while it is being answered, or between requests."""
        return self._patience.when() if self._patience is not None else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._most:
            waiting = [
                each for each in self.connections if isinstance(each, PatientProtocol) and each.waits_until
            ]
            min(waiting, key=lambda each: each.waits_until or 0.0).drop()

    def data_received(self, data: bytes) -> None:
        self._wait()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once, without an answer."""
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


class SaidOnce(logging.Filter):
    """Lets a logger say the same thing once a minute: asyncio tells of every connection that it cannot accept."""

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
