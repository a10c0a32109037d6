"""The reader of DICOM whole-slide images: a series of files as one slide, with its levels, images and resolution.

Start with :class:`DicomReader`. The steps below it are files of their own: :mod:`.series` finds the files of a
slide, :mod:`.elements` reads a header, :mod:`.image` checks what one file states, and :mod:`.levels` finds the
tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from wsi_ips.errors import DamagedSlide, SlideReadError, UnsupportedSlide
from wsi_ips.slides.base import LeftOut, RgbImage, white_region
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.dicom import elements as tags
from wsi_ips.slides.dicom.elements import BrokenHeader
from wsi_ips.slides.dicom.levels import DicomImage, StoredLevel, read_image, stored_level
from wsi_ips.slides.dicom.series import Series, series_of, starts_as_dicom
from wsi_ips.slides.resolution import believable_xy
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.slides.tile_layout import (
    AssociatedImage,
    SlideLayout,
    TileFile,
    TileLayout,
    read_tiles,
    size_downsample,
)
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX, check_levels
from wsi_ips.units import Mpp, Size

PICTURES = {"LABEL": "label", "OVERVIEW": "macro", "THUMBNAIL": "thumbnail"}
"""What OpenSlide calls the images that are no levels, by what ImageType calls them."""

PHILIPS = "philips"
"""Start of the manufacturer's name of scanners that pad levels."""

NEARLY_WHOLE = 0.02
"""By how much, as a share, a downsample may differ from a whole number and still be taken for it."""


class DicomReader(StoredTileReader):
    """A reader of a folder that holds one series, or of any file of a series."""

    name = "dicom"

    def read_layout(self) -> SlideLayout:
        """Read the headers of all files of the series.

        Raises :class:`UnsupportedSlide` for what is not read here, :class:`DamagedSlide` for files that contradict
        each other or themselves, and :class:`SeveralSlides` for a folder of several slides.
        """
        if not self._path.is_dir() and not starts_as_dicom(self._path):
            raise UnsupportedSlide(self._path, "not a DICOM file")

        return series_layout(self._path, series_of(self._path))


def series_layout(path: Path, series: Series) -> SlideLayout:
    """Where the tiles of all levels lie in the files of a series. ``path`` is the slide, for messages.

    The levels are the files whose ImageType says VOLUME: one level for each size, or the parts of a concatenation
    of that size, as in OpenSlide. Raises :class:`UnsupportedSlide` and :class:`DamagedSlide` that name the file.
    """
    images = [read_image(file) for file in series.files]
    levels = _levels(path, images)
    associated, left_out = _pictures(images)
    files = tuple(part.path for level in levels for part in level.parts)
    tiles = tuple(level.with_files(files) for level in levels)
    tiles, downsamples, padding = _without_padding(levels, tiles)
    check_levels(path, [level.level_size for level in tiles], [level.tile_size for level in tiles])
    finest = levels[0].parts[0]
    return SlideLayout(
        vendor="dicom",
        files=files,
        levels=tiles,
        downsamples=downsamples,
        mpp_xy=_mpp(finest),
        associated=associated,
        left_out=(
            *series.left_out,
            *left_out,
            *(what for level in levels for what in level.left_out),
            *padding,
        ),
        icc_profile=_has_profile(finest),
    )


@dataclass(frozen=True, slots=True)
class DicomPicture:
    """A label, overview or thumbnail, which is one file."""

    file: Path
    tiles: TileLayout

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.tiles.level_size

    def read(self, path: Path) -> RgbImage:
        """Read the image from the slide at ``path`` as (height, width, 3) uint8.

        Raises :class:`SlideReadError` if it cannot be decoded.
        """
        (width, height), (tile_width, tile_height) = self.size, self.tiles.tile_size
        if self.tiles.rows * tile_height * self.tiles.cols * tile_width > LARGEST_BLOCK_PX:
            raise SlideReadError(path, f"the picture {self.file.name} claims {width}x{height} px")
        whole = white_region((self.tiles.cols * tile_width, self.tiles.rows * tile_height))
        numbers = np.flatnonzero(~self.tiles.missing)
        decoder = self.tiles.tile.decoder()
        tile = white_region(self.tiles.tile_size)
        try:
            stored = read_tiles([TileFile(self.file)], self.tiles, numbers)
            for number, data in zip(numbers.tolist(), stored, strict=True):
                row, col = divmod(number, self.tiles.cols)
                decoder.decode([data], tile)
                top, left = row * tile_height, col * tile_width
                whole[top : top + tile_height, left : left + tile_width] = tile
        except (OSError, TileError) as error:
            raise SlideReadError(path, f"the picture {self.file.name} cannot be read: {error}") from error
        return np.ascontiguousarray(whole[:height, :width])


