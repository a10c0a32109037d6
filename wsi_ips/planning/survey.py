"""What there is to read: slides, patches, tiles and bytes, counted by finding the tissue as a run would.

:func:`survey` looks at all slides, or at a sample of them that is scaled up. :class:`Count` is a number with its
spread; :func:`imagined` is a survey of slides that nobody has yet.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.errors import ConfigError, WsiIpsError, count
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import SlideReader, TiledReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location
from wsi_ips.streaming.region_source import BLOCK, PatchRegion
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.units import Mpp

IMAGINED_TILE_PX = 256
"""Side of the tiles of slides that nobody has yet."""
JPEG_BYTES_PER_PX = 0.2
"""Bytes of a pixel of tissue as scanners store it: 0.1 to 0.3 (quality 70 to 80, 4:2:0), so an estimate."""


@dataclass(frozen=True, slots=True)
class SlideToRead:
    """A slide of the work: its name, where it is, its split, and µm per pixel if the user gives them."""

    slide_id: str
    path: Location
    split: str
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True)
class SurveyedSlide:
    """What one pass over a slide reads.

    Attributes:
        slide_id: Its name.
        split: Its split.
        patches: Patches with tissue.
        tiles: Stored tiles that these patches touch.
        decodes: How often a tile is decoded, which is more where a row of tiles does not fit into the cache.
        megapixels: Pixels that are decoded, in millions.
        stored_mb: Bytes of these tiles in the file, in millions.
        seconds: Opening the slide and finding the tissue took so long.
        cpu_seconds: The same in seconds of a core.
        coarser: Whether the slide has a level that would serve patches of twice the µm per pixel.
    """

    slide_id: str
    split: str
    patches: int
    tiles: int
    decodes: float
    megapixels: float
    stored_mb: float
    seconds: float
    cpu_seconds: float
    coarser: bool


@dataclass(frozen=True, slots=True)
class Count:
    """A number, and half the width of its 95 % interval; 0 if everything was counted."""

    value: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class SplitSurvey:
    """The slides of a split.

    Attributes:
        slides: How many of its slides can be read, as far as the sample says.
        looked_at: Those that were surveyed.
    """

    slides: float
    looked_at: tuple[SurveyedSlide, ...]

    def total(self, name: str) -> Count:
        """The sum of an attribute of :class:`SurveyedSlide` over all slides of the split."""
        values = [float(getattr(slide, name)) for slide in self.looked_at]
        n = len(values)
        if not n:
            return Count(0.0)
        mean = math.fsum(values) / n
        if n >= self.slides or n == 1:
            return Count(mean * self.slides)
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        error = self.slides * math.sqrt(variance / n * max(0.0, 1 - n / self.slides))
        return Count(mean * self.slides, float(student_t.ppf(0.975, n - 1)) * error)


@dataclass(frozen=True, slots=True)
class Sample:
    """A slide that rates can be measured on."""

    path: Location
    coords: PatchCoords


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to read.

    Attributes:
        splits: ``{split: its slides}``.
        failed: ``{slide_id: why it cannot be read}`` of the slides that were looked at.
        slides: How many slides there are, with those that cannot be read.
        looked_at: How many were looked at.
        samples: Slides to measure on: the one with the median number of patches.
        imagined: Nobody has the slides; their size was stated.
    """

    splits: Mapping[str, SplitSurvey]
    failed: Mapping[str, str]
    slides: int
    looked_at: int
    samples: tuple[Sample, ...] = ()
    imagined: bool = False

    def total(self, name: str, *splits: str) -> Count:
        """The sum of an attribute of :class:`SurveyedSlide` over the slides of these splits, or of all."""
        counts = [its.total(name) for split, its in self.splits.items() if not splits or split in splits]
        spread = math.sqrt(math.fsum(count.spread**2 for count in counts))
        return Count(math.fsum(count.value for count in counts), spread)

    def readable(self, *splits: str) -> float:
        """How many slides of these splits, or of all, can be read."""
        return math.fsum(its.slides for split, its in self.splits.items() if not splits or split in splits)

    def only(self, *splits: str) -> "Survey":
        """The same of some of the splits."""
        its = {name: held for name, held in self.splits.items() if name in splits}
        return replace(self, splits=its, slides=round(self.readable(*splits)))

    @property
    def largest(self) -> int:
        """Patches of the largest slide that was looked at."""
        return max((slide.patches for its in self.splits.values() for slide in its.looked_at), default=0)

    def mean_patches(self, *splits: str) -> float:
        """Patches of a slide in the mean."""
        return self.total("patches", *splits).value / max(1.0, self.readable(*splits))


