"""The page for everyone: on a phone, by keyboard, in the dark; and with names that mean harm."""

from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.viewer.made_run import FAILED, make_run
from wsi_ips.viewer.app import create_app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect  # noqa: E402

from tests.viewer.browser import OpenPage, Screen, served  # noqa: E402


@pytest.mark.parametrize("dark", [True, False])
def test_a_phone_has_room_for_it(open_page: OpenPage, dark: bool) -> None:
    screen = open_page("#slide=hot", width=390, height=844, dark=dark)
    page = screen.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.scrollingElement.scrollTop") == 0
    _, _, width, height = screen.stage()
    assert (width, height) >= (390, 600)
    for panel in ("slides", "inspector"):
        expect(page.locator(f"#{panel}")).to_be_hidden()
        page.locator(f"#tab-{panel}").click()
        expect(page.locator(f"#{panel}")).to_be_visible()
        expect(page.locator(f"#tab-{panel}")).to_be_in_viewport(ratio=1)
        page.locator(f"#tab-{panel}").click()
    page.locator("#tab-slides").click()
    page.locator("#list button").first.click()
    expect(page.locator("#bar-slide")).to_have_text("calm")
    expect(page.locator("#slides")).to_be_hidden()


def test_everything_is_reached_by_keyboard(open_page: OpenPage) -> None:
    page = open_page("#slide=hot").page
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
    wanted = {"help-open", "theme", "search", "sort", "zoom-in", "heat", "opacity", "low", "high", "scale",
              "colormap", "of", "head", "outlines", "openseadragon-canvas"}  # fmt: skip
    assert wanted <= reached


def test_dark_and_light_are_kept(open_page: OpenPage) -> None:
    page = open_page("#slide=hot", dark=True).page
    page_colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(page_colour)
    page.keyboard.press("t")
    light = page.evaluate(page_colour)
    assert dark != light
    page.reload()
    expect(page.locator("#list li")).to_have_count(5)
    assert page.evaluate(page_colour) == light


def test_text_stands_out_from_its_ground(open_page: OpenPage) -> None:
    """WCAG AA: 4.5 between text and what it stands on."""
    for dark in (True, False):
        page = open_page("#slide=calm", dark=dark).page
        for selector in (
            ".name",
            ".verdict .word",
            ".faint",
            ".truth",
            ".wrong",
            "figcaption",
            "#at-um",
            "#count",
        ):
            ink, ground = page.locator(selector).first.evaluate(
                """element => {
                    let at = element;
                    const ground = () => getComputedStyle(at).backgroundColor;
                    while (ground() === "rgba(0, 0, 0, 0)") at = at.parentElement;
                    return [getComputedStyle(element).color, ground()];
                }"""
            )
            assert contrast(ink, ground) >= 4.5, (selector, dark, ink, ground)


def contrast(ink: str, ground: str) -> float:
    shades = []
    for colour in (ink, ground):
        rgb = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        shades.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(shades) / min(shades)


def test_a_name_is_text_and_never_markup(browser: Browser, tmp_path: Path) -> None:
    """A table may name a slide anything, and a failure may say anything."""
    run = make_run(tmp_path)
    name = '<img src=x onerror="document.title=1">'
    table = run.root / "predictions.csv"
    quoted = '"' + name.replace('"', '""') + '"'
    table.write_text(table.read_text().replace(f"\n{FAILED},", f"\n{quoted},"))
    app = create_app(run.root)
    listed = TestClient(app, base_url="http://localhost").get("/api/runs/0/slides").json()["slides"]
    assert name in {each["slide_id"] for each in listed}
    with served(app) as where:
        screen = Screen(browser.new_page(), where).open("#slide=hot")
        screen.page.locator("#list button", has_text=name).click()
        expect(screen.page.locator("#bar-slide")).to_have_text(name)
        assert screen.page.title() != "1"
        assert screen.complaints == []
        screen.page.close()
