"""How fast patches are streamed, against what the JPEG decoder gives and against other readers.

    python benchmarks/stream.py SLIDE.tif [--json] [--repeats 7] [--window 64] [--batch 64]

The slide is one of benchmarks/make_gigapixel.py, or any TIFF of 256-px JPEG tiles; read is a window of tiles
in its middle. Every way uses two threads, and the ways take turns (A B C A B C ...): a ratio compares runs of
the same round, so it holds when the machine's speed drifts, and each figure is the median over the rounds.

The limit is simplejpeg on the same tiles out of memory by two threads: no file, no cutting, nothing kept.
``*_vs_bare_limit`` compares with the same decoder writing into memory that is used again, which spares the
system's clearing of fresh pages. Tiles are counted once each, however often they were decoded.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
from numpy.typing import NDArray

from wsi_ips.config import StreamingConfig
from wsi_ips.slides.base import SlideInfo
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

THREADS = 2
TILE_PX = 256
OFFSET = (100, 37)


@dataclass(frozen=True)
class Patches:
    """A square grid of patches; ``tiles``: how many stored tiles lie under them."""

    coords: PatchCoords
    tiles: int

    @property
    def l0_corners(self) -> list[tuple[int, int]]:
        return [(x, y) for x, y in self.coords.l0_xy_N2.tolist()]


class FinestLevel(TiffReader):
    """The slide as if its file held no smaller levels, so that a coarser patch has to be resampled."""

    @property
    def info(self) -> SlideInfo:
        return replace(super().info, levels=super().info.levels[:1])


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--window", type=int, default=64, help="tiles along each side of what is read")
    parser.add_argument(
        "--batch", type=int, default=StreamingConfig().batch, help="patches per chunk of ours"
    )
    arguments = parser.parse_args()
    figures = measure(
        arguments.slide, repeats=arguments.repeats, window=arguments.window, batch=arguments.batch
    )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:10.2f}")


def measure(path: Path, *, repeats: int, window: int, batch: int) -> dict[str, float]:
    """Every figure; rates in patches or tiles per second."""
    config = StreamingConfig(threads=THREADS, batch=batch)
    aligned = patches(path, window, patch_px=256, zoom=1)
    unaligned = patches(path, window - 1, patch_px=256, zoom=1, offset=OFFSET)
    resampled = patches(path, int((window - 1) * TILE_PX / 448), patch_px=224, zoom=2)
    jpegs = stored_jpegs(path, aligned)
    # Opening a file lists its tiles, once a slide; what is compared here is reading.
    slide, finest, theirs = TiffReader(path), FinestLevel(path), openslide.OpenSlide(path)
    ways: dict[str, Callable[[], None]] = {
        "limit": lambda: decode_all(jpegs),
        "bare_limit": lambda: decode_all_in_place(jpegs),
        "aligned": lambda: stream(slide, aligned, config),
        "unaligned": lambda: stream(slide, unaligned, config),
        "resampled": lambda: stream(finest, resampled, config),
        "openslide": lambda: read_openslide(theirs, aligned),
        **fastslide_ways(path, aligned, unaligned),
    }
    tiles = {"limit": len(jpegs), "bare_limit": len(jpegs), "resampled": resampled.tiles}
    tiles |= {name: unaligned.tiles for name in ways if name.startswith("unaligned")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_number:  # the first round warms the page cache
                seconds[name].append(time.perf_counter() - started)
    rates = {
        name: np.array([tiles.get(name, len(aligned.coords)) / s for s in times])
        for name, times in seconds.items()
    }
    figures = {f"{name}_tiles_per_s": float(statistics.median(rate)) for name, rate in rates.items()}
    compared = [("aligned", "limit"), ("aligned", "bare_limit"), ("aligned", "openslide"), ("unaligned", "limit"),
                ("unaligned", "bare_limit"), ("resampled", "limit"), ("resampled", "bare_limit"),
                ("aligned", "fastslide")]  # fmt: skip
    for ours, theirs in compared:
        if theirs in rates:
            figures[f"{ours}_vs_{theirs}"] = float(np.median(rates[ours] / rates[theirs]))
    if "unaligned_fastslide" in rates:
        ratio = rates["unaligned"] / rates["unaligned_fastslide"]
        figures["unaligned_vs_fastslide"] = float(np.median(ratio))
    return figures


def patches(path: Path, side: int, *, patch_px: int, zoom: int, offset: tuple[int, int] = (0, 0)) -> Patches:
    """``side`` x ``side`` patches from a tile's corner near the slide's middle, moved by ``offset``."""
    with TiffReader(path) as slide:
        info = slide.info
    l0_patch = patch_px * zoom
    start = [(length // 2 - side * l0_patch // 2) // TILE_PX * TILE_PX for length in info.l0_size]
    if min(start) < 0:
        raise SystemExit(f"{path}: too small for this window; give a smaller --window")
    rows, cols = np.divmod(np.arange(side * side), side)
    l0_xy_N2 = np.stack([cols, rows], axis=1) * l0_patch + np.array(start) + np.array(offset)
    mpp = info.known_mpp()
    coords = PatchCoords(
        slide_id=path.stem,
        l0_size=info.l0_size,
        slide_mpp=mpp,
        patch_px=patch_px,
        patch_mpp=Mpp(mpp * zoom),
        overlap_px=0,
        l0_patch=float(l0_patch),
        g_size=(side, side),
        ids_N=np.arange(side * side),
        l0_xy_N2=l0_xy_N2.astype(np.int64),
        tissue_N=np.ones(side * side, np.float32),
    )
    first, last = l0_xy_N2[0] // TILE_PX, (l0_xy_N2[-1] + l0_patch - 1) // TILE_PX
    return Patches(coords, int(np.prod(last - first + 1)))


def stored_jpegs(path: Path, aligned: Patches) -> list[bytes]:
    """The tiles under ``aligned`` as JPEG files that decode alone."""
    with TiffReader(path) as slide:
        layout = slide.tile_layout(0)
        corners: NDArray[np.int64] = aligned.coords.l0_xy_N2 // TILE_PX
        numbers = (corners[:, 1] * layout.cols + corners[:, 0]).tolist()
        stored = zip(numbers, slide.fetch_tiles(0, numbers), strict=True)
        return [slide.tile_jpeg(0, number, data) or b"" for number, data in stored]


def by_two_threads(work: Callable[[Sequence[int]], None], n: int, *, share: int = 64) -> None:
    """In shares of 64, as a loader hands out batches."""
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, range(at, min(at + share, n))) for at in range(0, n, share)]:
            done.result()


def decode_all(jpegs: list[bytes]) -> None:
    """Two threads, each tile into memory of its own."""

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            simplejpeg.decode_jpeg(jpegs[number], "RGB")

    by_two_threads(work, len(jpegs))


def decode_all_in_place(jpegs: list[bytes]) -> None:
    """Two threads, each with one buffer."""

    def work(numbers: Sequence[int]) -> None:
        buffer = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        for number in numbers:
            simplejpeg.decode_jpeg(jpegs[number], "RGB", buffer=buffer)

    by_two_threads(work, len(jpegs))


def stream(slide: TiffReader, chosen: Patches, config: StreamingConfig) -> None:
    """As prediction streams."""
    for _ in PatchStream(slide, chosen.coords, config=config):
        pass


def read_openslide(slide: openslide.OpenSlide, chosen: Patches) -> None:
    """``read_region`` into RGB arrays, by two threads on one handle; its cache (32 MB) forgets the last round."""
    corners = chosen.l0_corners

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            np.asarray(slide.read_region(corners[number], 0, (TILE_PX, TILE_PX)).convert("RGB"))

    by_two_threads(work, len(corners))


def fastslide_ways(path: Path, aligned: Patches, unaligned: Patches) -> dict[str, Callable[[], None]]:
    """fastslide on the same patches, where it is installed; with the cache that ours has."""
    try:
        import fastslide
    except ImportError:
        return {}

    slide = fastslide.FastSlide.from_file_path(str(path), cache=StreamingConfig().tile_cache_mb << 20)

    def read(chosen: Patches) -> None:
        corners = chosen.l0_corners
        slide.clear_cache()

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                slide.read_region(corners[number], 0, (TILE_PX, TILE_PX)).numpy()

        by_two_threads(work, len(corners))

    return {"fastslide": lambda: read(aligned), "unaligned_fastslide": lambda: read(unaligned)}


if __name__ == "__main__":
    main()
