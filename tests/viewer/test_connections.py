"""Half a request costs the server nothing, and nobody else an answer."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from urllib.request import urlopen

import pytest

from tests.viewer.made_run import MadeRun

FILES = 256
"""What a process may open by default on macOS."""
STARTS = (
    f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}));"
    "import wsi_ips.viewer.guard as connections; connections.REQUEST_S = 1.5;"
    "from wsi_ips.cli import main; main()"
)


@contextmanager
def started(made_run: MadeRun) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    command = [sys.executable, "-c", STARTS, "view", str(made_run.root), "--port", "0", "--no-token"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout
    found = re.search(r":(\d+)/", process.stdout.readline())
    assert found
    try:
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(made_run: MadeRun) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    with started(made_run) as process_and_port:
        yield process_and_port


def answers(port: int) -> bool:
    with urlopen(f"http://127.0.0.1:{port}/api/view", timeout=60) as answer:
        return b"predictions" in answer.read()


def test_hundreds_of_half_requests_stop_nobody_and_fill_no_log(made_run: MadeRun) -> None:
    with started(made_run) as (process, port):
        half = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(FILES + 60)]
        for place, each in enumerate(half):
            with suppress(OSError):  # dropped already
                each.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" if place % 2 else b"")
        assert answers(port)
        for each in half:
            each.close()
        process.terminate()
        _, said = process.communicate(timeout=120)
    assert said.count("\n") < 5, said[:2000]


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET /api/view HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhalf",
     b"GET /api/view HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /api/v"],
)  # fmt: skip
@pytest.mark.slow
def test_who_does_not_say_what_he_wants_is_dropped(
    server: tuple["subprocess.Popen[str]", int], sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server[1]), timeout=60) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        while True:
            try:
                if not connection.recv(65536):
                    break
            except ConnectionResetError:
                break
        assert time.monotonic() - began < 40


def test_who_sends_a_byte_now_and_then_is_dropped_too(server: tuple["subprocess.Popen[str]", int]) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server[1]), timeout=60) as connection, suppress(OSError):
        while time.monotonic() - began < 60:
            connection.sendall(b"G")
            time.sleep(0.2)
    assert time.monotonic() - began < 40
    assert answers(server[1])


def test_one_connection_serves_many_requests(server: tuple["subprocess.Popen[str]", int]) -> None:
    """Longer than a request may take, with pauses that browsers make."""
    connection = HTTPConnection("127.0.0.1", server[1], timeout=60)
    ports = set()
    for _ in range(3):
        connection.request("GET", "/api/view")
        ports.add(connection.sock.getsockname()[1])
        answer = connection.getresponse()
        assert (answer.status, b"predictions" in answer.read()) == (200, True)
        time.sleep(0.8)
    connection.close()
    assert len(ports) == 1
