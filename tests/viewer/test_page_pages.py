"""The page's list of a run of more slides than one page holds, in Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer.test_slide_list import SLIDES, many_slides, name

pytestmark = pytest.mark.browser

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator["Page"]:
    from tests.viewer.browser import served
    from wsi_ips.viewer.app import create_app

    many_slides(tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    with served(create_app(tmp_path)) as where:
        page.goto(f"{where}/#slide={name(250)}")
        yield page
        page.close()


def test_the_list_is_turned_page_by_page(page: "Page") -> None:
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text("450 slides")
    expect(page.locator("#page-of")).to_have_text("201 to 400")
    expect(page.locator('#list [aria-current="true"]')).to_contain_text(name(250))
    expect(page.locator("#list li")).to_have_count(200)
    page.locator("#page-after").click()
    expect(page.locator("#page-of")).to_have_text("401 to 450")
    expect(page.locator("#page-after")).to_be_disabled()
    page.locator("#page-before").click()
    page.locator("#page-before").click()
    expect(page.locator("#page-of")).to_have_text("1 to 200")
    expect(page.locator("#page-before")).to_be_disabled()
    page.locator("#list button", has_text=name(199)).click()
    page.locator("#stage").focus()
    page.keyboard.press("n")  # the next slide, on the next page
    expect(page.locator("#bar-slide")).to_have_text(name(200))
    expect(page.locator("#page-of")).to_have_text("201 to 400")
    page.keyboard.press("p")
    expect(page.locator("#bar-slide")).to_have_text(name(199))
    expect(page.locator("#page-of")).to_have_text("1 to 200")


def test_all_slides_are_searched_and_sorted_and_not_one_page(page: "Page") -> None:
    from playwright.sync_api import expect

    page.locator("#search").fill("slide_44")
    expect(page.locator("#count")).to_have_text(f"11 of {SLIDES} slides")
    expect(page.locator("#pages")).to_be_hidden()
    page.locator("#search").press("Enter")
    expect(page.locator("#bar-slide")).to_have_text(name(44))
    page.locator("#search").fill("")
    page.locator("#sort").select_option("sure")
    expect(page.locator("#list button").first).to_contain_text(name(449))
    page.evaluate(f"location.hash = '#slide={name(5)}'")
    expect(page.locator('#list [aria-current="true"]')).to_contain_text(name(5))
    expect(page.locator("#page-of")).to_have_text("401 to 450")


def test_clicks_before_the_page_has_come_go_on_from_the_page_on_its_way(page: "Page") -> None:
    """Two quick clicks turn two pages, and a page that cannot be had leaves the list where it is."""
    from playwright.sync_api import expect

    from tests.viewer.browser import held, unanswered

    expect(page.locator("#page-of")).to_have_text("201 to 400")
    page.locator("#page-after").click()
    expect(page.locator("#page-of")).to_have_text("401 to 450")
    with held(page, "first=200") as waiting:
        page.locator("#page-before").click()
        page.locator("#page-before").click()
        expect(page.locator("#page-of")).to_have_text("1 to 200")
        assert waiting() == 1
    with unanswered(page, "first=200"):
        page.locator("#page-after").click()
        page.wait_for_timeout(200)
    page.locator("#page-after").click()
    expect(page.locator("#page-of")).to_have_text("201 to 400")
