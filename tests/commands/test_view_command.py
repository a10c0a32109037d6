"""``wsi-ips view``, as a user starts it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, build_opener, urlopen

import pytest

from tests.commands.console import Console
from tests.viewer.made_run import MadeRun, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("viewed_command"))


def started(*arguments: str) -> tuple["subprocess.Popen[str]", str]:
    """The running command and the address that it prints."""
    command = [sys.executable, "-m", "wsi_ips.cli", "view", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found
    return process, found[0]


def test_it_serves_until_it_is_interrupted(run: MadeRun) -> None:
    process, address = started(str(run.root), "--port", "0", "--manifest", str(run.manifest), "--no-token")
    try:
        with urlopen(f"{address}api/runs/0/slides", timeout=120) as answer:
            assert b'"hot"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", [[], ["--host", "0.0.0.0"]])
def test_it_prints_a_token_and_asks_for_it(run: MadeRun, host: list[str]) -> None:
    """On this machine as well: others may have an account on it."""
    process, address = started(str(run.root), "--port", "0", *host)
    try:
        found = re.fullmatch(r"http://[^/]+:(\d+)/\?token=(\S{20,})", address)
        assert found
        with pytest.raises(HTTPError) as refused:
            urlopen(f"http://127.0.0.1:{found[1]}/api/view", timeout=120)
        assert refused.value.code == 401
        refused.value.close()
        with build_opener(HTTPCookieProcessor()).open(
            f"http://127.0.0.1:{found[1]}/api/view?token={found[2]}"
        ) as page:
            assert b"predictions" in page.read()
    finally:
        process.kill()
        process.communicate()


def test_wrong_input_is_one_line(console: Console, run: MadeRun, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ((tmp_path / "none",), "no such folder"),
            ((tmp_path,), "holds neither"),
            ((run.root, "--port", port), "--port"),
            ((run.root, "--port", "70000"), "--port 70000"),
            ((run.root, "--host", "no.such.host.invalid"), "--host no.such.host.invalid"),
            ((run.root, "--host", "0.0.0.0", "--no-token"), "--no-token is for this machine alone"),
            ((run.root, "--compare", tmp_path), "holds neither"),
            ((run.root, "--manifest", tmp_path / "none.csv"), "no such manifest"),
            ((run.root, "--annotations", tmp_path / "none"), "no such folder"),
            ((run.root, "--slides", tmp_path / "none"), "none"),
        ):
            said = console("view", *arguments)
            assert said.code == 2
            assert words in said.complaint


def test_without_its_packages_it_says_what_to_install(run: MadeRun) -> None:
    code = "import sys; sys.modules['starlette.applications'] = None; from wsi_ips.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(run.root)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "pip install wsi_ips" in said.stderr
