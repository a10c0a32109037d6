"""How fast patches are streamed out of each scanner's container, against the decoder alone and OpenSlide.

    python benchmarks/containers.py [--json] [--repeats 5] [--only philips ndpi ...] [--side 16384] [--quick]

The same drawn slide is written as Philips TIFF, DICOM (JPEG), OME-TIFF, Leica SCN, NDPI, Aperio SVS (JPEG 2000)
and plain TIFF. Before anything is timed, OpenSlide's pixels and ours are compared with the tiles that were
written, at random places and at the bottom right corner; a container that differs ends the run. Read are patches
on tissue, as tiling finds them.

Each way uses two threads, and the ways take turns (A B C A B C ...): a ratio compares runs of the same round, so
it holds when the machine's speed drifts, and each figure is the median over the rounds. Ours is ``PatchStream``
over what ``open_slide`` gives. The limit is the decoder (simplejpeg; imagecodecs for JPEG 2000) on the stored
tiles under the patches, each once, out of memory. OpenSlide's ``read_region`` into RGB arrays has one handle.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.container_cases import CONTAINERS, Case, DrawnSlide  # noqa: E402
from benchmarks.stream import THREADS, by_two_threads  # noqa: E402
from wsi_ips.config import StreamingConfig  # noqa: E402
from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError  # noqa: E402
from wsi_ips.slides.base import (  # noqa: E402
    WHITE,
    RgbImage,
    SlideReader,
)
from wsi_ips.slides.registry import open_slide  # noqa: E402
from wsi_ips.streaming.stream import PatchStream  # noqa: E402

Figures = dict[str, float | str]

ROUND_S = 0.25
"""How long each way works in a round, at least, unless that takes more than ``MOST_PASSES``."""
MOST_PASSES = 20
CHUNKS, SMALLEST_CHUNK = 64, 4
"""A modest slide is streamed in about so many chunks, of at least so many patches. In the chunks of a whole slide,
two threads would have uneven shares of it, and a quarter of its patches would be decoded into fresh memory."""
OPENSLIDE_CACHE_BYTES = 32 << 20
"""OpenSlide's default."""
PLACES = 16
FIX_WRITER = "correct the code that writes this container, in benchmarks/container_files.py"
CHECKED_PX = 300
RESAMPLED_ERROR = 0.3
"""How far a resampled patch's pixels may lie, in the mean, from the means of the areas they cover; grey levels."""


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            figures = measure_containers(
                folder,
                arguments.only,
                side_px=arguments.side,
                block=arguments.block,
                repeats=arguments.repeats,
            )
    except (WsiIpsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:36} {value:>22}" if isinstance(value, str) else f"{name:36} {value:22.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(CONTAINERS), default=list(CONTAINERS), metavar="NAME",
                        help=f"some of {', '.join(CONTAINERS)}")  # fmt: skip
    parser.add_argument("--side", type=int, default=16_384, help="pixels, a power of two from 4096 to 65536")
    parser.add_argument("--folder", type=Path, help="keep the files here; default: a temporary folder")
    parser.add_argument("--quick", action="store_true", help="a tiny slide, one round: does it run?")
    arguments = parser.parse_args()
    arguments.block, arguments.round_s = 8, ROUND_S
    if arguments.quick:
        arguments.side, arguments.repeats, arguments.block, arguments.round_s = 4096, 1, 2, 0.0
    return arguments


def measure_containers(
    folder: Path, names: Sequence[str], *, side_px: int, block: int, repeats: int, round_s: float = ROUND_S
) -> Figures:
    """Write, check and time these containers, one after the other.

    Raises :class:`ConfigError` for a side that cannot be, :class:`ResultsError` for a container that exists
    already, or that is not read as it was written.
    """
    if not 4096 <= side_px <= 65536 or side_px & (side_px - 1):
        raise ConfigError(f"--side {side_px} is not a power of two from 4096 to 65536; try 16384")
    if any(folder.iterdir()):
        raise ResultsError(folder, "is not empty", "name a new folder")
    figures: Figures = {}
    with ThreadPoolExecutor(THREADS) as pool:
        drawn = DrawnSlide(side_px, block=block, pool=pool)
        for name in names:
            for case in CONTAINERS[name](drawn, folder):
                with open_slide(case.path) as ours, openslide.OpenSlide(case.openslide_path) as theirs:
                    check_openslide(case, theirs)
                    check_ours(case, ours)
                    figures |= measure(case, ours, theirs, repeats=repeats, round_s=round_s)
    return figures


