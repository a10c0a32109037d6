"""Writes a drawn slide of 131,072 x 131,072 px (17.2 gigapixels), for benchmarks of speed and memory.

    python benchmarks/make_gigapixel.py OUT.tif [--container tiff|philips] [--side 131072] [--seed 0] [--force]

``tiff``: a plain pyramidal JPEG BigTIFF, 256-px tiles of YCbCr 4:2:0 at quality 80, levels that halve, 0.25 µm
per pixel. ``philips``: the same drawn pixels as CAMELYON's slides have theirs, in a Philips TIFF: 512-px tiles,
0.243 µm per pixel, no tiles where there is only glass, levels that halve down to one tile and are padded to whole
tiles. Only distinct tiles are drawn and encoded; their bytes are written as often as they occur. A tile of a
lower level is made from the four below it, so every level shows the same slide. The same seed gives the same
bytes.
"""

import argparse
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.container_files import StoredLevel, jpeg_420, write_philips, write_tiff  # noqa: E402
from benchmarks.drawn_slide import MPP, Mosaic, draw_library, draw_slide  # noqa: E402
from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError  # noqa: E402
from wsi_ips.slides.base import RgbImage  # noqa: E402
from wsi_ips.storage.files import whole_file  # noqa: E402
from wsi_ips.units import Mpp  # noqa: E402

CONTAINERS = ("tiff", "philips")
PHILIPS_MPP = Mpp(0.243)
PHILIPS_TILE_PX = 512
SMALLEST_SIDE_PX = 512
"""The plain file's last level is at least this large."""


def main() -> None:
    """Write the file, and say how long it took and how large it and the process became."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--container", choices=CONTAINERS, default="tiff", help="what kind of file")
    parser.add_argument(
        "--side", type=int, default=131_072, help="pixels: a power of two from 1024, or (philips) times 512"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="replace OUT")
    arguments = parser.parse_args()
    started = time.perf_counter()
    try:
        make_gigapixel(
            arguments.out,
            side_px=arguments.side,
            container=arguments.container,
            seed=arguments.seed,
            threads=arguments.threads,
            force=arguments.force,
        )
    except (WsiIpsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    seconds = time.perf_counter() - started
    megabytes = arguments.out.stat().st_size / 1e6
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.out}: {megabytes:.0f} MB in {seconds:.0f} s, {peak_mb:.0f} MB of memory at most")


def make_gigapixel(
    out: Path,
    *,
    side_px: int,
    container: str = "tiff",
    seed: int = 0,
    block: int = 8,
    threads: int = 2,
    force: bool = False,
) -> None:
    """Draw and write the slide. ``block``: tiles along a side of each kind's torus, a power of two.

    Raises :class:`ConfigError` for a side that cannot be, :class:`ResultsError` where ``out`` exists and
    ``force`` is not given, or where the disk is too small.
    """
    check_side(side_px, container)
    if out.exists() and not force:
        raise ResultsError(out, "exists", "give --force to replace it")
    mosaic = draw_slide(side_px, draw_library(block, seed=seed), block=block, seed=seed)
    with ThreadPoolExecutor(threads) as pool:
        if container == "philips":
            count = philips_level_count(side_px)
            levels = philips_levels(mosaic, count, pool=pool)
        else:
            levels = stored_levels(mosaic, plain_level_count(side_px), encode=jpeg_420, pool=pool)
        finest = next(levels)
        check_disk(out, finest.stored_bytes)
        with whole_file(out) as partial:
            if container == "philips":
                write_philips(partial, chain([finest], levels), count=count, mpp=PHILIPS_MPP)
            else:
                write_tiff(partial, chain([finest], levels), mpp=MPP)


def check_side(side_px: int, container: str) -> None:
    """Raises :class:`ConfigError` for a side that the container cannot have."""
    if container == "philips":
        if side_px < 1024 or side_px % PHILIPS_TILE_PX:
            raise ConfigError(f"--side {side_px} is not a multiple of 512 from 1024 on; try 8192 or 97792")
    elif side_px < 1024 or side_px & (side_px - 1):
        raise ConfigError(f"--side {side_px} is not a power of two from 1024 on; try 8192 or 131072")


def check_disk(out: Path, level_0_bytes: int) -> None:
    """Raises :class:`ResultsError` where the whole pyramid will not fit."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # The other levels have a third of its tiles, and finer detail per pixel in each.
    needed, free = int(1.6 * level_0_bytes), shutil.disk_usage(out.parent).free
    if free < needed:
        raise ResultsError(
            out,
            f"needs about {needed / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB free",
            "free some, name another disk or give a smaller --side",
        )


def plain_level_count(side_px: int) -> int:
    """How many levels halve ``side_px``, the last of them from 512 px on."""
    return (side_px // SMALLEST_SIDE_PX).bit_length()


def philips_level_count(side_px: int) -> int:
    """How many levels halve ``side_px`` until one is smaller than a tile."""
    return (side_px // PHILIPS_TILE_PX).bit_length() + 1


def philips_levels(mosaic: Mosaic, count: int, *, pool: ThreadPoolExecutor) -> Iterator[StoredLevel]:
    """The levels of a Philips TIFF: 512-px tiles, none of them where the slide shows only glass."""
    return stored_levels(mosaic.in_larger_tiles(), count, encode=jpeg_420, pool=pool, sparse=True)


def stored_levels(
    mosaic: Mosaic,
    count: int,
    *,
    encode: Callable[[RgbImage], bytes],
    pool: ThreadPoolExecutor,
    sparse: bool = False,
) -> Iterator[StoredLevel]:
    """``count`` levels that halve, one at a time, each in whole tiles of the mosaic's size.

    sparse: a tile that shows only glass is not stored.
    """
    for number in range(count):
        stored, halves = encoded_level(mosaic, encode=encode, pool=pool, sparse=sparse)
        yield stored
        if number + 1 < count:
            mosaic = halves.in_larger_tiles()


def encoded_level(
    mosaic: Mosaic, *, encode: Callable[[RgbImage], bytes], pool: ThreadPoolExecutor, sparse: bool
) -> tuple[StoredLevel, Mosaic]:
    """Draw and encode the distinct tiles in the pool's threads; also the picture at half its size."""
    count, half_px = len(mosaic.glass), mosaic.tile_px // 2
    halves = np.empty((count, half_px, half_px, 3), np.uint8)

    def work(number: int) -> bytes:
        pixels = mosaic.tile(number)
        halves[number] = np.asarray(Image.fromarray(pixels).reduce(2))
        return b"" if sparse and mosaic.glass[number] else encode(pixels)

    encoded = list(pool.map(work, range(count)))
    tiles = [encoded[number] for number in mosaic.g_tiles.ravel().tolist()]
    stored = StoredLevel(mosaic.g_tiles.shape[1], (mosaic.tile_px, mosaic.tile_px), tiles)
    return stored, Mosaic(mosaic.g_tiles, halves.__getitem__, mosaic.glass, half_px)


if __name__ == "__main__":
    main()
