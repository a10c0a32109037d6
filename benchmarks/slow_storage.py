"""What ``streaming.disk_cache`` gains where slides lie on slow storage.

    python benchmarks/slow_storage.py [--json] [--side 4096] [--ms 5] [--mb 50] [--threads 2] [--repeats 3]
        [--work FOLDER]

A slide is drawn on the local disk, and slow storage is imitated: every read of its stored tiles waits ``--ms``
milliseconds, and then takes as long as ``--mb`` MB/s take, one read at a time. Passes over all tissue patches are
timed in turn: from the local disk, from slow storage, from slow storage while the cache is filled, and through
the filled cache. Opening and the cache's own look at the file are part of each pass. Each figure is the median
over the rounds, in patches/s; ``cached_over_local`` and ``cached_over_slow`` compare passes of one round.
``cached_slow_mb`` is what a pass through the filled cache still reads from slow storage, ``slow_mb`` what a pass
without the cache reads.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from unittest import mock

from benchmarks.make_gigapixel import make_gigapixel
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.config.slides import DiskCacheConfig
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tile_layout import TileFile
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.units import Mpp

BLOCK = 2
"""Tiles along a side of each kind of drawn tissue."""


class Slow:
    """Counts and delays what is read from a slide itself."""

    def __init__(self, *, ms: float, mb: float) -> None:
        self.read_bytes = 0
        self._wait_s, self._bytes_per_s = ms / 1e3, mb * 1e6
        self._line = Lock()

    @contextmanager
    def storage(self) -> Iterator[None]:
        """Slides are slow within the block."""
        itself = TileFile._read_itself

        def slowly(file: TileFile, offset: int, count: int) -> bytes:
            data = itself(file, offset, count)
            time.sleep(self._wait_s)
            with self._line:
                time.sleep(len(data) / self._bytes_per_s)
                self.read_bytes += len(data)
            return data

        with mock.patch.object(TileFile, "_read_itself", slowly):
            yield


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", type=int, default=4096, help="pixels along a side of the slide")
    parser.add_argument("--ms", type=float, default=5.0, help="milliseconds that each read waits")
    parser.add_argument("--mb", type=float, default=50.0, help="MB/s of the slow storage")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the slide and the cache")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = measure(
            work,
            side=arguments.side,
            ms=arguments.ms,
            mb=arguments.mb,
            threads=arguments.threads,
            repeats=arguments.repeats,
        )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value:10.3f}")


def measure(
    work: Path, *, side: int, ms: float, mb: float, threads: int = 2, repeats: int = 3
) -> dict[str, float]:
    """The figures of the module's docstring."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"slide_{side}.tif"
    if not path.exists():
        make_gigapixel(path, side_px=side, block=BLOCK)
    with open_slide(path) as slide:
        coords = tile_slide(
            slide, TilingConfig(patch_px=256, patch_mpp=0.25), slide_id="slide", mpp=Mpp(0.25)
        )[0]
    plain = StreamingConfig(threads=threads)
    cache = DiskCacheConfig(folder=work / "cache", gb=2)
    through = plain.model_copy(update={"disk_cache": cache})
    rounds: dict[str, list[float]] = {name: [] for name in ("local", "slow", "filling", "cached")}
    read = {}
    for _ in range(repeats):
        shutil.rmtree(cache.folder, ignore_errors=True)
        rounds["local"].append(passed(path, coords, plain))
        for name, streaming in (("slow", plain), ("filling", through), ("cached", through)):
            slow = Slow(ms=ms, mb=mb)
            with slow.storage():
                rounds[name].append(passed(path, coords, streaming))
            read[name] = slow.read_bytes / 1e6
    shutil.rmtree(cache.folder, ignore_errors=True)
    pairs = list(zip(rounds["cached"], rounds["local"], rounds["slow"], strict=True))
    return {
        "cached_over_local": statistics.median(cached / local for cached, local, _ in pairs),
        "cached_over_slow": statistics.median(cached / slow_ for cached, _, slow_ in pairs),
        **{f"{name}_per_s": statistics.median(rates) for name, rates in rounds.items()},
        "slow_mb": read["slow"],
        "cached_slow_mb": read["cached"],
        "patches": float(len(coords)),
    }


def passed(path: Path, coords: PatchCoords, streaming: StreamingConfig) -> float:
    """Patches per second of one pass, opening included."""
    started = time.perf_counter()
    with open_slide(path) as slide:
        for _ in PatchStream(slide, coords, config=streaming):
            pass
    return len(coords) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