def check_openslide(case: Case, theirs: openslide.OpenSlide) -> None:
    """Raises :class:`ResultsError` where OpenSlide does not show the stored tiles in their places."""
    vendor, size = theirs.properties["openslide.vendor"], theirs.dimensions
    if (vendor, size) != (case.vendor, case.l0_size):
        raise ResultsError(case.path, f"OpenSlide opens it as a slide of {vendor}, {size} px", FIX_WRITER)
    level = theirs.get_best_level_for_downsample(case.downsample)
    if theirs.level_downsamples[level] != case.downsample:
        raise ResultsError(
            case.path, f"OpenSlide finds no level with downsample {case.downsample}", FIX_WRITER
        )
    size_px = CHECKED_PX, CHECKED_PX
    for lv_x, lv_y in places(case):
        l0_xy = lv_x * case.downsample, lv_y * case.downsample
        rgba = np.asarray(theirs.read_region(l0_xy, level, size_px))
        seen = np.where(rgba[..., 3:] == 0, np.uint8(WHITE), rgba[..., :3])
        refuse_unequal(case, "OpenSlide", seen, case.pixels((lv_x, lv_y), size_px), l0_xy)


def places(case: Case) -> list[tuple[int, int]]:
    """Corners of regions of the level: at random on it and on what was scanned, and at its bottom right end."""
    rng = np.random.default_rng(0)
    width, height = case.lv_size
    corners = [(width - CHECKED_PX // 2, height - CHECKED_PX // 2)]
    for placed in case.placed:
        (x, y), (across, down) = placed.lv_xy, placed.stored.size
        corners.append((min(width, x + across) - CHECKED_PX // 2, min(height, y + down) - CHECKED_PX // 2))
        corners += [(int(x + rng.integers(across)), int(y + rng.integers(down))) for _ in range(PLACES)]
    return corners


def check_ours(case: Case, ours: SlideReader) -> None:
    """Raises :class:`ResultsError` where the patches that are timed are not made of the stored tiles."""
    info = ours.info
    if info.l0_size != case.l0_size or info.mpp is None or abs(info.mpp / case.mpp - 1) > 1e-3:
        raise ResultsError(
            case.path,
            f"our reader {info.reader} states {info.l0_size} px at {info.mpp} µm, but {case.l0_size} px at "
            f"{case.mpp} µm were written",
            "correct the reader in wsi_ips/slides",
        )
    rng, n = np.random.default_rng(0), len(case.coords)
    ids_n = case.coords.ids_N[np.union1d(rng.integers(0, n, PLACES), [n - 1])]
    for chunk in PatchStream(ours, case.coords, config=streaming(case)):
        of_chunk = np.isin(chunk.ids_n.numpy(), ids_n)
        corners = chunk.l0_xy_n2.numpy()[of_chunk].tolist()
        seen_n = chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy()[of_chunk]
        for (l0_x, l0_y), seen in zip(corners, seen_n, strict=True):
            refuse_unequal(case, info.reader, seen, expected_patch(case, l0_x, l0_y), (l0_x, l0_y))


def expected_patch(case: Case, l0_x: int, l0_y: int) -> RgbImage:
    """A patch out of the stored tiles; where no level fits, each pixel is the mean of the area that it covers."""
    x, y, side = l0_x / case.downsample, l0_y / case.downsample, case.coords.l0_patch / case.downsample
    patch_px = case.coords.patch_px
    if side == patch_px:
        return case.pixels((int(x), int(y)), (patch_px, patch_px))
    length = ceil(side) + 2
    region = case.pixels((int(x), int(y)), (length, length)).astype(np.float64)
    down, across = (shares(begin % 1, side / patch_px, (patch_px, length)) for begin in (y, x))
    return np.rint(np.einsum("pi,qj,ijc->pqc", down, across, region, optimize=True)).astype(np.uint8)


def shares(begin: float, step: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(n, length): the share of each of ``length`` pixels in each of n stretches of ``step`` from ``begin`` on."""
    edges_n = begin + step * np.arange(shape[0] + 1)
    pixels = np.arange(shape[1])
    ends, begins = edges_n[1:, None], edges_n[:-1, None]
    return (np.minimum(ends, pixels + 1) - np.maximum(begins, pixels)).clip(0) / step


def refuse_unequal(
    case: Case, reader: str, seen: RgbImage, expected: RgbImage, l0_xy: tuple[int, int]
) -> None:
    difference = np.abs(seen.astype(np.int16) - expected)
    is_exact = case.coords.l0_patch / case.downsample == case.coords.patch_px or reader == "OpenSlide"
    if difference.max() > 0 if is_exact else difference.mean() > RESAMPLED_ERROR:
        raise ResultsError(
            case.path,
            f"{reader} differs at level-0 position {l0_xy} by {difference.mean():.2f} grey levels in the mean, "
            f"{difference.max()} at most, from the tiles that were written",
            "correct its writer (benchmarks/container_files.py) or our reader (wsi_ips/slides); it was not timed",
        )


def streaming(case: Case) -> StreamingConfig:
    return StreamingConfig(threads=THREADS, batch=share_of(len(case.coords)))


def share_of(n: int) -> int:
    """How many of ``n`` patches or tiles a thread is handed at a time."""
    return min(StreamingConfig().batch, max(SMALLEST_CHUNK, n // CHUNKS))


def measure(
    case: Case, ours: SlideReader, theirs: openslide.OpenSlide, *, repeats: int, round_s: float
) -> Figures:
    """Patches per second of the three ways in turn, and the ratios of ours within the same round."""
    tiles, config = case.tiles_under_patches(), streaming(case)
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: stream(case, ours, config),
        "limit": lambda: decode_all(case, tiles),
        "openslide": lambda: read_openslide(case, theirs),
    }
    # The first round warms the page cache, and says how long the ways take.
    passes = {name: max(1, ceil(min(MOST_PASSES, round_s / seconds(way)))) for name, way in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            rates[name].append(len(case.coords) * passes[name] / seconds(way, passes[name]))
    rate = {name: np.array(measured) for name, measured in rates.items()}
    info = ours.info
    return {
        f"{case.name}_reader": f"{info.reader} ({info.vendor}), {len(info.levels)} levels",
        f"{case.name}_vs_limit": float(np.median(rate["ours"] / rate["limit"])),
        f"{case.name}_vs_openslide": float(np.median(rate["ours"] / rate["openslide"])),
        f"{case.name}_patches_per_s": float(np.median(rate["ours"])),
        f"{case.name}_limit_patches_per_s": float(np.median(rate["limit"])),
        f"{case.name}_openslide_patches_per_s": float(np.median(rate["openslide"])),
    }


def seconds(way: Callable[[], None], passes: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(passes):
        way()
    return time.perf_counter() - started


def stream(case: Case, ours: SlideReader, config: StreamingConfig) -> None:
    """As prediction streams."""
    for _ in PatchStream(ours, case.coords, config=config):
        pass


def decode_all(case: Case, tiles: list[bytes]) -> None:
    """Two threads, each tile into memory of its own."""

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            case.decode(tiles[number])

    by_two_threads(work, len(tiles), share=share_of(len(tiles)))


def read_openslide(case: Case, theirs: openslide.OpenSlide) -> None:
    """Regions of the level that serves best, to RGB arrays; resized by Pillow where it is not the patch's size."""
    corners, patch_px = case.coords.l0_xy_N2.tolist(), case.coords.patch_px
    level = theirs.get_best_level_for_downsample(case.coords.l0_patch / patch_px)
    side = round(case.coords.l0_patch / theirs.level_downsamples[level])
    theirs.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE_BYTES))  # nothing is left of the last pass

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            region = theirs.read_region(corners[number], level, (side, side)).convert("RGB")
            np.asarray(region if side == patch_px else region.resize((patch_px, patch_px)))

    by_two_threads(work, len(corners), share=share_of(len(corners)))


if __name__ == "__main__":
    main()
