"""A run whose head tells what patches contribute: the server's answers, and the page where it is shown."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.viewer.made_run import HOT, TISSUE, MadeRun, make_run
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.inference.results import PartOfCase, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.viewer.app import create_app

ADDED = {HOT: 1.5, HOT + 1: 0.0702, HOT + 2: -0.0702}
"""By grid id: what a patch adds to ``tumor``; half as much to ``high``."""
ABOUT = "/api/runs/0/slides/hot"
RED = colour_table("blue_red").astype(int)


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    run = make_run(tmp_path_factory.mktemp("telling"))
    result = run.result("hot")
    tumor_M = np.array(list(ADDED.values()), np.float32)
    told = replace(
        result,
        kept_ids_M=np.array(list(ADDED)),
        kept_scores_M=np.zeros(len(ADDED), np.float32),
        kept_contributions_MK=np.stack([-tumor_M, tumor_M, -tumor_M / 2, tumor_M / 2], axis=1),
    )
    write_result(RunFolder(run.root).attention("hot"), told)
    return run


@pytest.fixture(scope="module")
def client(telling: MadeRun) -> TestClient:
    return TestClient(create_app(telling.root), base_url="http://127.0.0.1:8080")


def ask(client: TestClient, what: str, **asked: str) -> dict[str, Any]:
    answer = client.get(f"{ABOUT}/{what}" if what else ABOUT, params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_slide_says_to_which_classes_contributions_are_known(client: TestClient) -> None:
    outputs = [["label", "normal"], ["label", "tumor"], ["grade", "low"], ["grade", "high"]]
    assert ask(client, "")["maps"]["contributions"] == outputs
    assert client.get("/api/runs/0/slides/calm").json()["maps"]["contributions"] == []


def test_the_legend_is_of_contributions_unless_attention_is_asked_for(client: TestClient) -> None:
    """The page sends attention's colours with every map; contributions have their own."""
    for asked in ({}, {"scale": "rank", "colormap": "blue_yellow", "low": "3"}, {"map": "contribution"}):
        legend = ask(client, "legend", **asked)
        assert (legend["map"], legend["class"]) == ("contribution", "tumor")
        assert (legend["scale"], legend["low"], legend["high"]) == ("signed", -1, 1)
        assert legend["shown"] == "Contribution to tumor, task label"
        assert legend["spread"].startswith("3 patches of 104 kept, 2 add 1.5 at most")
        assert [tick["beyond"] for tick in legend["ticks"]] == ["", "", "", "", ">="]
        assert legend["ticks"][2]["value"] == 0
        assert legend["colours"][32] == "#{:02x}{:02x}{:02x}".format(*RED[128])
    for asked in ({"map": "attention"}, {"head": "0"}, {"query": "1"}):
        assert ask(client, "legend", **asked)["map"] == "attention"
    assert ask(client, "legend", **{"class": "high"})["shown"] == "Contribution to high, task grade"


@pytest.mark.parametrize(
    ("slide_id", "asked", "problem"),
    [
        ("calm", {"map": "contribution"}, "does not tell"),
        ("calm", {"class": "tumor"}, "does not tell"),
        ("hot", {"class": "lung"}, "is not there"),
        ("hot", {"map": "heat"}, "map 'heat' is not known: attention, contribution"),
        ("hot", {"scale": "signed"}, "scale 'signed' is not known"),
        ("hot", {"map": "contribution", "head": "0"}, "a query or a head chooses attention"),
    ],
)
def test_a_map_that_cannot_be_is_400(
    client: TestClient, slide_id: str, asked: dict[str, str], problem: str
) -> None:
    answer = client.get(f"/api/runs/0/slides/{slide_id}/legend", params=asked)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]


def test_a_slide_of_a_case_says_so_and_counts_in_even_shares_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run.result("hot")
    part = PartOfCase("patient 7", ("calm", "hot"), 0.25, 4 * len(result.coords))
    of_case = replace(result, attention_NHT=result.attention_NHT / 4, case=part)
    answers = []
    for case, stored in ((None, result), ({**part.to_json()}, of_case)):
        write_result(RunFolder(run.root).attention("hot"), stored)
        client = TestClient(create_app(run.root), base_url="http://127.0.0.1:8080")
        assert ask(client, "")["case"] == case
        answers.append((ask(client, "legend"), ask(client, "value", x="700", y="700")["held"]))
    (alone, held_alone), (in_case, held_in_case) = answers
    assert in_case["even_share"] == pytest.approx(alone["even_share"] / 4)
    assert in_case["flat"] is alone["flat"]
    for one, other in zip(alone["ticks"], in_case["ticks"], strict=True):
        assert other["times_even"] == pytest.approx(one["times_even"])
    assert held_in_case["times_even"] == pytest.approx(held_alone["times_even"], rel=1e-5)
    assert held_in_case["at"] == pytest.approx(held_alone["at"], abs=1e-5)


