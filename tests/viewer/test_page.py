"""The page in Chromium: what a user does, and what is then on the screen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.viewer.made_run import FAILED, GONE, HOT, L0_SIZE, MPP, TISSUE, MadeRun, make_run
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.heatmaps.maps import attention_map
from wsi_ips.inference.results import PartOfCase, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.viewer.app import create_app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
pytest.importorskip("playwright")

from playwright.sync_api import expect  # noqa: E402

from tests.viewer.browser import OpenPage, Screen, held, served  # noqa: E402

HOT_CENTRE = (1100.0, 500.0)  # of patch 37: column 5 and row 2 of a grid of 16 columns, 200 px each


def heat_colour(
    made_run: MadeRun, slide_id: str, patch_id: int, *, even_share: float | None = None
) -> NDArray[np.float64]:
    """The mean over heads and queries as a multiple of the even share, from 1/4 to 64 on a logarithmic scale, blue
    to yellow: as the page starts."""
    result = made_run.result(slide_id)
    values_N = attention_map(result)
    row = result.coords.rows(np.array([patch_id]))[0]
    times = float(np.clip(values_N[row] / (even_share or 1 / len(values_N)), 0.25, 64))
    place = (np.log2(times) + 2) / 8
    return colour_table("blue_yellow")[round(place * 255)].astype(np.float64)


def test_it_opens_on_the_first_slide_with_its_prediction(open_page: OpenPage) -> None:
    screen = open_page("")
    page = screen.page
    assert screen.hash["slide"] == "calm"
    expect(page.locator("#count")).to_have_text("5 slides")
    expect(page.locator("#list li")).to_have_count(5)
    expect(page.locator('#list [aria-current="true"]')).to_contain_text("calm")
    expect(page.locator("#about")).to_contain_text("90.0 %")
    expect(page.locator("#about")).to_contain_text("Predicted otherwise than labelled")
    expect(page.locator("#list .failed")).to_have_text("failed")
    x, y, z = screen.place
    assert (x, y) == pytest.approx((L0_SIZE[0] / 2, L0_SIZE[1] / 2), abs=2)
    assert z == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)


def test_a_slide_of_a_case_says_so_and_has_the_colours_of_its_case(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run.result("hot")
    part = PartOfCase("patient 7", ("calm", "hot"), 0.25, 4 * len(result.coords))
    attention = RunFolder(run.root).attention("hot")
    write_result(attention, replace(result, attention_NHT=result.attention_NHT / 4, case=part))
    with served(create_app(run.root)) as where:
        screen = Screen(browser.new_page(viewport={"width": 1280, "height": 800}), where)
        screen.open(f"#slide=hot&x={HOT_CENTRE[0]}&y={HOT_CENTRE[1]}&z=2", panes=1)
        expect(screen.page.locator("#about")).to_contain_text(
            "Part of case patient 7: one answer from the 2 slides"
        )
        expect(screen.page.locator("#about")).to_contain_text("This slide has 25.0 % of the attention.")
        heat, tissue = heat_colour(run, "hot", HOT, even_share=1 / part.patches), np.array(TISSUE, float)
        assert screen.colour(*screen.on_screen(*HOT_CENTRE)) == pytest.approx((heat + tissue) / 2, abs=3)
        screen.page.close()
    assert screen.complaints == []


def test_the_pixel_under_the_hot_patch_has_the_expected_colour(
    open_page: OpenPage, made_run: MadeRun
) -> None:
    heat, tissue = heat_colour(made_run, "hot", HOT), np.array(TISSUE, float)
    for zoom in (0.5, 2.0, 4.0):
        screen = open_page(f"#slide=hot&x={HOT_CENTRE[0]}&y={HOT_CENTRE[1]}&z={zoom}&outlines=off")
        at = screen.on_screen(*HOT_CENTRE)
        assert screen.colour(*at) == pytest.approx((heat + tissue) / 2, abs=3)
        screen.press("h")
        screen.settle()
        assert screen.colour(*at) == pytest.approx(tissue, abs=3)
        screen.press("h", *".....")
        screen.settle()
        assert screen.colour(*at) == pytest.approx(heat, abs=2)
        assert screen.hash["opacity"] == "1.00"


def test_patches_end_where_the_grid_says(open_page: OpenPage, made_run: MadeRun) -> None:
    """Left and right of the edge between patch 37 and 38, at half a screen pixel a level-0 pixel."""
    screen = open_page("#slide=hot&x=1200&y=500&z=0.5&opacity=1&outlines=off")
    x, y = screen.on_screen(1200, 500)
    assert screen.colour(x - 5, y) == pytest.approx(heat_colour(made_run, "hot", HOT), abs=2)
    assert screen.colour(x + 5, y) == pytest.approx(heat_colour(made_run, "hot", HOT + 1), abs=2)


def test_dragging_moves_the_slide_with_the_pointer(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=1500&y=1000&z=1")
    left, top, width, height = screen.stage()
    mouse = screen.page.mouse
    mouse.move(left + width / 2, top + height / 2)
    mouse.down()
    mouse.move(left + width / 2 - 60, top + height / 2 - 30, steps=6)
    mouse.move(left + width / 2 - 120, top + height / 2 - 50, steps=6)
    screen.page.wait_for_timeout(300)  # held still: no fling
    mouse.up()
    screen.settle()
    x, y, z = screen.place
    assert (x, y) == pytest.approx((1620, 1050), abs=12)
    assert z == pytest.approx(1, rel=0.01)


def test_the_wheel_zooms_around_the_pointer(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=1500&y=1000&z=2")
    left, top, width, height = screen.stage()
    at = (left + width * 0.7, top + height * 0.6)
    screen.page.mouse.move(*at)
    before = screen.number("#at-px")
    screen.page.mouse.wheel(0, -300)
    screen.page.wait_for_timeout(100)
    screen.settle()
    assert screen.place[2] < 1.6
    screen.page.mouse.move(at[0] + 1, at[1])
    screen.page.mouse.move(*at)
    assert screen.number("#at-px") == pytest.approx(before, abs=4)


def test_the_value_under_the_pointer_is_the_stored_one(open_page: OpenPage, made_run: MadeRun) -> None:
    screen = open_page("#slide=hot&x=1100&y=500&z=1")
    screen.page.mouse.move(*screen.on_screen(1120, 520))
    value = screen.page.locator("#at-value")
    expect(value).to_contain_text("P100.0")
    expect(value).to_contain_text("kept")
    assert screen.number("#at-value") == pytest.approx(
        float(attention_map(made_run.result("hot")).max()), rel=1e-3
    )
    assert screen.number("#at-px") == pytest.approx(1120, abs=1)
    assert screen.number("#at-um") == pytest.approx(1120 * MPP, abs=1)
    screen.page.mouse.move(*screen.on_screen(1100, 150))
    expect(value).to_have_text("no patch")


def test_a_click_on_a_top_patch_flies_there(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot")
    screen.page.locator(f'#patches button[data-patch="{HOT}"]').click()
    screen.page.wait_for_timeout(100)
    screen.settle()
    x, y, z = screen.place
    assert (x, y) == pytest.approx(HOT_CENTRE, abs=3)
    assert 200 / z > 100  # a good part of the pane
    mark = screen.page.locator(".overlay .mark.line").bounding_box()
    assert mark
    assert (mark["x"], mark["y"]) == pytest.approx(screen.on_screen(1000, 400), abs=3)
    assert mark["width"] == pytest.approx(200 / z, abs=4)
    expect(screen.page.locator("#patches img").first).to_have_js_property("complete", True)


def test_the_scale_bar_is_as_long_as_it_says(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=1500&y=1000&z=0.8")
    bar = screen.page.locator("#scale-line").bounding_box()
    assert bar
    assert screen.page.locator("#scale-label").inner_text().endswith("µm")
    assert bar["width"] * 0.8 * MPP == pytest.approx(screen.number("#scale-label"), rel=0.02)


def test_keys_change_the_view(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=1500&y=1000&z=2")
    screen.press("m", "s", "s", "g", "q", "o", ",")
    screen.settle()
    wanted = {"colours": "blue_red", "scale": "absolute", "head": "0", "of": "task:label", "outlines": "off",
              "opacity": "0.40"}  # fmt: skip
    assert wanted.items() <= screen.hash.items()
    expect(screen.page.locator("#legends figcaption")).to_contain_text("task label, head 0")
    screen.press("+")
    screen.settle()
    assert screen.place[2] == pytest.approx(2 / 1.6, rel=0.01)
    screen.press("ArrowRight")
    screen.settle()
    assert screen.place[0] == pytest.approx(1500 + 0.2 * screen.stage()[2] * 2 / 1.6, abs=4)
    screen.press("1")
    screen.settle()
    assert screen.place[2] == pytest.approx(1, rel=0.01)
    screen.press("0")
    screen.settle()
    assert screen.place[:2] == pytest.approx((L0_SIZE[0] / 2, L0_SIZE[1] / 2), abs=2)
    screen.press("n")
    expect(screen.page.locator("#bar-slide")).to_have_text(GONE)
    screen.press("p", "p")
    expect(screen.page.locator("#bar-slide")).to_have_text("calm")
    screen.press("?")
    expect(screen.page.locator("#help")).to_be_visible()
    screen.press("Escape")
    expect(screen.page.locator("#help")).to_be_hidden()


def test_a_link_restores_the_view(open_page: OpenPage) -> None:
    first = open_page("#slide=hot&x=1400&y=600&z=1.5")
    first.press("m", "g", ".", "o")
    first.page.get_by_label("To", exact=True).fill("900")
    first.settle()
    link = "#" + first.page.url.partition("#")[2]
    second = open_page(link)
    assert second.hash == first.hash
    assert second.hash["high"] == "388.023"  # nine tenths of the way from 1/16 to 1024
    page = second.page
    expect(page.locator("#head")).to_have_value("0")
    expect(page.locator("#outlines")).not_to_be_checked()
    expect(page.locator("#high-out")).to_have_text("388×")
    at = (*first.on_screen(1400, 600),)
    assert second.colour(*at) == pytest.approx(first.colour(*at), abs=1)


def test_the_legend_tells_raw_values_and_follows_the_pointer(open_page: OpenPage, made_run: MadeRun) -> None:
    screen = open_page("#slide=hot&x=1100&y=500&z=1&scale=absolute")
    values_N = attention_map(made_run.result("hot"))
    ticks = screen.page.locator(".tick > .raw").all_inner_texts()
    assert float(ticks[-1]) / 1000 == pytest.approx(float(values_N.max()), rel=0.01)  # × 10⁻³
    assert float(ticks[0]) / 1000 == pytest.approx(float(values_N.min()), rel=0.01)
    screen.page.locator('input[name="scale"][value="even"]').check(force=True)
    times = screen.page.locator(".tick > .times")
    expect(times).to_have_text(["0.25×", "1×", "4×", "16×", "64×"])
    expect(screen.page.locator(".legend figcaption")).to_contain_text("times the even share")
    screen.page.locator('input[name="scale"][value="absolute"]').check(force=True)
    expect(times).not_to_have_text(["0.25×", "1×", "4×", "16×", "64×"])
    screen.page.mouse.move(*screen.on_screen(*HOT_CENTRE))
    marker, strip = (screen.page.locator(each) for each in (".legend .marker", ".legend .strip"))
    expect(marker).to_be_visible()
    expect(screen.page.locator("#at-value")).to_contain_text("P100")
    at, bar = marker.bounding_box(), strip.bounding_box()
    assert at
    assert bar
    assert at["x"] + at["width"] / 2 == pytest.approx(bar["x"] + bar["width"], abs=2)


def test_the_list_is_searched(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot")
    page = screen.page
    screen.press("/")
    expect(page.locator("#search")).to_be_focused()
    for words, left in (("fail", 1), ("wrong", 1), ("tumor", 2), ("calm tumor", 1), ("none such", 0)):
        page.locator("#search").fill(words)
        expect(page.locator("#list button")).to_have_count(left)
    expect(page.locator("#list")).to_contain_text("No slide is called that")
    page.locator("#search").fill("calm")
    page.keyboard.press("Enter")
    expect(page.locator("#bar-slide")).to_have_text("calm")


def test_slides_that_cannot_be_shown_say_so(open_page: OpenPage) -> None:
    screen = open_page(f"#slide={GONE}&opacity=1")
    expect(screen.page.locator(".message")).to_contain_text("is not there any more")
    assert np.ptp(screen.colour(*screen.on_screen(1500, 500))) > 20  # its attention is there
    screen.page.locator("#list button", has_text=FAILED).first.click()
    expect(screen.page.locator(".message")).to_contain_text("no tissue was found")
    expect(screen.page.locator("#about")).to_contain_text("Failed.")
    screen.press("c")
    expect(screen.page.locator(".pane")).to_have_count(2)
    expect(screen.page.locator(".message").first).to_contain_text("no tissue was found")
    expect(screen.page.locator('.pane[data-loaded="true"]')).to_have_count(2)


def test_two_runs_move_together(open_page: OpenPage) -> None:
    screen = open_page("#slide=calm&x=1500&y=700&z=1&compare=on&opacity=1&outlines=off")
    page = screen.page
    expect(page.locator(".pane-title")).to_have_text(["predictions", "other run"])
    assert screen.place == pytest.approx((1500, 700, 1), rel=0.01)
    expect(page.locator(".legend")).to_have_count(2)
    left, top, width, height = screen.stage(1)
    page.mouse.move(left + width / 2, top + height / 2)
    page.mouse.wheel(0, 240)
    page.wait_for_timeout(100)
    screen.settle(panes=2)
    assert screen.place[2] > 1.2
    one, other = (
        matrix(page.locator(".overlay > g").nth(pane).get_attribute("transform")) for pane in (0, 1)
    )
    assert one == pytest.approx(other, abs=1e-6)
    expect(page.locator('.pane[data-run="0"] .pointer.line')).to_have_count(1)
    expect(page.locator('.pane[data-run="1"] .pointer.line')).to_have_count(0)
    page.mouse.move(5, 5)
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in (screen.stage(0), screen.stage(1))]
    assert np.abs(screen.colour(*middles[0]) - screen.colour(*middles[1])).max() > 5  # other attention
    screen.press("c")
    expect(page.locator(".pane")).to_have_count(1)
    screen.settle()
    zoom = screen.place[2]
    screen.press("c")
    screen.settle(panes=2)
    assert screen.place[2] == pytest.approx(zoom, rel=0.01)
    screen.press("0")
    screen.settle(panes=2)
    assert screen.place[2] == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)
    screen.press("c")
    screen.settle()
    assert screen.place[2] == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)


def test_the_page_says_that_it_waits_for_a_slide(open_page: OpenPage) -> None:
    """A slow server: until its answer is there, the picture on the screen is not the one that was asked for."""
    screen = open_page("#slide=calm&compare=on")
    pane = screen.page.locator(".pane")
    with held(screen.page, "/api/runs/0/slides/calm"):
        screen.press("c")
        expect(pane).to_have_count(1)
        expect(pane).to_have_attribute("data-loaded", "false")
        screen.page.wait_for_timeout(300)
        expect(pane).to_have_attribute("data-loaded", "false")
    screen.settle()
    assert screen.place[2] == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)


def test_side_by_side_on_and_off_at_once_keeps_the_place(open_page: OpenPage) -> None:
    """The key is pressed again when the answer of the server is there and the pictures are not."""
    screen = open_page("#slide=calm&x=1500&y=700&z=1")
    screen.page.evaluate("""() => {
        const { json } = Response.prototype;
        const press = () => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "c", bubbles: true }));
        Response.prototype.json = async function () {
            const said = await json.call(this);
            if (new URL(this.url).pathname === "/api/runs/0/slides/calm") {
                Response.prototype.json = json;
                setTimeout(press);
            }
            return said;
        };
    }""")
    screen.press("c")
    expect(screen.page.locator(".pane")).to_have_count(1)
    screen.settle()
    assert screen.place == pytest.approx((1500, 700, 1), rel=0.01)


def test_a_whole_slide_is_whole_in_a_pane_of_another_width(open_page: OpenPage) -> None:
    """Where the server answers at once, the slide opens before the viewer knows how wide its pane is now."""
    screen = open_page("#slide=calm&compare=on")
    screen.page.evaluate("""async () => {
        const { fetch } = window, path = "/api/runs/0/slides/calm";
        const said = await (await fetch(path)).text();
        window.fetch = (asked, how) => (asked === path ? Promise.resolve(new Response(said)) : fetch(asked, how));
    }""")
    screen.press("c")
    screen.settle()
    assert screen.place[2] == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)
    screen.page.set_viewport_size({"width": 900, "height": 800})
    screen.settle()
    assert screen.place[2] == pytest.approx(L0_SIZE[0] / screen.stage()[2], rel=0.02)
    screen.press("1")
    screen.settle()
    screen.page.set_viewport_size({"width": 1280, "height": 800})
    screen.settle()
    assert screen.place[2] == pytest.approx(1, rel=0.01)


def test_outlines_lie_where_they_were_drawn(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=1400&y=700&z=1.5&heat=off")
    box = screen.page.locator(".lesions .line").bounding_box()
    assert box
    assert (box["x"], box["y"]) == pytest.approx(screen.on_screen(1000, 400), abs=3)
    assert box["width"] == pytest.approx(800 / 1.5, abs=4)
    edge = screen.on_screen(1000, 700)
    assert screen.darkest(*edge) < np.mean(TISSUE) - 60
    screen.press("o")
    assert screen.colour(*edge) == pytest.approx(np.array(TISSUE, float), abs=3)


OBJECT_GREEN, OBJECT_AMBER = (0, 214, 100), (255, 178, 0)


def test_found_objects_lie_where_they_were_found(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=2500&y=1550&z=0.5&heat=off")
    page = screen.page
    expect(page.locator("#objects-classes")).to_contain_text("nucleus2")
    expect(page.locator("#objects-classes")).to_contain_text("mitosis1")
    expect(page.locator("#objects-note")).to_have_text("3 of 3 in view or close to it.")
    on_box = screen.on_screen(2500, 1520)
    on_disc = screen.on_screen(2440, 1520)
    beside = screen.on_screen(2420, 1520)
    assert_hue(screen.colour(*on_box), OBJECT_AMBER)
    assert_hue(screen.colour(*on_disc), OBJECT_GREEN)
    assert screen.colour(*beside) == pytest.approx(np.array(TISSUE, float), abs=3)
    # The corner of the disc's box is no part of its outline.
    assert screen.colour(*screen.on_screen(2440, 1500)) == pytest.approx(np.array(TISSUE, float), abs=3)
    screen.press("d")
    assert screen.hash["objects"] == "off"
    assert screen.colour(*on_box) == pytest.approx(np.array(TISSUE, float), abs=3)
    assert not page.locator("#objects").is_checked()
    screen.press("d")
    assert_hue(screen.colour(*on_box), OBJECT_AMBER)


def test_objects_without_size_on_the_screen_are_points(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=2500&y=1550&z=20&heat=off")
    expect(screen.page.locator(".found .point")).to_have_count(2)


def test_a_crowd_is_shaded_and_told_one_by_one_close_by(open_page: OpenPage) -> None:
    screen = open_page("#slide=calm&x=2000&y=1200&z=2&heat=off")
    note = screen.page.locator("#objects-note")
    expect(note).to_contain_text("4\u2009000 of 4\u2009000")
    expect(note).to_contain_text("Zoom in to see each")
    shaded, bare = screen.colour(*screen.on_screen(2000, 1200)), screen.colour(*screen.on_screen(2000, 700))
    assert_hue(shaded, OBJECT_GREEN)
    assert bare == pytest.approx(np.array(TISSUE, float), abs=3)
    screen.press("1")
    screen.settle()
    screen.press("+", "+")
    screen.settle()
    expect(note).not_to_contain_text("Zoom in")
    expect(screen.page.locator(".found .object")).to_have_count(1)
    expect(screen.page.locator(".found .density")).to_have_count(0)


def test_another_slide_has_its_own_objects(open_page: OpenPage) -> None:
    screen = open_page("#slide=hot&x=2500&y=1550&z=0.5&heat=off")
    expect(screen.page.locator(".found .object")).to_have_count(2)
    screen.page.locator("#list li", has_text="gone away").click()
    expect(screen.page.locator("#objects-block")).to_be_hidden()
    expect(screen.page.locator(".found .object")).to_have_count(0)


def assert_hue(seen: NDArray[np.float64], wanted: tuple[int, int, int]) -> None:
    """A thin line's colour, mixed with the tissue around it: nearer to its own than the tissue is."""
    tissue, line = np.array(TISSUE, float), np.array(wanted, float)
    share = ((seen - tissue) @ (line - tissue)) / ((line - tissue) @ (line - tissue))
    assert share > 0.15
    assert seen == pytest.approx(tissue + share * (line - tissue), abs=12)


def matrix(transform: str | None) -> list[float]:
    assert transform
    return [float(part) for part in transform.removeprefix("matrix(").removesuffix(")").split()]
