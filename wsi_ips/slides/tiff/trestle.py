"""Trestle TIFF (MedScan): every image is a level, and its tiles overlap (CONTAINERS.md, section 8).

Where tiles overlap, the lower one is seen, and in a row the one to the right, as in OpenSlide. A tile without data
is white here, where OpenSlide fails.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.jpeg import JpegInFile
from wsi_ips.slides.resolution import believable_xy
from wsi_ips.slides.tiff.directories import (
    DESCRIPTION,
    ICC_PROFILE,
    SOFTWARE,
    X_RESOLUTION,
    Y_RESOLUTION,
    TiffDirectories,
)
from wsi_ips.slides.tiff.generic import refuse_disordered
from wsi_ips.slides.tiff.tile_formats import tiled_level
from wsi_ips.slides.tile_layout import AssociatedImage, SlideLayout, TileLayout, tiles_without_data
from wsi_ips.slides.tile_places import PlacedTiles, StoredGrid

MACRO_SUFFIX = ".Full"
"""Suffix of a JPEG beside the slide, which is its macro image."""


def recognises(file: TiffDirectories) -> bool:
    """Whether MedScan wrote the file, and every image is tiled."""
    first = file.first
    return (
        first.text(SOFTWARE).startswith("MedScan")
        and DESCRIPTION in first.tags
        and all(image.is_tiled for image in file.images)
    )


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    overlaps = _overlaps(file.path, file.first.description)
    levels = [
        _level(file.path, tiled_level(file, image), overlaps.get(number, (0, 0)))
        for number, image in enumerate(file.images)
    ]
    refuse_disordered(file, levels)
    pictures: dict[str, AssociatedImage] = {}
    left_out = [*tiles_without_data(levels), *_add_macro(file.path, pictures)]
    return SlideLayout(
        vendor="trestle",
        files=(file.path,),
        levels=tuple(levels),
        # Trestle writes µm per pixel here, and not pixels per unit as TIFF defines it.
        mpp_xy=believable_xy(file.first.ratio(X_RESOLUTION), file.first.ratio(Y_RESOLUTION)),
        associated=pictures,
        left_out=tuple(left_out),
        icc_profile=ICC_PROFILE in file.first.tags,
    )


def _overlaps(path: Path, description: str) -> dict[int, tuple[int, int]]:
    """The overlap of tiles (x, y) for each level: ``OverlapsXY=64 64 32 32`` has a pair for each image."""
    fields = [field.partition("=") for field in description.split(";")]
    stated = [value.split() for name, _, value in fields if name.strip() == "OverlapsXY"]
    values = stated[-1] if stated else []
    if not all(value.isascii() and value.isdigit() and len(value) < 10 for value in values):
        raise UnsupportedSlide(path, f"its OverlapsXY are no numbers: {' '.join(values)[:100]}")
    pairs = zip(values[::2], values[1::2], strict=False)
    return {number: (int(x), int(y)) for number, (x, y) in enumerate(pairs)}


def _level(path: Path, tiles: TileLayout, overlap: tuple[int, int]) -> TileLayout:
    if overlap == (0, 0):
        return tiles
    (width, height), (tile_width, tile_height) = tiles.level_size, tiles.tile_size
    if overlap[0] >= tile_width or overlap[1] >= tile_height:
        raise DamagedSlide(
            path,
            f"its header states that tiles of {tile_width}x{tile_height} px overlap by {overlap[0]}x{overlap[1]}",
            "the file is damaged",
        )
    level_size = (
        width - (tiles.cols - 1) * overlap[0] if width >= tile_width else width,
        height - (tiles.rows - 1) * overlap[1] if height >= tile_height else height,
    )
    grid = StoredGrid.of(tiles.level_size, tiles.tile_size)
    advance = np.array([tile_width - overlap[0], tile_height - overlap[1]])
    placed = PlacedTiles.place(
        path,
        level_size=level_size,
        tile_size=tiles.tile_size,
        missing=tiles.missing,
        numbers_P=np.arange(len(grid.cols_P)),
        xy_P2=np.stack([grid.cols_P, grid.rows_P], axis=1) * advance,
        sources_P4=grid.sources_P4,
    )
    return replace(tiles, level_size=level_size, placed=placed)


def _add_macro(path: Path, pictures: dict[str, AssociatedImage]) -> Iterator[LeftOut]:
    """Add the JPEG beside the slide to ``pictures``, if there is one. Yields why it cannot be read, if so."""
    beside = path.with_suffix(MACRO_SUFFIX)
    if beside.is_file():
        try:
            pictures["macro"] = JpegInFile.of(beside)
        except (TileError, OSError) as error:
            yield LeftOut(f"the macro beside it, {beside.name}", f"no JPEG that can be read: {error}")
