"""A real browser on a real server."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, expect
from starlette.applications import Starlette

from benchmarks import chromium
from wsi_ips.viewer.app import bound

PATIENCE_MS = 20_000
TWO_FRAMES = "() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"


def launch(playwright: Playwright) -> Browser:
    path = chromium.installed()
    assert path, "chromium is not installed; make test-browser installs it"
    return playwright.chromium.launch(executable_path=path, args=list(chromium.QUIET))


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """The address of ``app``, which a thread serves for the time of the block."""
    listening: socket.socket = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()


HOLD = """(part) => {
    const own = window.fetch, waiting = [];
    window.held = { own, waiting };
    window.fetch = (asked, how) => !asked.includes(part) ? own(asked, how) : new Promise((go, fail) => {
        waiting.push(() => own(asked, how).then(go, fail));
        how?.signal?.addEventListener("abort", () => fail(how.signal.reason));
    });
}"""
RELEASE = "() => { window.fetch = window.held.own; window.held.waiting.forEach((go) => go()); }"


@contextmanager
def held(page: Page, part: str) -> Iterator[Callable[[], int]]:
    """What the page asks the server for at addresses that contain ``part`` goes out when the block ends; gives how
    many questions are waiting. (Playwright's own ``route`` misses the first ones, until the browser has heard of
    it.)"""
    page.evaluate(HOLD, part)
    yield lambda: int(page.evaluate("() => window.held.waiting.length"))
    page.evaluate(RELEASE)


@contextmanager
def unanswered(page: Page, part: str) -> Iterator[None]:
    """Within the block nobody answers at addresses that contain ``part``."""
    page.evaluate(
        """(part) => {
            const own = (window.own = window.fetch), gone = () => Promise.reject(new TypeError("Failed to fetch"));
            window.fetch = (asked, how) => (asked.includes(part) ? gone() : own(asked, how));
        }""",
        part,
    )
    yield
    page.evaluate("() => { window.fetch = window.own; }")


OpenPage = Callable[..., "Screen"]
"""``open_page(hash_, width=1280, height=800, dark=True)``."""


class Screen:
    """The page as a user sees it. Console errors, failed requests and other hosts are kept, to be none."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"asked another host: {request.url}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def open(self, hash_: str = "", *, panes: int = 1) -> "Screen":
        self.page.goto(f"{self.address}/{hash_}")
        self.settle(panes=panes)
        return self

    def settle(self, *, panes: int = 1) -> None:
        """Wait until nothing moves or loads."""
        still = '.pane[data-loaded="true"]:not([data-moving="true"])'
        expect(self.page.locator(still)).to_have_count(panes, timeout=PATIENCE_MS)
        self.page.wait_for_timeout(150)
        self.page.evaluate(TWO_FRAMES)
        expect(self.page.locator(still)).to_have_count(panes, timeout=PATIENCE_MS)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    @property
    def hash(self) -> dict[str, str]:
        """What the address says of the view."""
        query = parse_qs(urlsplit(self.page.url).fragment)
        return {name: values[0] for name, values in query.items()}

    @property
    def place(self) -> tuple[float, float, float]:
        """Centre in level-0 pixels, and level-0 pixels per pixel of the screen, once it is written."""
        for _ in range(100):
            if "z" in self.hash:
                break
            time.sleep(0.05)
        return float(self.hash["x"]), float(self.hash["y"]), float(self.hash["z"])

    def stage(self, pane: int = 0) -> tuple[float, float, float, float]:
        """(left, top, width, height) of a pane on the screen."""
        box = self.page.locator(".pane").nth(pane).bounding_box()
        assert box
        return box["x"], box["y"], box["width"], box["height"]

    def on_screen(self, l0_x: float, l0_y: float) -> tuple[float, float]:
        """Where a level-0 point is on the screen."""
        left, top, width, height = self.stage()
        x, y, z = self.place
        return left + width / 2 + (l0_x - x) / z, top + height / 2 + (l0_y - y) / z

    def colour(self, x: float, y: float) -> NDArray[np.float64]:
        """Mean RGB of 5 by 5 pixels around a place of the screen."""
        return self._around(x, y).mean(axis=(0, 1))

    def darkest(self, x: float, y: float) -> float:
        """The darkest of 5 by 5 pixels around a place of the screen, 0 to 255."""
        return float(self._around(x, y).mean(axis=2).min())

    def _around(self, x: float, y: float) -> NDArray[np.float64]:
        clip: Any = {"x": round(x) - 2, "y": round(y) - 2, "width": 5, "height": 5}
        shot = Image.open(BytesIO(self.page.screenshot(clip=clip))).convert("RGB")
        return np.asarray(shot, np.float64)

    def number(self, selector: str) -> float:
        """The first number in an element's text."""
        text = self.page.locator(selector).inner_text().replace("\u2009", "")
        found = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", text)
        assert found, text
        return float(found[0])
