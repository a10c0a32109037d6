"""A local HTTP server that answers range requests, counts what it sends, and can be told to misbehave."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

Manner = Literal["ranges", "no ranges", "says no ranges", "silent", "forbidden", "endless", "gzip"]


@dataclass
class RangeServer:
    """What the handler serves, and what it saw. ``manner`` may change while it runs."""

    folder: Path
    manner: Manner = "ranges"
    port: int = 0
    sent_bytes: int = 0
    etag: str = ""
    requests: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    state = RangeServer(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state))
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, state: RangeServer, *arguments: object) -> None:
        self.state = state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        state = self.state
        state.requests.append(f"{self.command} {self.path}")
        file = state.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if state.manner == "silent":
            state.stop.wait(20)
            self.close_connection = True
            return
        if state.manner == "forbidden" or not file.is_file():
            self.send_response(403 if state.manner == "forbidden" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        if state.manner == "endless":
            self._send_without_end()
            return
        if state.manner == "gzip":
            data = gzip.compress(data)
        start, end, asked = 0, len(data), self.headers.get("Range")
        if asked and state.manner == "ranges":
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        if state.etag:
            self.send_header("ETag", state.etag)
        if state.manner == "says no ranges":
            self.send_header("Accept-Ranges", "none")
        if state.manner == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            try:
                self.wfile.write(data[start:end])
                state.sent_bytes += end - start
            except OSError:
                self.close_connection = True

    def _send_without_end(self) -> None:
        """A part of a file, by its headers; its body stops when nobody listens any more."""
        asked = self.headers.get("Range")
        self.send_response(206 if asked else 200)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            self.send_header("Content-Range", f"bytes {first}-{last}/{1 << 40}")
        if self.command == "HEAD":
            self.send_header("Content-Length", str(1 << 30))
            self.send_header("Accept-Ranges", "bytes")
        self.close_connection = True
        self.end_headers()
        try:
            while self.command != "HEAD" and not self.state.stop.is_set():
                self.wfile.write(bytes(1 << 16))
                self.state.sent_bytes += 1 << 16
        except OSError:
            pass
