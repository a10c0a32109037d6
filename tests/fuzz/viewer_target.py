"""Requests to the viewer, in this process: no socket is opened."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any


def client_of(run: Path) -> Any:
    """A client of the viewer of a run, which finds its slides and labels beside it."""
    from starlette.testclient import TestClient

    from wsi_ips.viewer.app import create_app

    slides = {path.stem: path for path in (run.parent / "slides").glob("*.tif")}
    app = create_app(run, elsewhere=slides, manifest=run.parent / "labels.csv")
    return TestClient(app, base_url="http://127.0.0.1:8080")


def ask_viewer(given: Path, out: Path) -> None:
    """Requests to the viewer of a run that is sound. Each must be answered, none with 500."""
    from urllib.parse import quote

    client = _sound_viewer(out)
    for request in _requests(given.read_text("utf-8", "surrogateescape")):
        address, headers = request[0], dict(line.split(": ", 1) for line in request[1:] if ": " in line)
        path = quote(address.encode("utf-8", "surrogateescape"), safe="/?&=%._-:~+,;@!$'()*[]")
        try:
            sent = {name: value.encode("utf-8", "surrogateescape") for name, value in headers.items()}
            asked = client.build_request("GET", f"http://127.0.0.1:8080{path}", headers=sent)
        except Exception:  # no client could send this
            continue
        answer = client.send(asked, follow_redirects=False)
        assert answer.status_code < 500, f"{path}: {answer.status_code}"


def _requests(text: str) -> list[list[str]]:
    """An address and its headers. Lines without an empty one between them are addresses of their own."""
    blocks = text.replace("\r", "").split("\n\n")
    requests: list[list[str]] = []
    for block in blocks:
        lines = block.split("\n")[:40]
        with_headers = any(": " in line for line in lines[1:])
        requests += [lines] if with_headers else [[line] for line in lines if line]
    return requests


_viewers: ExitStack = ExitStack()
_made: dict[str, Any] = {}


def _sound_viewer(out: Path) -> Any:
    """One run and one client for all requests of a child."""
    if not _made:
        from tempfile import TemporaryDirectory

        from tests.fuzz.edits import write_files
        from tests.fuzz.seeds import seed

        folder = Path(_viewers.enter_context(TemporaryDirectory()))
        _made["client"] = client_of(write_files(folder, seed("run/small")))
    return _made["client"]
