"""Hamamatsu NDPI.

Each level is one strip: a JPEG of the whole level, mostly with restart markers, whose intervals are the tiles (see
:mod:`wsi_ips.slides.codecs.restart_jpeg`). Levels are OpenSlide's: those that are stored, and each of them decoded
smaller by 2, 4 and 8. Source: CONTAINERS.md, section 5.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.restart_jpeg import StackedIntervals
from wsi_ips.slides.restart_intervals import MOST_INTERVALS, StoredJpeg, reduced_level, stacked_level
from wsi_ips.slides.tiff.directories import COMPRESSION
from wsi_ips.slides.tiff.ndpi_directories import NdpiImage, opened_images
from wsi_ips.slides.tiff.pictures import JpegPicture
from wsi_ips.slides.tiff.tiled_image import resolution_mpp
from wsi_ips.slides.tile_files import TileFile
from wsi_ips.slides.tile_layout import TRUNCATED, SlideLayout, TileLayout, size_downsample

STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
SOURCE_LENS, FOCAL_PLANE, MCU_STARTS, MCU_STARTS_HIGH = 65421, 65424, 65426, 65432
MACRO, MAP = -1.0, -2.0
JPEG_XR = 22610
REDUCTIONS = (2, 4, 8)


def read_layout(path: Path, *, file_size: int) -> SlideLayout | None:
    """An NDPI slide's layout; None for a file that is none.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or whose header states what cannot be.
    """
    with opened_images(path, file_size=file_size) as images:
        if images is None:
            return None
        sorted_out = _sorted_out(path, images)
        file = TileFile(path)
        levels = _levels(path, [_native(_jpeg(path, file, image), image) for image in sorted_out.levels])
        macro = sorted_out.macro
        return SlideLayout(
            vendor="hamamatsu",
            files=(path,),
            levels=levels,
            mpp_xy=resolution_mpp(images[0]),
            associated={} if macro is None else {"macro": _picture(_jpeg(path, file, macro))},
            left_out=tuple(sorted_out.left_out),
        )


@dataclass(frozen=True, slots=True)
class _SortedOut:
    levels: list[NdpiImage]
    macro: NdpiImage | None
    left_out: list[LeftOut]


def _sorted_out(path: Path, images: tuple[NdpiImage, ...]) -> _SortedOut:
    """By the lens that each image was taken with, and its focal plane."""
    levels: list[NdpiImage] = []
    macros: list[NdpiImage] = []
    left_out = []
    for image in images:
        lens, plane = image.decimal(SOURCE_LENS), image.integer(FOCAL_PLANE)
        if lens is None:
            raise UnsupportedSlide(
                path, f"its image {image.number} does not say which lens it was taken with"
            )
        if lens > 0 and plane == 0:
            levels.append(image)
        elif lens == MACRO and not macros:
            macros.append(image)
        else:
            kinds = {MACRO: "a second macro picture", MAP: "the map of the scan"}
            why = f"another focal plane ({plane})" if lens > 0 else kinds.get(lens, "no picture of the slide")
            left_out.append(LeftOut(f"image {image.number}, {image.size[0]}x{image.size[1]} px", why))
    if not levels:
        raise UnsupportedSlide(path, "an NDPI file without a level")
    return _SortedOut(levels, macros[0] if macros else None, left_out)


def _jpeg(path: Path, file: TileFile, image: NdpiImage) -> StoredJpeg:
    """The image's one strip."""
    name = f"its image {image.number}"
    compression = image.integer(COMPRESSION)
    if compression == JPEG_XR:
        raise UnsupportedSlide(
            path, f"{name} is JPEG XR, which is not read", "export it as JPEG in Hamamatsu's NDP software"
        )
    if image.count(STRIP_OFFSETS) != 1 or image.count(STRIP_BYTE_COUNTS) != 1:
        raise UnsupportedSlide(path, f"{name} is not one strip")
    offset, count = image.integer(STRIP_OFFSETS), image.integer(STRIP_BYTE_COUNTS)
    if not 0 < count <= file.size - offset or offset < 0:
        raise DamagedSlide(
            path,
            f"truncated: {name} is {count} bytes at byte {offset}, the file has {file.size}",
            TRUNCATED,
        )
    return StoredJpeg(path, file, offset, count, name)


def _native(jpeg: StoredJpeg, image: NdpiImage) -> tuple[TileLayout, StackedIntervals]:
    return stacked_level(jpeg, image.size, _listed_starts(image))


def _listed_starts(image: NdpiImage) -> NDArray[np.int64] | None:
    """Where the intervals start within the strip, as the file lists them; None where it does not."""
    n, n_high = image.count(MCU_STARTS), image.count(MCU_STARTS_HIGH)
    if not 0 < n <= MOST_INTERVALS or n_high not in {0, n}:
        return None
    low = image.numbers(MCU_STARTS)
    high = image.numbers(MCU_STARTS_HIGH) if n_high else np.zeros_like(low)
    if len(low) != n or len(high) != n or low.dtype.kind not in "iu" or high.dtype.kind not in "iu":
        return None
    return low.astype(np.int64) | high.astype(np.int64) << 32


def _levels(path: Path, natives: list[tuple[TileLayout, StackedIntervals]]) -> tuple[TileLayout, ...]:
    """OpenSlide's table of levels: by width, where a later one replaces an earlier one.

    So a level that is stored replaces a reduction of a finer one, and of two reductions that of the coarser one
    stays.
    """
    if any(coarser[0].level_size[0] >= finer[0].level_size[0] for finer, coarser in pairwise(natives)):
        raise UnsupportedSlide(path, "its levels are not ordered from fine to coarse")
    by_width: dict[int, TileLayout] = {}
    for level, tile in natives:
        by_width[level.level_size[0]] = level
        for reduction in REDUCTIONS:
            if tile.divides(reduction) and min(level.level_size) >= reduction:
                reduced = reduced_level(level, tile, reduction)
                by_width[reduced.level_size[0]] = reduced
    levels = [by_width[width] for width in sorted(by_width, reverse=True)]
    factors = [size_downsample(level, levels[0]) for level in levels]
    if any(coarser < finer for finer, coarser in pairwise(factors)):
        raise UnsupportedSlide(path, "its levels are not ordered from fine to coarse")
    return tuple(levels)


def _picture(jpeg: StoredJpeg) -> JpegPicture:
    return JpegPicture(size=jpeg.header().size, offset=jpeg.offset, byte_count=jpeg.byte_count)
