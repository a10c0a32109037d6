"""Who is let in."""

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.viewer.made_run import MadeRun
from wsi_ips.errors import ConfigError
from wsi_ips.viewer.app import address_of, bound, create_app
from wsi_ips.viewer.guard import cookie_name, is_loopback

TOKEN = "a-token-of-this-test"


def ask(run: MadeRun, host_header: str, *, host: str = "127.0.0.1", token: str | None = None) -> TestClient:
    return TestClient(
        create_app(run.root, host=host, token=token),
        base_url=f"http://{host_header}",
        follow_redirects=False,
    )


@pytest.mark.parametrize("host_header", ["127.0.0.1:8080", "localhost:9000", "[::1]:80", "LOCALHOST"])
def test_this_machine_s_own_names_are_answered(made_run: MadeRun, host_header: str) -> None:
    answer = ask(made_run, "127.0.0.1").get("/api/view", headers={"Host": host_header})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host_header", ["evil.example", "127.0.0.1.evil.example", "evil.example:8080", "", "10.0.0.1"]
)
def test_another_name_for_this_machine_is_refused(made_run: MadeRun, host_header: str) -> None:
    """DNS rebinding: a page of evil.example whose name now leads here."""
    answer = ask(made_run, "127.0.0.1").get("/api/view", headers={"Host": host_header})
    assert answer.status_code == 421
    assert "runs" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(made_run: MadeRun, method: str) -> None:
    for address in ("/api/view", "/none"):
        assert ask(made_run, "127.0.0.1").request(method, address).status_code == 405


@pytest.mark.parametrize("address", ["/", "/api/view", "/none", "/runs/0/slides/hot/heat/12/0_0.png"])
def test_every_answer_forbids_other_hosts(made_run: MadeRun, address: str) -> None:
    headers = ask(made_run, "127.0.0.1").get(address).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_beyond_this_machine_the_token_is_asked_for(made_run: MadeRun) -> None:
    client = ask(made_run, "10.1.2.3:8080", host="0.0.0.0", token=TOKEN)
    for address in ("/", "/api/view", "/page/page.js", "/?token=wrong", "/?token="):
        assert client.get(address).status_code == 401
    assert client.get("/", headers={"Cookie": f"{cookie_name(TOKEN)}=wrong"}).status_code == 401
    entered = client.get(f"/?token={TOKEN}&x=1")
    assert (entered.status_code, entered.headers["location"]) == (303, "/?x=1")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/api/view").status_code == 200  # with the cookie


def test_two_servers_of_a_host_do_not_lock_each_other_out(made_run: MadeRun) -> None:
    """A browser sends the cookies of a host to all its ports."""
    tokens = (TOKEN, "another")
    servers = [
        ask(made_run, f"10.1.2.3:{8080 + place}", host="0.0.0.0", token=token)
        for place, token in enumerate(tokens)
    ]
    held: dict[str, str] = {}
    for server, token in zip(servers, tokens, strict=True):
        held.update(server.get(f"/?token={token}").cookies)
        server.cookies.clear()
    sent = "; ".join(f"{name}={value}" for name, value in held.items())
    for server in servers:
        assert server.get("/api/view", headers={"Cookie": sent}).status_code == 200


def test_the_token_s_redirect_stays_here(made_run: MadeRun) -> None:
    client = ask(made_run, "10.1.2.3", host="0.0.0.0", token=TOKEN)
    entered = client.get(f"http://10.1.2.3//evil.example/?token={TOKEN}")
    assert entered.headers["location"] == "/evil.example/"


def test_a_server_on_all_addresses_has_no_foreign_name(made_run: MadeRun) -> None:
    for host_header, code in (("evil.example", 421), ("10.1.2.3", 401), (socket.gethostname(), 401)):
        client = ask(made_run, "10.1.2.3", host="0.0.0.0", token=TOKEN)
        assert client.get("/", headers={"Host": host_header}).status_code == code


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
     ("10.0.0.1", False), ("", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_what_this_machine_alone_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_printed_address_is_the_bound_one() -> None:
    with bound("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        assert address_of(server, "127.0.0.1", None) == f"http://127.0.0.1:{port}/"
        assert address_of(server, "::1", "t") == f"http://[::1]:{port}/?token=t"
        assert socket.gethostname() in address_of(server, "0.0.0.0", "t")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm and delayed acknowledgements: 40 ms a tile, until the socket named its protocol."""
    with bound("127.0.0.1", 0) as server:
        assert server.proto == socket.IPPROTO_TCP


def test_a_port_in_use_is_told_in_one_line() -> None:
    with bound("127.0.0.1", 0) as server, pytest.raises(ConfigError, match="--port"):
        bound("127.0.0.1", server.getsockname()[1])


def test_the_page_is_there(made_run: MadeRun) -> None:
    """Built, committed, and in the package."""
    client = ask(made_run, "127.0.0.1")
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("page.js", "page.css", "icon.svg"):
        assert f"/page/{name}" in page.text
        assert client.get(f"/page/{name}").status_code == 200
    built = Path(create_app.__globals__["PAGE"])
    assert sum(path.stat().st_size for path in built.iterdir()) < 600_000
    assert "://" not in page.text  # nothing from elsewhere