@dataclass(slots=True)
class _Found:
    slides: list[SurveyedSlide] = field(default_factory=list)
    coords: dict[str, Sample] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def survey(
    slides: Sequence[SlideToRead],
    find: FindPatches,
    streaming: StreamingConfig,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Survey:
    """Open slides, find their patches, and count what a pass over them reads. No patch is decoded.

    Args:
        slides: The slides of the work.
        find: Finds the patches of a slide, as the run would.
        streaming: How slides are read: the size of the tile cache decides what is decoded twice.
        sample: How many slides of each split are looked at, drawn at random; None: all.
        seed: Of the draw.
        progress: Shows how far it is.

    Raises:
        ConfigError: There are no slides, or none that can be read.
    """
    if not slides:
        raise ConfigError("there are no slides to plan for")
    by_split: dict[str, list[SlideToRead]] = {}
    for slide in slides:
        by_split.setdefault(slide.split, []).append(slide)
    chosen = {split: _drawn(theirs, sample, seed) for split, theirs in by_split.items()}
    found = _Found()
    with progress("Looking at slides", total=sum(map(len, chosen.values()))) as advance:
        for slide in (slide for theirs in chosen.values() for slide in theirs):
            try:
                surveyed, coords = survey_slide(slide, find, streaming)
            except WsiIpsError as error:
                found.failed[slide.slide_id] = str(error)
                advance(f"{slide.slide_id} cannot be read")
                continue
            found.slides.append(surveyed)
            found.coords[slide.slide_id] = Sample(slide.path, coords)
            advance(f"{slide.slide_id}: {count(surveyed.patches, 'patch', 'patches')}")
    if not found.slides:
        name, why = next(iter(found.failed.items()))
        raise ConfigError(f"none of {count(len(found.failed), 'slide')} can be read; {name}: {why}")
    splits = {}
    for split, theirs in by_split.items():
        of_split = tuple(slide for slide in found.slides if slide.split == split)
        share = len(of_split) / len(chosen[split])
        splits[split] = SplitSurvey(len(theirs) * share, of_split)
    median = sorted(found.slides, key=lambda slide: slide.patches)[len(found.slides) // 2]
    looked_at = sum(map(len, chosen.values()))
    return Survey(splits, found.failed, len(slides), looked_at, (found.coords[median.slide_id],))


def _drawn(slides: Sequence[SlideToRead], sample: int | None, seed: int) -> Sequence[SlideToRead]:
    if sample is None or sample >= len(slides):
        return slides
    return random.Random(f"{seed}/{slides[0].split}").sample(list(slides), sample)  # noqa: S311 - no secret


def survey_slide(
    slide: SlideToRead, find: FindPatches, streaming: StreamingConfig
) -> tuple[SurveyedSlide, PatchCoords]:
    """What one pass over a slide reads, and where its patches lie. Raises the slide's own error."""
    started, cpu_started = perf_counter(), process_time()
    with open_slide(slide.path) as reader:
        coords = find(reader, slide_id=slide.slide_id, mpp=slide.mpp)
        seconds, cpu_seconds = perf_counter() - started, process_time() - cpu_started
        tiles, decodes, megapixels, stored = _tiles_under(reader, coords, streaming)
        downsample = 2 * coords.patch_mpp / coords.slide_mpp
        region = PatchRegion.of(
            reader.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
        )
        coarser = reader.info.level_for(downsample) > region.level
    return (
        SurveyedSlide(
            slide.slide_id,
            slide.split,
            len(coords),
            tiles,
            decodes,
            megapixels,
            stored / 1e6,
            seconds,
            cpu_seconds,
            coarser,
        ),
        coords,
    )


def _tiles_under(
    reader: SlideReader, coords: PatchCoords, streaming: StreamingConfig
) -> tuple[int, float, float, float]:
    """Tiles, decodes, millions of pixels decoded, and stored bytes. Of a reader without tiles, every patch is a
    tile, and the bytes are the file's share."""
    region = PatchRegion.of(
        reader.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
    )
    if not isinstance(reader, TiledReader):
        n, side = len(coords), region.lv_side
        width, height = reader.info.levels[region.level].size
        stored = _file_bytes(reader) * min(1.0, n * side**2 / (1.33 * width * height))
        return n, float(n), n * side**2 / 1e6, stored
    region, scale = region.shrunk(reader, coords.l0_xy_N2)
    layout = reader.tile_layout(region.level)
    places = layout.places.smaller(scale)
    corners = coords.l0_xy_N2
    uses = places.uses(
        region.lv_boxes(corners[start : start + BLOCK]) for start in range(0, len(corners), BLOCK)
    )
    counts: NDArray[np.int64] | None = getattr(layout, "byte_counts", None)
    used = uses > 0
    if counts is not None:
        counts = counts.reshape(len(counts), -1).sum(axis=1)
        used &= counts > 0
        stored = float(counts[used].sum())
    else:
        stored = _file_bytes(reader) * float(np.count_nonzero(used)) / max(1, len(uses)) * 0.75
    tiles = int(np.count_nonzero(used))
    width, height = places.tile_size
    again = _decoded_again(coords, region, (width, height), tiles, streaming)
    return tiles, tiles * again, tiles * again * tile_megapixels(reader, coords), stored * again


def tile_megapixels(reader: SlideReader, coords: PatchCoords) -> float:
    """Millions of pixels that decoding one tile gives; of a reader without tiles, one patch."""
    region = PatchRegion.of(
        reader.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
    )
    if not isinstance(reader, TiledReader):
        return region.lv_side**2 / 1e6
    region, scale = region.shrunk(reader, coords.l0_xy_N2)
    width, height = reader.tile_layout(region.level).tile_size
    return width * height / scale**2 / 1e6


def _decoded_again(
    coords: PatchCoords, region: PatchRegion, tile: tuple[int, int], tiles: int, streaming: StreamingConfig
) -> float:
    """How often a tile is decoded in the mean: once where a row of tiles fits into the cache (see
    :class:`wsi_ips.streaming.tile_source.TileStore`), else the part that does not fit once for each row of
    patches."""
    rows = len(np.unique(coords.l0_xy_N2[:, 1]))
    step = max(1.0, coords.l0_patch / region.lv_downsample)
    tile_rows = max(1.0, rows * step / tile[1])
    in_row, cached = tiles / tile_rows, streaming.tile_cache_mb * 2**20 / (tile[0] * tile[1] * 3)
    fits = min(1.0, cached / max(1.0, in_row))
    touching = max(1.0, tile[1] / step + 1) if tile[1] != step else 1.0
    return fits + (1 - fits) * touching


def _file_bytes(reader: SlideReader) -> float:
    path = Path(str(reader.info.path))
    if path.is_file():
        return float(path.stat().st_size)
    return (
        float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        if path.is_dir()
        else 0.0
    )


def imagined(counts: Mapping[str, int], patches: int, tiling: TilingConfig) -> Survey:
    """A survey of ``counts`` slides of each split with so many patches each, which nobody has yet.

    Patches are taken to be as wide as 256-px tiles that scanners store at the patches' own resolution; bytes are
    estimated from the pixels.
    """
    per_patch = max(1.0, (tiling.patch_px / IMAGINED_TILE_PX) ** 2)
    if tiling.patch_px % IMAGINED_TILE_PX:  # patches across tiles share them with their neighbours
        per_patch = (tiling.patch_px / IMAGINED_TILE_PX) ** 2
    tiles = max(1, round(patches * per_patch))
    megapixels = tiles * IMAGINED_TILE_PX**2 / 1e6
    splits: dict[str, Any] = {}
    for split, number in counts.items():
        one = SurveyedSlide(
            "imagined",
            split,
            patches,
            tiles,
            tiles,
            megapixels,
            megapixels * JPEG_BYTES_PER_PX,
            math.nan,
            math.nan,
            True,
        )
        splits[split] = SplitSurvey(number, (one,) if number else ())
    return Survey(splits, {}, sum(counts.values()), 0, imagined=True)