def test_values_and_patches_are_the_stored_contributions(client: TestClient, telling: MadeRun) -> None:
    result = telling.result("hot")
    l0_x, l0_y = result.coords.l0_xy_N2[result.coords.rows(np.array([HOT + 2]))[0]] + 10
    held = ask(client, "value", x=str(l0_x), y=str(l0_y))["held"]
    assert (held["map"], held["value"]) == ("contribution", pytest.approx(-0.0702))
    assert held["at"] == pytest.approx(0.25, abs=0.001)
    found = ask(client, "patches", top="20")
    assert (found["map"], found["class"]) == ("contribution", "tumor")
    assert [patch["id"] for patch in found["patches"]] == [HOT, HOT + 1], "the others add nothing"
    assert ask(client, "patches", top="20", map="attention")["map"] == "attention"


def test_tiles_show_kept_patches_alone(client: TestClient, telling: MadeRun) -> None:
    coords = telling.result("hot").coords
    answer = client.get("/runs/0/slides/hot/heat/10/0_0.png")
    seen = np.asarray(Image.open(BytesIO(answer.content)).convert("RGBA")).astype(int)
    places = dict(zip(ADDED, (1, 0.75, 0.25), strict=True))
    for patch_id, (l0_x, l0_y) in zip(coords.ids_N.tolist(), coords.l0_xy_N2.tolist(), strict=True):
        x, y = (int((corner + 100) / 4) for corner in (l0_x, l0_y))
        if x >= seen.shape[1] or y >= seen.shape[0]:
            continue
        if patch_id not in places:
            assert seen[y, x, 3] == 0, patch_id
        else:
            assert seen[y, x, 3] == 255
            assert np.abs(seen[y, x, :3] - RED[round(places[patch_id] * 255)]).max() <= 2


@pytest.fixture
def screen(browser: Any, telling: MadeRun) -> Iterator[Any]:
    from tests.viewer.browser import Screen, served

    with served(create_app(telling.root)) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        shown = Screen(page, address)
        yield shown.open("#slide=hot&x=1100&y=500&z=2&outlines=off")
        assert shown.complaints == []
        page.close()


@pytest.mark.browser
@pytest.mark.timeout(180)
def test_the_page_opens_on_contributions_and_shows_attention_on_request(screen: Any) -> None:
    from playwright.sync_api import expect

    page, tissue = screen.page, np.array(TISSUE, float)
    expect(page.locator("#heat-title")).to_have_text("Contribution")
    expect(page.locator("#patches-title")).to_have_text("Add most to tumor")
    expect(page.locator(".legend figcaption")).to_contain_text("Contribution to tumor, task label")
    expect(page.locator("#head-row")).to_be_hidden()
    assert screen.colour(*screen.on_screen(1100, 500)) == pytest.approx((RED[255] + tissue) / 2, abs=3)
    assert screen.colour(*screen.on_screen(900, 500)) == pytest.approx(tissue, abs=3)
    page.mouse.move(*screen.on_screen(1500, 500))
    expect(page.locator("#at-value")).to_contain_text("contribution −0.0702 logit")
    page.locator("#of").select_option("class:grade/low")
    expect(page.locator(".legend figcaption")).to_contain_text("Contribution to low, task grade")
    assert screen.hash["of"] == "class:grade/low"
    page.locator("#of").select_option("attention")
    expect(page.locator(".legend figcaption")).to_contain_text("Attention, mean over queries")
    expect(page.locator("#heat-title")).to_have_text("Attention")
    expect(page.locator("#patches-title")).to_have_text("Most attention")
    page.locator("#head").select_option("1")
    expect(page.locator(".legend figcaption")).to_contain_text("head 1")
    page.locator("#of").select_option("")
    expect(page.locator(".legend figcaption")).to_contain_text("Contribution to tumor")
