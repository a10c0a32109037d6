"""The list of slides comes in pages: what a page holds, what is found, and in which order."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from wsi_ips.config import TaskConfig
from wsi_ips.inference.predictions import PredictionRow, write_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, write_slide_table
from wsi_ips.viewer import viewed_run
from wsi_ips.viewer.app import create_app
from wsi_ips.viewer.slide_list import PAGE

SLIDES = 450
TASKS = [TaskConfig()]


def name(number: int) -> str:
    return f"slide_{number}"


def many_slides(root: Path, *, waiting: int = 0) -> RunFolder:
    """A run of 450 slides. Slide n is a tumour with probability n / 1000 + 0.3, and has 450 - n patches."""
    run = RunFolder(root)
    run.root.mkdir(parents=True, exist_ok=True)
    rows = [
        PredictionRow(
            slide_id=name(number),
            status="ok",
            probabilities={"label": {"normal": 0.7 - number / 1000, "tumor": 0.3 + number / 1000}},
            n_patches=SLIDES - number,
        )
        for number in range(SLIDES - waiting)
    ]
    rows[13] = PredictionRow.failed(name(13), "no tissue was found")
    write_predictions(run.predictions, rows, tasks=TASKS)
    states = {row.slide_id: row.status for row in rows}
    write_slide_table(
        run.slides,
        [
            SlideRow(slide_id=name(number), path=f"{number}.tif", status=states.get(name(number), "waiting"))
            for number in range(SLIDES)
        ],
    )
    told = {"config": {"model": {"tasks": [task.model_dump() for task in TASKS]}}}
    run.description.write_text(json.dumps(told))
    return run


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    root = tmp_path_factory.mktemp("many")
    many_slides(root / "run")
    labels = "\n".join(f"{name(number)},{number},tumor,test,{number}.tif" for number in (3, 440))
    (root / "manifest.csv").write_text(f"slide_id,case_id,label,split,path\n{labels}\n")
    app = create_app(root / "run", manifest=root / "manifest.csv")
    return TestClient(app, base_url="http://localhost")


def page(client: TestClient, **asked: object) -> Mapping[str, Any]:
    answer = client.get("/api/runs/0/slides", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(told: Mapping[str, Any]) -> list[str]:
    return [slide["slide_id"] for slide in told["slides"]]


def test_pages_follow_each_other_and_hold_every_slide_once(client: TestClient) -> None:
    told: Mapping[str, Any] = page(client)
    seen: list[str] = []
    assert (told["first"], told["found"], told["total"], told["unfinished"]) == (0, SLIDES, SLIDES, False)
    assert len(told["slides"]) == PAGE
    for first in range(0, SLIDES, PAGE):
        seen += ids(page(client, first=first))
    assert seen == [name(number) for number in range(SLIDES)]


def test_a_place_behind_the_last_slide_is_the_last_page(client: TestClient) -> None:
    told = page(client, first=10**6, count=100)
    assert (told["first"], ids(told)) == (400, [name(number) for number in range(400, SLIDES)])


def test_the_page_of_a_slide(client: TestClient) -> None:
    assert page(client, at=name(201))["first"] == 200
    assert page(client, at=name(199))["first"] == 0
    assert name(201) in ids(page(client, at=name(201), order="patches"))
    assert page(client, at="nobody", first=200)["first"] == 200
    assert page(client, at=name(201), q="failed")["first"] == 0, "it is not among those that are found"


def test_slides_are_found_by_all_of_their_words(client: TestClient) -> None:
    assert ids(page(client, q="SLIDE_44 tumor")) == [name(n) for n in range(440, 450)]
    assert ids(page(client, q="failed")) == [name(13)]
    assert ids(page(client, q="tissue")) == [name(13)]
    assert ids(page(client, q="wrong")) == [name(3)], (
        "labelled tumor and called normal; slide 440 was called so"
    )
    assert ids(page(client, q="test")) == [name(3), name(440)]
    none = page(client, q="nobody")
    assert (none["slides"], none["found"], none["total"], none["first"]) == ([], 0, SLIDES, 0)


def test_the_page_says_which_labels_contradict(client: TestClient) -> None:
    wrong = {
        slide["slide_id"]: slide["wrong"]
        for first in (0, 200, 400)
        for slide in page(client, first=first)["slides"]
    }
    assert [slide_id for slide_id, is_wrong in wrong.items() if is_wrong] == [name(3)]


def test_slides_are_put_in_order(client: TestClient) -> None:
    assert ids(page(client, order="sure", count=3)) == [name(449), name(448), name(447)]
    assert ids(page(client, order="sure", first=449, count=1)) == [name(13)], (
        "a failed slide has no probability"
    )
    assert ids(page(client, order="patches", count=2)) == [name(0), name(1)]
    by_name = [
        slide_id for first in (0, 200, 400) for slide_id in ids(page(client, order="name", first=first))
    ]
    assert by_name == [name(number) for number in range(SLIDES)], "2 before 10"


@pytest.mark.parametrize(
    "asked",
    [
        {"count": 0},
        {"count": 501},
        {"count": "x"},
        {"first": -1},
        {"first": "9" * 30},
        {"order": "size"},
        {"first": "²"},
    ],
)
def test_a_page_that_is_not_possible_is_refused(asked: dict[str, object], client: TestClient) -> None:
    answer = client.get("/api/runs/0/slides", params=asked)
    assert answer.status_code == 400
    assert "must be" in answer.json()["error"]


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    many_slides(tmp_path, waiting=2)
    client = TestClient(create_app(tmp_path), base_url="http://localhost")
    assert page(client)["unfinished"] is True, "whatever page is shown"
    assert ids(page(client, q="waiting")) == [name(448), name(449)]


def test_a_stored_result_does_not_have_the_tables_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = many_slides(tmp_path)
    client = TestClient(create_app(tmp_path), base_url="http://localhost")
    assert page(client)["slides"][0]["has_attention"] is False
    read: list[Path] = []
    monkeypatch.setattr(viewed_run, "read_predictions", lambda path, **_: read.append(path) or [])
    run.attention("x").parent.mkdir()
    run.attention(name(0)).touch()
    assert page(client)["slides"][0]["has_attention"] is True
    assert read == []
    run.predictions.write_bytes(run.predictions.read_bytes() + b"\n")
    page(client)
    assert read == [run.predictions]
