"""How fast patches are streamed from Hamamatsu NDPI, against the JPEG decoder and against OpenSlide.

    python benchmarks/ndpi.py SLIDE.ndpi [--json] [--repeats 5] [--megapixels 64] [--patch 256]

Read is a band of whole rows of stacks from the slide's top, of about so many megapixels, as a grid of patches.
Every way uses two threads, and the ways take turns: a ratio compares runs of the same round, and each figure is
the median over the rounds. The limit is simplejpeg on the same stacks out of memory by two threads.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openslide
import simplejpeg

from benchmarks.stream import THREADS, by_two_threads
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.slides.tiff_reader import TiffReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megapixels", type=int, default=64)
    parser.add_argument("--patch", type=int, default=256, help="side of a patch in pixels of level 0")
    arguments = parser.parse_args()
    figures = measure(
        arguments.slide,
        repeats=arguments.repeats,
        megapixels=arguments.megapixels,
        patch_px=arguments.patch,
    )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:10.2f}")


def measure(path: Path, *, repeats: int, megapixels: int, patch_px: int) -> dict[str, float]:
    """Every figure; rates in megapixels of the band per second."""
    started = time.perf_counter()
    slide = TiffReader(path)
    opened_s = time.perf_counter() - started
    layout = slide.tile_layout(0)
    width, row_px = layout.level_size[0], layout.tile_size[1]
    rows = max(1, min(layout.level_size[1] // row_px, megapixels * 1_000_000 // (width * row_px)))
    band = (width, rows * row_px)
    jpegs = stacks(slide, rows * layout.cols)
    coords = patches(slide, band, patch_px)
    theirs = openslide.OpenSlide(path)
    ways: dict[str, Callable[[], None]] = {
        "limit": lambda: decode_all(jpegs),
        "ndpi": lambda: read_stream(slide, coords),
        "openslide": lambda: read_openslide(theirs, coords),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_number:  # the first round warms the page cache
                seconds[name].append(time.perf_counter() - started)
    rates = {name: band[0] * band[1] / 1e6 / np.array(times) for name, times in seconds.items()}
    figures = {f"{name}_mp_per_s": float(statistics.median(rate)) for name, rate in rates.items()}
    for other in ("limit", "openslide"):
        figures[f"ndpi_vs_{other}"] = float(np.median(rates["ndpi"] / rates[other]))
    return figures | {"opened_ms": opened_s * 1000}


def stacks(slide: TiffReader, n: int) -> list[bytes]:
    """The first ``n`` stacks of level 0 as JPEG files that decode alone."""
    stored = slide.fetch_tiles(0, range(n))
    return [slide.tile_jpeg(0, number, data) or b"" for number, data in enumerate(stored)]


def patches(slide: TiffReader, band: tuple[int, int], patch_px: int) -> PatchCoords:
    """A grid of patches over the slide's topmost pixels, ``band`` (width, height)."""
    mpp = slide.info.mpp or Mpp(0.25)
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=mpp)
    grid = PatchGrid.cover(band, slide_mpp=mpp, tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)
    return PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id="band",
        l0_size=slide.info.l0_size,
        slide_mpp=mpp,
        tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )


def decode_all(jpegs: list[bytes]) -> None:
    """Two threads, each stack into memory of its own."""

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            simplejpeg.decode_jpeg(jpegs[number], "RGB")

    by_two_threads(work, len(jpegs))


def read_stream(slide: TiffReader, coords: PatchCoords) -> None:
    """As prediction streams."""
    for _ in PatchStream(slide, coords, config=StreamingConfig(threads=THREADS)):
        pass


def read_openslide(slide: openslide.OpenSlide, coords: PatchCoords) -> None:
    """``read_region`` into RGB arrays, by two threads on one handle."""
    corners, side = coords.l0_xy_N2.tolist(), coords.patch_px

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            x, y = corners[number]
            np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))

    by_two_threads(work, len(corners))


if __name__ == "__main__":
    main()
