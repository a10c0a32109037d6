"""A run folder that somebody sent names a URL: nothing is asked of it before the user allows it."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.commands.console import Console
from tests.slides.range_server import RangeServer, serving
from tests.viewer.made_run import MadeRun, make_run
from wsi_ips.inference.results import read_result, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.viewer.app import create_app

COMMANDS = {
    "overlay": ("overlay",),
    "report": ("report",),
    "deepzoom": ("export", "--format", "deepzoom", "--side-px", "200"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "images").mkdir()
    with serving(tmp_path / "images") as state:
        yield state


@pytest.fixture
def run(server: RangeServer, tmp_path: Path) -> MadeRun:
    """One slide, "hot", which the run says is at a URL."""
    made = make_run(tmp_path)
    folder, url = RunFolder(made.root), server.url("hot.tif")
    for slide_id in ("calm", "gone away"):
        folder.attention(slide_id).unlink()
    write_result(folder.attention("hot"), replace(made.result("hot"), slide_path=url))
    with folder.slides.open(newline="") as file:
        rows = list(csv.reader(file))
    with folder.slides.open("w", newline="") as file:
        at = rows[0].index("path")
        csv.writer(file).writerows([rows[0], *([*row[:at], url, *row[at + 1 :]] for row in rows[1:])])
    assert read_result(folder.attention("hot")).slide_path == url
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_a_url_out_of_a_run_folder_is_not_opened(
    console: Console, run: MadeRun, server: RangeServer, name: str
) -> None:
    command, *options = COMMANDS[name]
    said = console(command, run.root, *options)
    assert said.code == 3
    assert server.requests == []
    assert "--open-urls" in said.out or "--open-urls" in (run.root / "report.html").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_opened_where_that_is_allowed_or_another_place_is_named(
    console: Console, run: MadeRun, server: RangeServer, tmp_path: Path, name: str
) -> None:
    command, *options = COMMANDS[name]
    if name != "report":  # whose other slides are on the server neither
        assert console(command, run.root, *options, "--slides", tmp_path / "images").code == 0
        assert server.requests == []
    said = console(command, run.root, *options, "--open-urls")
    assert said.code == (3 if name == "report" else 0), said.err
    assert any("hot.tif" in each for each in server.requests)


def test_what_needs_no_slide_is_written_as_before(
    console: Console, run: MadeRun, server: RangeServer
) -> None:
    said = console("export", run.root, "--format", "deepzoom", "--heat-only")
    assert said.code == 0, said.err
    assert server.requests == []


def test_the_viewer_opens_no_url_unasked(run: MadeRun, server: RangeServer) -> None:
    for open_urls in (False, True):
        client = TestClient(create_app(run.root, open_urls=open_urls), base_url="http://127.0.0.1")
        about = client.get("/api/runs/0/slides/hot").json()
        client.get("/runs/0/slides/hot/thumbnail.jpg")
        client.get("/runs/0/slides/hot/slide/12/0_0.jpg")
        assert bool(server.requests) is open_urls
        assert ("--open-urls" in (about["slide_problem"] or "")) is not open_urls
        assert client.get("/runs/0/slides/hot/heat/10/0_0.png").status_code == 200
