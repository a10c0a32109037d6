"""How fast `wsi-ips view` shows a slide, and how much memory its server takes.

    python benchmarks/viewer.py [--slide SLIDE.tif] [--json] [--no-browser]

Draws a slide of 32,768 x 32,768 px (make_gigapixel.py; the least power of two above 30,000), stores a made-up
attention value for each of its 16,384 patches (8 heads) as `predict` does, and starts the command on it as a
user would. Then, one after the other: Chromium opens the page, five times, each time without a cache of its
own; eight connections ask for 800 distinct tiles, half slide, half heat, all levels alike (cold), and for the
same ones again (warm); other tiles go by until there were 5,000. A tile's time is from the request's first
byte to the answer's last, as its connection saw it; client and server share the machine.
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks import chromium  # noqa: E402
from benchmarks.made_up_result import SLIDE_ID  # noqa: E402
from benchmarks.steps import with_root  # noqa: E402
from wsi_ips.config import TaskConfig  # noqa: E402
from wsi_ips.inference.predictions import PredictionRow, write_predictions  # noqa: E402
from wsi_ips.inference.results import read_result  # noqa: E402
from wsi_ips.inference.run_folder import RunFolder  # noqa: E402

SIDE_PX, HEADS = 32_768, 8
CONNECTIONS, TILES, UNTIL = 8, 800, 5000
OPENINGS = 5


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        slide = arguments.slide or draw(Path(folder) / "slide.tif", arguments.side)
        run = Path(folder) / "predictions"
        store(slide, run)
        with served(run) as (address, process, ready_s):
            figures: dict[str, float] = {"ready_s": ready_s}
            if not arguments.no_browser:
                figures |= opened(address)
            figures |= tiles(address, np.random.default_rng(0), arguments)
            figures["rss_mb"] = rss_mb(process.pid)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="instead of drawing one")
    parser.add_argument(
        "--side", type=int, default=SIDE_PX, help="of the slide that is drawn, a power of two"
    )
    parser.add_argument("--tiles", type=int, default=TILES, help="distinct ones, cold and then warm")
    parser.add_argument("--until", type=int, default=UNTIL, help="requests before the memory is read")
    parser.add_argument("--no-browser", action="store_true", help="tiles and memory only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.slide is not None and not arguments.slide.is_file():
        parser.error(f"{arguments.slide}: no such file")
    if not arguments.no_browser and chromium.installed() is None:
        parser.error("chromium is not installed; give --no-browser to measure tiles only")
    return arguments


def draw(path: Path, side_px: int) -> Path:
    """In a process of its own, so that the memory it takes is given back."""
    script = Path(__file__).with_name("make_gigapixel.py")
    command = [sys.executable, str(script), str(path), "--side", str(side_px)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=with_root())
    return path


def store(slide: Path, run: Path) -> None:
    """A run with one random value for every cell of the grid, head by head."""
    folder = RunFolder(run)
    path = folder.attention(SLIDE_ID)
    script = Path(__file__).with_name("made_up_result.py")
    command = [sys.executable, str(script), str(slide), str(path), f"--heads={HEADS}", "--kept=64"]
    subprocess.run(command, check=True)
    task = TaskConfig()
    write_predictions(folder.predictions, [PredictionRow.done(read_result(path))], tasks=[task])
    folder.description.write_text(json.dumps({"config": {"model": {"tasks": [task.model_dump()]}}}))


@contextmanager
def served(run: Path) -> Iterator[tuple[str, "subprocess.Popen[str]", float]]:
    """(address, process, seconds from its start to its first line) of the command."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "wsi_ips.cli", "view", str(run), "--port", "0", "--no-token"]
    environment = {**with_root(), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "wsi-ips view did not start"
        yield found[0].rstrip("/"), process, time.perf_counter() - started
    finally:
        process.kill()
        process.communicate()


def opened(address: str) -> dict[str, float]:
    """Seconds from opening the page until the whole slide is painted in it."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.installed(), args=list(chromium.QUIET))
        for _ in range(OPENINGS):
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(address)
            # Not wait_for_function: the page's policy forbids it to evaluate text.
            painted = "performance.getEntriesByName('wsi-ips-first-picture').map(entry => entry.startTime)"
            while not (found := page.evaluate(painted)):
                page.wait_for_timeout(50)
            seconds.append(found[0] / 1000)
            page.context.close()
        browser.close()
    return {
        "first_picture_s": seconds[0],  # of a server that has shown nothing yet
        "first_picture_again_s": float(np.median(seconds[1:])),
    }


def tiles(address: str, rng: np.random.Generator, arguments: argparse.Namespace) -> dict[str, float]:
    """Times of a tile in ms, and how many there were."""
    every = {layer: shuffled(address, layer, rng) for layer in ("slide", "heat")}
    half = arguments.tiles // 2
    first = [tile for pair in zip(every["slide"][:half], every["heat"][:half]) for tile in pair]
    figures: dict[str, float] = {}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        ask = Asking(address)
        cold, warm = (list(pool.map(ask, first)) for _ in range(2))
        for name, times in (("cold", cold), ("warm", warm)):
            figures[f"tile_ms_median_{name}"] = float(np.median(times))
            figures[f"tile_ms_p95_{name}"] = float(np.percentile(times, 95))
        for place, layer in enumerate(every):
            figures[f"{layer}_ms_p95_cold"] = float(np.percentile(cold[place::2], 95))
        others = every["slide"][half:] + every["heat"][half:]
        rest = rng.choice(others, max(0, arguments.until - 2 * len(first)))
        started = time.perf_counter()
        asked = len(list(pool.map(ask, rest.tolist())))
        figures["tiles_per_s"] = asked / (time.perf_counter() - started) if asked else 0.0
        figures["tiles"] = 2 * len(first) + asked
    return figures


def shuffled(address: str, layer: str, rng: np.random.Generator) -> list[str]:
    """Every tile of a layer by its path; each level as early as the others, as long as it has tiles left."""
    with_connection = Asking(address)
    about = json.loads(with_connection.read("/api/runs/0/slides/benchmark"))
    (width, height), tile_px = about["l0_size"], about["tile_px"]
    kind, top = {"slide": "jpg", "heat": "png"}[layer], (max(width, height) - 1).bit_length()
    placed: list[tuple[float, str]] = []
    for level in range(top + 1):
        scale = 2 ** (top - level) * tile_px
        names = [
            f"/runs/0/slides/benchmark/{layer}/{level}/{col}_{row}.{kind}"
            for row in range(-(-height // scale))
            for col in range(-(-width // scale))
        ]
        placed += [(place + rng.random(), str(name)) for place, name in enumerate(rng.permutation(names))]
    return [name for _, name in sorted(placed)]


class Asking:
    """Asks for a path on this thread's own connection; says how long it took, in ms."""

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).netloc
        self._of_thread = local()

    def read(self, path: str) -> bytes:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = http.client.HTTPConnection(self._host, timeout=60)
        self._of_thread.connection.request("GET", path)
        answer = self._of_thread.connection.getresponse()
        body: bytes = answer.read()
        assert answer.status == 200, f"{path}: {answer.status}"
        return body

    def __call__(self, path: str) -> float:
        started = time.perf_counter()
        self.read(path)
        return (time.perf_counter() - started) * 1000


def rss_mb(pid: int) -> float:
    """Resident memory of a process now, in MB (2^20 bytes); Linux."""
    (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) / 1024


if __name__ == "__main__":
    main()
