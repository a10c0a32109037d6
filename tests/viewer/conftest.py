from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer.made_run import MadeRun, make_run

if TYPE_CHECKING:
    from tests.viewer.browser import OpenPage, Screen


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """Not to be written to."""
    return make_run(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.viewer.browser import launch

    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def address(made_run: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with two runs, which differ in the attention of ``calm``."""
    from tests.viewer.browser import served
    from wsi_ips.viewer.app import create_app

    other = make_run(tmp_path_factory.mktemp("other"), seed=5, name="other run")
    app = create_app(made_run.root, compare=other.root, manifest=made_run.manifest, objects=made_run.objects)
    with served(app) as where:
        yield where


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator["OpenPage"]:
    """Opens the page. When the test is over, none has complained, failed a request or asked another host."""
    from tests.viewer.browser import Screen

    screens: list[Screen] = []

    def opened(
        hash_: str = "#slide=hot", *, width: int = 1280, height: int = 800, dark: bool = True
    ) -> "Screen":
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        screens.append(Screen(page, address))
        return screens[-1].open(hash_, panes=2 if "compare=on" in hash_ else 1)

    yield opened
    complaints = [complaint for screen in screens for complaint in screen.complaints]
    for screen in screens:
        screen.page.close()
    assert complaints == []