def _levels(path: Path, images: Sequence[DicomImage]) -> list[StoredLevel]:
    """The levels, from the finest to the coarsest."""
    by_size: dict[Size, list[DicomImage]] = {}
    for image in images:
        if image.kind == "VOLUME":
            by_size.setdefault(image.matrix, []).append(image)
    if not by_size:
        raise UnsupportedSlide(path, "a DICOM series without a level (no ImageType says VOLUME)")
    levels: list[StoredLevel] = []
    refused: UnsupportedSlide | None = None
    for size in sorted(by_size, reverse=True):
        try:
            levels.append(stored_level(by_size[size]))
        except DamagedSlide:
            raise
        except UnsupportedSlide as error:  # all levels are looked at: a damaged one decides
            refused = refused or error
    if refused is not None:
        raise refused
    for finer, coarser in pairwise(levels):
        (width, height), (fine_width, fine_height) = coarser.tiles.level_size, finer.tiles.level_size
        if width > fine_width or height > fine_height:
            raise DamagedSlide(
                path,
                f"its levels of {fine_width}x{fine_height} and {width}x{height} px are not of one slide",
                "take the files of another slide out of the folder",
            )
    return levels


def _pictures(images: Sequence[DicomImage]) -> tuple[dict[str, AssociatedImage], list[LeftOut]]:
    pictures: dict[str, AssociatedImage] = {}
    left_out: list[LeftOut] = []
    for image in images:
        if image.kind == "VOLUME":
            continue
        name = PICTURES.get(image.kind)
        if name is None:
            left_out.append(
                LeftOut(image.path.name, f"of the kind {image.kind or 'unknown'}, which is no level")
            )
        elif name in pictures:
            left_out.append(LeftOut(image.path.name, f"a second {name}"))
        else:
            try:
                pictures[name] = DicomPicture(image.path, stored_level([image]).tiles)
            except DamagedSlide:
                raise
            except UnsupportedSlide as error:
                left_out.append(LeftOut(image.path.name, str(error.args[1])))
    return pictures, left_out


def _mpp(finest: DicomImage) -> tuple[Mpp, Mpp] | None:
    if finest.spacing_mm is None:
        return None
    x, y = finest.spacing_mm
    return believable_xy(x * 1000, y * 1000)


def _has_profile(finest: DicomImage) -> bool:
    try:
        return any(tags.ICC_PROFILE in path for path in finest.elements.items(tags.OPTICAL_PATHS))
    except BrokenHeader as error:
        raise finest.damaged(f"its optical paths are broken: {error}") from error


def _without_padding(
    levels: Sequence[StoredLevel], tiles: tuple[TileLayout, ...]
) -> tuple[tuple[TileLayout, ...], tuple[float, ...] | None, list[LeftOut]]:
    """Cut the padding off the levels of Philips' scanners.

    Philips states the size of whole tiles, so the ratios of sizes are not those of pixels. There the distances of
    pixels say how much coarser a level is, and a level ends where level 0 does (CONTAINERS.md, sections 1 and 2).
    For other scanners downsamples are the ratios of sizes, which is stated as None.

    Returns the levels, their downsamples, and what was left out.
    """
    finest = levels[0].parts[0]
    spacings = [level.parts[0].spacing_mm for level in levels]
    if not finest.elements.text(tags.MANUFACTURER).lower().startswith(PHILIPS) or None in spacings:
        return tiles, None, []
    factors = [_factor(spacing, spacings[0]) for spacing in spacings if spacing and spacings[0]]
    if factors != sorted(factors):
        raise finest.damaged("its levels' PixelSpacing does not grow as their sizes shrink")
    clipped: list[TileLayout] = []
    left_out: list[LeftOut] = []
    width, height = tiles[0].level_size
    for number, (level, factor) in enumerate(zip(tiles, factors, strict=True)):
        stored = level.level_size
        size = (max(1, min(stored[0], int(width / factor))), max(1, min(stored[1], int(height / factor))))
        if size != stored:
            left_out.append(
                LeftOut(f"{stored[0] - size[0]} columns and {stored[1] - size[1]} rows of level {number}",
                        "padding to whole tiles")
            )  # fmt: skip
        clipped.append(replace(level, level_size=size))
    plain = [size_downsample(level, tiles[0]) for level in tiles]
    return tuple(clipped), tuple(factors) if factors != plain else None, left_out


def _factor(spacing: tuple[float, float], finest: tuple[float, float]) -> float:
    """How much coarser one level is than the finest.

    Spacings are rounded, so a factor that is nearly a whole number becomes one.
    """
    factor = (spacing[0] / finest[0] + spacing[1] / finest[1]) / 2
    return float(round(factor)) if abs(factor / max(1, round(factor)) - 1) <= NEARLY_WHOLE else factor
