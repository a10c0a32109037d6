"""Found objects over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.viewer.made_run import CROWD, MadeRun, make_run
from wsi_ips.errors import ResultsError
from wsi_ips.viewer.app import create_app


def client_of(run: MadeRun, **options: Any) -> TestClient:
    return TestClient(create_app(run.root, **options), base_url="http://127.0.0.1:8080")


@pytest.fixture(scope="module")
def client(made_run: MadeRun) -> TestClient:
    return client_of(made_run, objects=made_run.objects)


def seen(client: TestClient, slide_id: str, *window: float) -> dict[str, Any]:
    query = "&".join(
        f"{name}={at}" for name, at in zip(("left", "top", "right", "bottom"), window, strict=True)
    )
    answer = client.get(f"/api/runs/0/slides/{slide_id}/objects?{query}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_slide_says_whether_it_was_searched(client: TestClient, made_run: MadeRun) -> None:
    assert client.get("/api/runs/0/slides/hot").json()["has_objects"] is True
    assert client.get("/api/runs/0/slides/waiting").json()["has_objects"] is False
    assert client_of(made_run).get("/api/runs/0/slides/hot").json()["has_objects"] is False


def test_objects_of_the_window_have_class_score_and_outline(client: TestClient) -> None:
    found = seen(client, "hot", 2390, 1490, 2530, 1550)
    assert (found["n_objects"], found["in_view"], found["cells"]) == (3, 2, None)
    assert [(each["name"], each["in_view"]) for each in found["classes"]] == [("nucleus", 1), ("mitosis", 1)]
    disc, square = found["objects"]
    assert (disc["class"], disc["score"], square["class"]) == (0, 0.9, 1)
    assert len(disc["ring"]) > 40
    corners = list(zip(square["ring"][::2], square["ring"][1::2], strict=True))
    assert sorted(corners) == [(2500, 1500), (2500, 1540), (2560, 1500), (2560, 1540)]
    assert seen(client, "hot", 0, 0, 10, 10)["objects"] == []


def test_a_crowd_is_counted_in_squares(client: TestClient) -> None:
    found = seen(client, "calm", 1000, 800, 2800, 1600)
    assert found["objects"] is None
    side, counts = found["cells"]["l0_side"], found["cells"]["counts"]
    assert sum(count for _, _, count in counts) == found["in_view"] == CROWD
    assert 1800 / 40 <= side <= 2 * 1800 / 40
    for col, row, count in counts:
        centres = sum(
            col * side <= 1403 + 12 * x < (col + 1) * side and row * side <= 1003 + 10 * y < (row + 1) * side
            for x in range(100)
            for y in range(40)
        )
        assert centres == count
    near = seen(client, "calm", 1400, 1000, 1500, 1100)
    assert near["cells"] is None
    assert len(near["objects"]) == near["in_view"] == 9 * 11


@pytest.mark.parametrize(
    "query",
    [
        "",
        "left=0&top=0&right=1",
        "left=5&top=0&right=5&bottom=9",
        "left=nan&top=0&right=5&bottom=9",
        "left=0&top=0&right=1e300&bottom=9",
    ],
)
def test_no_part_of_the_slide_is_400(client: TestClient, query: str) -> None:
    assert client.get(f"/api/runs/0/slides/hot/objects?{query}").status_code == 400


def test_objects_in_the_run_s_own_folder_are_found(made_run: MadeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.objects / "objects").rename(run.root / "objects")
    client = client_of(run)
    assert client.get("/api/runs/0/slides/hot").json()["has_objects"] is True
    (run.root / "objects" / "hot.csv").write_text("nothing\n")
    answer = client.get("/api/runs/0/slides/hot/objects?left=0&top=0&right=9&bottom=9")
    assert answer.status_code == 422
    assert "is no table of found objects" in answer.json()["error"]
    assert seen(client, "calm", 1400, 1000, 1500, 1100)["in_view"] == 99
    with pytest.raises(ResultsError, match="name the folder that wsi-ips detect wrote"):
        create_app(run.root, objects=tmp_path)


def test_no_file_beside_the_run_s_slides_is_read(client: TestClient) -> None:
    for slide_id in ("..%2fobjects%2fhot", "nobody", "failed"):
        window = "?left=0&top=0&right=9&bottom=9"
        assert client.get(f"/api/runs/0/slides/{slide_id}/objects{window}").status_code in (404, 422)
