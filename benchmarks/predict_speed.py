"""How fast patches are read, and a slide predicted: medians of interleaved repeats in one run, as ratios.

    python benchmarks/predict_speed.py [--json] [--repeats 5]

Draws one slide, then in turn (A B C A B C ...) reads all its aligned 256-px patches through the native tile
reader, through OpenSlide, and streams them through PatchStream with two threads. A ratio compares runs of
the same round, so it holds when the machine's speed drifts.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsi_ips.config import StreamingConfig, SyntheticConfig, TilingConfig
from wsi_ips.datasets.synthetic import make_camelyon_like
from wsi_ips.slides.folder import find_slides
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.tile import tile_slide


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = SyntheticConfig(train=1, val=1, test=1, side_px=8192)
        make_camelyon_like(Path(folder), config)
        figures = measure(find_slides(Path(folder))[0], repeats=arguments.repeats)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.2f}")


def measure(path: Path, *, repeats: int) -> dict[str, float]:
    """Patches per second of each way, and the ratios to OpenSlide."""
    with open_slide(path) as slide:
        coords, _ = tile_slide(slide, TilingConfig(patch_px=256, patch_mpp=0.5), slide_id="drawn")
    ways: dict[str, Callable[[], None]] = {
        "openslide": lambda: read_all(path, coords, "openslide"),
        "native": lambda: read_all(path, coords, "tiff"),
        "stream_openslide": lambda: stream_all(path, coords, "openslide"),
        "stream_native": lambda: stream_all(path, coords, "tiff"),
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    figures = {f"{name}_per_s": len(coords) / statistics.median(times) for name, times in seconds.items()}
    figures["native_vs_openslide"] = ratio(seconds["openslide"], seconds["native"])
    figures["stream_vs_openslide"] = ratio(seconds["stream_openslide"], seconds["stream_native"])
    return figures


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of how many times faster ``fast`` is."""
    return float(np.median(np.array(slow) / np.array(fast)))


def read_all(path: Path, coords: PatchCoords, reader: str) -> None:
    """One thread, patch by patch."""
    with open_slide(path, reader=reader) as slide:
        for x, y in coords.l0_xy_N2.tolist():
            slide.read((x, y), level=0, size_px=(coords.patch_px, coords.patch_px))


def stream_all(path: Path, coords: PatchCoords, reader: str) -> None:
    """Two threads, in chunks, as prediction does."""
    with open_slide(path, reader=reader) as slide:
        for _ in PatchStream(slide, coords, config=StreamingConfig(threads=2)):
            pass


if __name__ == "__main__":
    main()
