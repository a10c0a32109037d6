"""The server's answers against what the run holds."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from tests.commands import evaluated_run
from tests.commands.evaluated_run import Slide
from tests.viewer.made_run import FAILED, GONE, HOT, L0_SIZE, SLIDES, WAITING, MadeRun, make_run
from wsi_ips.config import TaskConfig
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.errors import AnnotationError, ResultsError
from wsi_ips.heatmaps.display_scale import DisplayScale, colour_table, colourise
from wsi_ips.heatmaps.maps import attention_map
from wsi_ips.heatmaps.raster import patch_values_to_canvas
from wsi_ips.inference.results import write_result
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.viewer.app import create_app
from wsi_ips.viewer.tiles import TILE_PX, TilePyramid
from wsi_ips.viewer.viewed_run import OPEN_SLIDES

HOT_TILES = "/runs/0/slides/hot"
TOP_LEVEL = 12


def client_of(run: MadeRun, **options: Any) -> TestClient:
    return TestClient(create_app(run.root, **options), base_url="http://127.0.0.1:8080")


def test_the_answer_of_a_survival_task_is_the_risk(tmp_path: Path) -> None:
    its = SurvivalConfig(time="months", event="died", at=(6.0, 12.0))
    task = TaskConfig(name="death", kind="survival", survival=its)
    said = {"death": {"risk": -0.25, "survival_6": 0.8, "survival_12": 0.5}}
    run = evaluated_run.make_run(tmp_path, [Slide("a", said, {"months": "3", "died": "1"})], [task]).run
    asking = TestClient(create_app(run), base_url="http://127.0.0.1:8080")
    slides = asking.get("/api/runs/0/slides").json()["slides"]
    assert [slide["predicted"] for slide in slides] == [{"death": "risk -0.25"}]


@pytest.fixture(scope="module")
def client(made_run: MadeRun) -> TestClient:
    return client_of(made_run, manifest=made_run.manifest)


def picture(client: TestClient, address: str) -> NDArray[np.uint8]:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    image = Image.open(BytesIO(answer.content))
    return np.asarray(image.convert("RGBA" if image.format == "PNG" else "RGB"))


def whole_level(client: TestClient, layer: str, level: int, kind: str, query: str = "") -> NDArray[np.uint8]:
    """All tiles of a level, put together."""
    scale = 2 ** (TOP_LEVEL - level)
    cols, rows = (ceil(length / scale / TILE_PX) for length in L0_SIZE)
    bands = [
        np.concatenate(
            [picture(client, f"{HOT_TILES}/{layer}/{level}/{c}_{r}.{kind}{query}") for c in range(cols)],
            axis=1,
        )
        for r in range(rows)
    ]
    return np.concatenate(bands)


def test_the_tiles_of_every_level_make_up_the_slide(client: TestClient, made_run: MadeRun) -> None:
    with open_slide(made_run.images / "hot.tif") as slide:
        for level in (TOP_LEVEL, TOP_LEVEL - 1, TOP_LEVEL - 3):
            scale = 2 ** (TOP_LEVEL - level)
            seen = whole_level(client, "slide", level, "jpg")
            assert seen.shape == (-(-L0_SIZE[1] // scale), -(-L0_SIZE[0] // scale), 3)
            wanted = slide_picture(slide, (seen.shape[1], seen.shape[0]), l0_per_px=scale)
            # JPEG, and Pillow's means beside exact ones: the edge of the tissue is the place to differ.
            assert np.abs(seen.astype(int) - wanted).mean() < 1.5
            assert (np.abs(seen.astype(int) - wanted).max(axis=2) > 30).mean() < 0.002


@pytest.mark.parametrize("query", ["", "?task=grade&head=1&colormap=blue_red&scale=absolute&high=0.01"])
def test_heat_tiles_are_the_stored_attention(client: TestClient, made_run: MadeRun, query: str) -> None:
    result = made_run.result("hot")
    named = {"query": 1, "head": 1} if query else {}
    values_N = attention_map(result, **named)
    table = colour_table("blue_red" if query else "blue_yellow")
    for level in (TOP_LEVEL, TOP_LEVEL - 2):
        canvas = patch_values_to_canvas(
            result.coords.l0_exact_corners(), result.coords.l0_patch, values_N,
            l0_size=L0_SIZE, l0_per_px=2.0 ** (TOP_LEVEL - level),
        )  # fmt: skip
        held = np.isfinite(canvas)
        scale: Any = {"scale": "absolute", "high": 0.01} if query else {}
        shares = DisplayScale(values_N, **scale)(canvas[held])
        seen = whole_level(client, "heat", level, "png", query)
        assert (seen[..., 3] == np.where(held, 255, 0)).all()
        assert (seen[held][:, :3] == colourise(shares, table)).all()


def test_no_patch_is_lost_where_pixels_are_larger_than_patches(client: TestClient, made_run: MadeRun) -> None:
    """At 512 level-0 pixels a pixel, centres hit one patch in six; the hot one is not among them."""
    level = TOP_LEVEL - 9
    seen = picture(client, f"{HOT_TILES}/heat/{level}/0_0.png?scale=absolute")
    shown = seen[seen[..., 3] > 0][:, :3].astype(int)
    assert len({tuple(colour) for colour in shown.tolist()}) > 1
    coldest = colour_table("blue_yellow")[0].astype(int)
    assert np.abs(shown - coldest).sum(axis=1).max() > 60  # the mean of a hot patch and its neighbours


@pytest.mark.parametrize(
    "address",
    [
        "slide/13/0_0.jpg", "slide/12/6_0.jpg", "slide/12/0_4.jpg", "slide/12/-1_0.jpg", "slide/12/0_0.png",
        "heat/12/0_0.jpg", "slide/x/0_0.jpg", "slide/12/0_0.jpg.bak", "slide/12/0.jpg", "slide/1e1/0_0.jpg",
        "slide/12/99999999999999999999_0.jpg", "slide/٣/0_0.jpg", "patch/5.jpg", "patch/x.jpg",
        "overlays/1/0_0.jpg",
    ],
)  # fmt: skip
def test_a_bad_tile_address_is_404(client: TestClient, address: str) -> None:
    answer = client.get(f"{HOT_TILES}/{address}")
    assert answer.status_code == 404
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "address",
    [
        "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "//etc/passwd",
        "/api/runs/0/slides/..", "/api/runs/0/slides/%2e%2e", "/api/runs/0/slides/..%2f..%2frun.json",
        "/api/runs/0/slides/%00", "/runs/0/slides/..%2fhot/slide/12/0_0.jpg", "/api/runs/1/slides",
        "/api/runs/-1/slides", "/api/runs/00/slides", "/run.json", "/page/", "/api/runs/0/slides/nobody",
    ],
)  # fmt: skip
def test_nothing_but_the_run_is_served(client: TestClient, address: str) -> None:
    assert client.get(address).status_code == 404


def test_a_table_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "outside.h5").write_bytes((run.root / "attention" / "hot.h5").read_bytes())
    table = run.root / "predictions.csv"
    table.write_text(table.read_text().replace("\nhot,", "\n../../outside,"))
    client = client_of(run)
    listed = {slide["slide_id"] for slide in client.get("/api/runs/0/slides").json()["slides"]}
    assert "hot" in listed  # by its stored attention
    assert not any("outside" in slide_id for slide_id in listed)


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_a_name_that_is_not_utf_8_costs_only_its_slide(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attention = run.root / "attention"
    shutil.copy(attention / "hot.h5", os.fsdecode(os.fsencode(attention) + b"/caf\xe9.h5"))
    shutil.copy(attention / "hot.h5", attention / "100% ä#?&+.h5")
    client = client_of(run)
    answer = client.get("/api/runs/0/slides").json()
    listed = {each["slide_id"] for each in answer["slides"]}
    assert "100% ä#?&+" in listed
    assert not any("caf" in slide_id for slide_id in listed)
    assert "not shown" in answer["notes"][0]
    tile = client.get(f"/runs/0/slides/{quote('100% ä#?&+')}/heat/12/0_0.png")
    assert tile.status_code == 200


def test_every_slide_is_listed_with_its_state(client: TestClient) -> None:
    slides = {each["slide_id"]: each for each in client.get("/api/runs/0/slides").json()["slides"]}
    assert list(slides) == [*SLIDES, GONE, FAILED, WAITING]
    assert slides["hot"]["predicted"] == {"label": "tumor", "grade": "high"}
    assert slides["hot"]["probabilities"]["label"]["tumor"] == 0.8
    assert slides["calm"]["labels"] == {"label": "tumor", "grade": "high"}
    assert (slides[FAILED]["status"], slides[WAITING]["status"]) == ("failed", "waiting")
    assert "no tissue" in slides[FAILED]["error"]


def test_a_slide_that_is_gone_says_so_and_keeps_its_attention(client: TestClient) -> None:
    about = client.get(f"/api/runs/0/slides/{GONE}").json()
    assert "is not there any more" in about["slide_problem"]
    assert about["l0_size"] == list(L0_SIZE)
    assert client.get(f"/runs/0/slides/{GONE}/slide/12/0_0.jpg").status_code == 404
    assert client.get(f"/runs/0/slides/{GONE}/heat/12/0_0.png").status_code == 200
    assert client.get(f"/runs/0/slides/{GONE}/thumbnail.jpg").status_code == 204
    failed = client.get(f"/api/runs/0/slides/{FAILED}").json()
    assert failed["maps"] is None
    assert failed["slide_problem"]


def test_thumbnails_do_not_drive_out_the_slide_that_is_looked_at(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    others = [f"other_{number}" for number in range(OPEN_SLIDES + 1)]
    for slide_id in others:
        shutil.copy(run.root / "attention" / "hot.h5", run.root / "attention" / f"{slide_id}.h5")
    app = create_app(run.root)
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/runs/0/slides/hot/slide/12/0_0.jpg").status_code == 200
    viewed = app.routes[0].endpoint.__self__.runs[0].run  # type: ignore[attr-defined]
    kept = viewed.slide("hot")
    for slide_id in others:
        assert client.get(f"/runs/0/slides/{slide_id}/thumbnail.jpg").status_code == 200
    assert viewed.slide("hot") is kept
    assert picture(client, "/runs/0/slides/calm/thumbnail.jpg").shape == (86, 128, 3)


def test_features_are_no_slide(made_run: MadeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = run.root / "slides.csv"
    table.write_text(table.read_text().replace("/calm.tif", "/calm.h5"))
    about = client_of(run).get("/api/runs/0/slides/calm").json()
    assert "features" in about["slide_problem"]
    assert "--slides" in about["slide_problem"]
    assert about["maps"]


def test_attention_that_is_no_number_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run.result("hot")
    result.attention_NHT[3, 0, 0] = np.nan
    write_result(run.root / "attention" / "hot.h5", result)
    about = client_of(run).get("/api/runs/0/slides/hot").json()
    assert "not finite" in about["heat_problem"]
    assert about["maps"] is None


def test_a_slide_without_patches_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run.result("hot")
    coords = result.coords
    none = replace(coords, ids_N=coords.ids_N[:0], l0_xy_N2=coords.l0_xy_N2[:0], tissue_N=coords.tissue_N[:0])
    nothing = result.attention_NHT[:0]
    empty = replace(
        result, coords=none, attention_NHT=nothing, logits_NHT=nothing, kept_ids_M=result.kept_ids_M[:0],
        kept_scores_M=result.kept_scores_M[:0],
    )  # fmt: skip
    write_result(run.root / "attention" / "hot.h5", empty)
    client = client_of(run)
    assert client.get("/api/runs/0/slides/hot").json()["heat_problem"] is None
    assert client.get("/api/runs/0/slides/hot/legend").json()["ticks"] == []
    assert client.get("/api/runs/0/slides/hot/patches").json()["patches"] == []
    assert client.get("/api/runs/0/slides/hot/value?x=1100&y=500").json()["held"] is None
    for level in (12, 2):
        assert (picture(client, f"{HOT_TILES}/heat/{level}/0_0.png")[..., 3] == 0).all()


def test_overlapping_patches_show_their_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run.result("hot")
    shifted = result.coords.l0_xy_N2.copy()
    row = result.coords.rows(np.array([HOT]))[0]
    shifted[row] += (100, 0)  # half over its neighbour: on no grid any more
    write_result(
        run.root / "attention" / "hot.h5", replace(result, coords=replace(result.coords, l0_xy_N2=shifted))
    )
    held = client_of(run).get("/api/runs/0/slides/hot/value?head=0&query=0&x=1250&y=500").json()["held"]
    assert [patch["id"] for patch in held["patches"]] == [HOT, HOT + 1]
    assert held["value"] == pytest.approx(result.attention_NHT[row : row + 2, 0, 0].mean(), rel=1e-6)


def test_slides_may_lie_elsewhere(made_run: MadeRun) -> None:
    client = client_of(made_run, elsewhere={GONE: made_run.images / "hot.tif"})
    assert client.get(f"/runs/0/slides/{GONE}/slide/12/0_0.jpg").status_code == 200
    assert "not among the slides" in client.get("/api/runs/0/slides/hot").json()["slide_problem"]


def test_another_slide_under_the_same_name_is_not_shown(made_run: MadeRun, tmp_path: Path) -> None:
    from wsi_ips.drawn.synthetic import write_pyramid
    from wsi_ips.units import Mpp

    other = tmp_path / "hot.tif"
    write_pyramid(other, np.full((600, 600, 3), 200, np.uint8), mpp=Mpp(0.5))
    client = client_of(made_run, elsewhere={"hot": other})
    assert "600x600" in client.get("/api/runs/0/slides/hot").json()["slide_problem"]
    assert client.get("/runs/0/slides/hot/slide/8/0_0.jpg").status_code == 422


def test_the_value_under_the_pointer_is_the_stored_one(client: TestClient, made_run: MadeRun) -> None:
    result = made_run.result("hot")
    row = result.coords.rows(np.array([HOT]))[0]
    x, y = result.coords.l0_exact_corners()[row]
    side = result.coords.l0_patch
    ask = "/api/runs/0/slides/hot/value?task=label&head=0&x={}&y={}"
    for at in ((x, y), (x + side - 0.01, y + side - 0.01)):
        held = client.get(ask.format(*at)).json()["held"]
        assert held["value"] == float(result.attention_NHT[row, 0, 0])
        assert held["percentile"] == 100
        assert held["times_even"] == held["value"] * len(result.coords)
        assert [patch["id"] for patch in held["patches"]] == [HOT]
        assert held["patches"][0]["kept"] is True
    assert client.get(ask.format(x + side, y)).json()["held"]["patches"][0]["id"] == HOT + 1
    assert client.get(ask.format(10, 10)).json()["held"] is None
    assert client.get(ask.format(1e9, 10)).json()["held"] is None


def test_top_patches_come_in_order_with_their_pictures(client: TestClient, made_run: MadeRun) -> None:
    patches = client.get("/api/runs/0/slides/hot/patches?top=5").json()["patches"]
    values = np.sort(attention_map(made_run.result("hot")))[::-1]
    assert [patch["value"] for patch in patches] == values[:5].tolist()
    assert patches[0]["id"] == HOT
    image = picture(client, f"/runs/0/slides/hot/patch/{HOT}.jpg")
    assert np.abs(image.astype(int).mean(axis=(0, 1)) - (200, 150, 190)).max() < 3


def test_the_legend_tells_raw_values(client: TestClient, made_run: MadeRun) -> None:
    values = attention_map(made_run.result("hot"))
    legend = client.get("/api/runs/0/slides/hot/legend?scale=rank&low=50").json()
    assert legend["shown"] == "Attention, mean over queries, mean over 2 heads"
    assert [tick["percentile"] for tick in legend["ticks"]] == [50, 62.5, 75, 87.5, 100]
    assert legend["ticks"][0]["value"] == pytest.approx(np.median(values.astype(float)))
    assert legend["ticks"][-1]["value"] == pytest.approx(values.max())
    assert legend["colours"][-1] == "#{:02x}{:02x}{:02x}".format(*colour_table("blue_yellow")[-1])


def test_the_legend_s_colours_are_the_same_for_every_slide(client: TestClient, made_run: MadeRun) -> None:
    count = len(made_run.result("hot").coords)
    legend = client.get("/api/runs/0/slides/hot/legend").json()
    assert (legend["scale"], legend["low"], legend["high"]) == ("even", 0.25, 64)
    assert [tick["times_even"] for tick in legend["ticks"]] == pytest.approx([0.25, 1, 4, 16, 64])
    assert [tick["value"] * count for tick in legend["ticks"]] == pytest.approx([0.25, 1, 4, 16, 64])
    assert legend["flat"] is False


def test_outlines_are_the_annotator_s(client: TestClient) -> None:
    (polygon,) = client.get("/api/runs/0/slides/hot/outlines").json()["polygons"]
    outer, hole = (np.array(ring) for ring in polygon)
    assert (outer.min(axis=0).tolist(), outer.max(axis=0).tolist()) == ([1000, 400], [1800, 1000])
    assert (hole.min(axis=0).tolist(), hole.max(axis=0).tolist()) == ([1200, 600], [1400, 800])
    assert client.get("/api/runs/0/slides/calm/outlines").json()["polygons"] == []
    assert client.get("/api/runs/0/slides/hot").json()["has_outlines"] is True


@pytest.mark.parametrize(
    "query",
    ["task=none", "query=9", "head=2", "head=-1", "colormap=jet", "scale=log", "low=x", "low=nan",
     "low=90&high=10", "task=label&query=0", "query=1.5"],
)  # fmt: skip
def test_a_map_that_cannot_be_is_400(client: TestClient, query: str) -> None:
    answer = client.get(f"{HOT_TILES}/heat/12/0_0.png?{query}")
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


def test_browsers_keep_a_tile_while_its_stamp_holds(
    client: TestClient, made_run: MadeRun, tmp_path: Path
) -> None:
    stamp = client.get("/api/runs/0/slides/hot").json()["v"]
    address = f"{HOT_TILES}/heat/12/0_0.png"
    lasting = client.get(f"{address}?v={stamp}")
    assert "max-age=86400" in lasting.headers["cache-control"]
    assert "no-cache" in client.get(f"{address}?v=old").headers["cache-control"]
    again = client.get(address, headers={"If-None-Match": lasting.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"{address}?head=0").headers["etag"] != lasting.headers["etag"]
    other = make_run(tmp_path, seed=1)
    assert client_of(other).get("/api/runs/0/slides/hot").json()["v"] != stamp


def test_the_page_s_files_are_asked_for_once(client: TestClient) -> None:
    first = client.get("/page/page.js")
    assert "no-cache" in first.headers["cache-control"]
    again = client.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_run_that_goes_on_is_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    client = client_of(run)
    before = client.get("/api/runs/0/slides").json()["slides"]
    (run.root / "attention" / "new.h5").write_bytes((run.root / "attention" / "hot.h5").read_bytes())
    after = client.get("/api/runs/0/slides").json()["slides"]
    assert {each["slide_id"] for each in after} - {each["slide_id"] for each in before} == {"new"}


def test_two_runs_are_served_side_by_side(made_run: MadeRun, tmp_path: Path) -> None:
    other = make_run(tmp_path, seed=3)
    client = client_of(made_run, compare=other.root)
    assert [run["name"] for run in client.get("/api/view").json()["runs"]] == ["predictions", "predictions"]
    tiles = [client.get(f"/runs/{run}/slides/hot/heat/10/0_0.png").content for run in (0, 1)]
    assert tiles[0] != tiles[1]


def test_a_damaged_result_costs_only_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.root / "attention" / "hot.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    client = client_of(run)
    about = client.get("/api/runs/0/slides/hot").json()
    assert "damaged" in about["heat_problem"]
    assert client.get("/runs/0/slides/hot/heat/12/0_0.png").status_code == 422
    assert client.get("/runs/0/slides/calm/heat/12/0_0.png").status_code == 200


def test_folders_that_are_no_run_are_refused(tmp_path: Path, made_run: MadeRun) -> None:
    with pytest.raises(ResultsError, match="no such folder"):
        create_app(tmp_path / "none")
    with pytest.raises(ResultsError, match="holds neither"):
        create_app(tmp_path)
    with pytest.raises(AnnotationError, match="no such folder"):
        create_app(made_run.root, annotations=tmp_path / "none")


def test_an_address_means_one_part_of_the_slide() -> None:
    pyramid = TilePyramid((1025, 300), tile_px=256)
    assert pyramid.top_level == 11
    window = pyramid.window(11, 4, 1)
    assert (window.at_px, window.size_px, window.l0_per_px) == ((1024, 256), (1, 44), 1)
    assert pyramid.window(0, 0, 0).size_px == (1, 1)


def test_the_server_loads_no_model() -> None:
    """Half a gigabyte, and seconds before the first page."""
    code = "import sys, wsi_ips.viewer.app, wsi_ips.viewer.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
