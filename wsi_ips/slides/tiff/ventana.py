"""Ventana's (Roche's) BIF, and the TIFF of the same scanners (CONTAINERS.md, section 7).

The tiles of a BIF overlap. As in OpenSlide, all of them are laid out with one advance: the mean of the overlaps
that the scanner measured, weighted by its confidence. The seams of single tiles may therefore be off by a few
pixels. Where tiles overlap, the lower one is seen, and in a row the one to the right. Coarser levels were made of
the tiles put side by side, overlaps and all: a stored tile is cut into the parts that came from single tiles of
level 0, and each part is placed by itself.

If the advance is no whole number, OpenSlide places tiles between pixels and interpolates. Here places are rounded,
so each pixel is one that was stored, half a pixel away at most. A tile without data is white here, where OpenSlide
fails.

Suffixes of array names give the shape: ``C`` cells, which are the tiles of level 0, ``A`` areas, ``T`` tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, isfinite
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.resolution import believable_xy, number
from wsi_ips.slides.tiff.associated import TiffPicture
from wsi_ips.slides.tiff.directories import ICC_PROFILE, XMP, TiffDirectories, TiffImage, parsed_xml
from wsi_ips.slides.tiff.generic import page_name
from wsi_ips.slides.tiff.tile_formats import tiled_level
from wsi_ips.slides.tile_layout import SlideLayout, TileLayout, tiles_without_data
from wsi_ips.slides.tile_places import LARGEST_SIDE_PX, MOST_LEVELS, PlacedTiles, StoredGrid, parts_of_tiles
from wsi_ips.units import Size

PICTURES = {"Label Image": "macro", "Label_Image": "macro", "Thumbnail": "thumbnail"}
"""What OpenSlide calls the associated images, by their description."""

MOST_ELEMENTS = 400_000
"""The most elements of the XML: two joints for each tile, and one element that says where it was focused."""

LARGEST_ADVANCE = 2
"""The largest advance, in tiles. Scanners leave no gaps."""


@dataclass(frozen=True, slots=True)
class _Area:
    """A rectangle of tiles that was scanned at once. It begins at (x, y) on level 0."""

    x: int
    y: int
    start_col: int
    start_row: int
    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Mosaic:
    """How the tiles of level 0 are laid out: the areas, and the distance from one tile to the next (x, y)."""

    areas: tuple[_Area, ...]
    advance: tuple[float, float]


def recognises(file: TiffDirectories) -> bool:
    """Whether tag 700 of the first image holds the XML of Ventana's scanner."""
    return b"iScan" in file.first.data(XMP)


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    path = file.path
    iscan = _iscan(path, file.first)
    images, downsamples = _level_images(file)
    levels = [tiled_level(file, image) for image in images]
    if any(tiles.tile_size != levels[0].tile_size for tiles in levels):
        raise UnsupportedSlide(path, "its levels have tiles of several sizes")
    absent: list[LeftOut] = []
    if images[0].data(XMP):
        mosaic = _mosaic(path, images[0], levels[0])
        cells_C3 = _cells(path, mosaic, levels[0])
        placed = [
            _placed(path, mosaic, cells_C3, tiles, downsample)
            for tiles, downsample in zip(levels, downsamples, strict=True)
        ]
        levels = [tiles for tiles, _ in placed]
        absent = [
            LeftOut(f"{count} parts of level {level}", "its image ends before them, and they are white")
            for level, (_, count) in enumerate(placed)
            if count
        ]
    mpp = number(iscan.get("ScanRes"))
    pictures = _pictures(file, images)
    return SlideLayout(
        vendor="ventana",
        files=(path,),
        levels=tuple(levels),
        downsamples=tuple(downsamples),
        mpp_xy=believable_xy(mpp, mpp),
        associated={name: TiffPicture.of(image) for name, image in pictures.items()},
        left_out=(
            *_left_out(file, [*images, *pictures.values()]),
            *tiles_without_data(levels),
            *absent,
        ),
        icc_profile=ICC_PROFILE in images[0].tags,
    )


def _iscan(path: Path, first: TiffImage) -> Element:
    root = parsed_xml(path, first.data(XMP).decode("utf-8", "replace"), most_elements=MOST_ELEMENTS)
    iscan = root if root is None or root.tag == "iScan" else root.find("iScan")
    if root is None or iscan is None or root.tag not in {"iScan", "Metadata"}:
        raise UnsupportedSlide(path, "its XML of Ventana's iScan cannot be understood")
    return iscan


def _level_images(file: TiffDirectories) -> tuple[list[TiffImage], list[float]]:
    """The images whose description says ``level=0 mag=40 …``, and their downsamples."""
    images: list[TiffImage] = []
    magnifications: list[float] = []
    for image in file.images:
        if "level=" not in image.description:
            continue
        fields = dict(word.partition("=")[::2] for word in image.description.split(" ") if "=" in word)
        magnification = number(fields.get("mag"))
        if fields.get("level") != str(len(images)) or magnification is None or not 0 < magnification < 1e6:
            raise UnsupportedSlide(
                file.path, f"its images do not follow each other as levels: {image.description[:100]!r}"
            )
        if magnifications and magnification >= magnifications[-1]:
            raise UnsupportedSlide(file.path, "its levels are not ordered from fine to coarse")
        magnifications.append(magnification)
        images.append(image)
    if not 1 <= len(images) <= MOST_LEVELS:
        raise UnsupportedSlide(file.path, f"a Ventana file of {len(images)} levels")
    return images, [magnifications[0] / magnification for magnification in magnifications]


def _mosaic(path: Path, image: TiffImage, tiles: TileLayout) -> _Mosaic:
    """The layout of the tiles, from the XML ``EncodeInfo`` in tag 700 of level 0."""
    root = parsed_xml(path, image.data(XMP).decode("utf-8", "replace"), most_elements=MOST_ELEMENTS)
    if root is None or root.tag != "EncodeInfo":
        raise UnsupportedSlide(path, "its EncodeInfo XML cannot be understood")
    infos = root.findall("SlideStitchInfo/ImageInfo")
    origins = [origin for container in root.findall("AoiOrigin") for origin in container]
    if not infos or len(infos) != len(origins):
        raise UnsupportedSlide(path, f"its XML names {len(infos)} areas and {len(origins)} origins of them")
    scanned = [
        (info, origin)
        for info, origin in zip(infos, origins, strict=True)
        if _integer(path, info, "AOIScanned")
    ]
    if not scanned:
        raise UnsupportedSlide(path, "its XML names no area that was scanned")
    advance = _advance(path, [info for info, _ in scanned], tiles.tile_size)
    areas = [_area(path, info, origin, tiles) for info, origin in scanned]
    # Pos-Y counts from a line below all areas up to an area's lower edge.
    heights = [int((area.rows - 1) * advance[1] + tiles.tile_size[1]) for area in areas]
    top = max(0, *(area.y + height for area, height in zip(areas, heights, strict=True)))
    return _Mosaic(
        tuple(replace(area, y=top - area.y - height) for area, height in zip(areas, heights, strict=True)),
        advance,
    )


def _area(path: Path, info: Element, origin: Element, tiles: TileLayout) -> _Area:
    """One area, whose y is still counted from below."""
    tile_width, tile_height = tiles.tile_size
    if (_integer(path, info, "Width"), _integer(path, info, "Height")) != tiles.tile_size:
        raise UnsupportedSlide(path, "its XML and its image state tiles of other sizes")
    origin_x, origin_y = _integer(path, origin, "OriginX"), _integer(path, origin, "OriginY")
    if origin_x % tile_width or origin_y % tile_height:
        raise UnsupportedSlide(path, "an area of it does not begin at a tile")
    area = _Area(
        x=int(_real(path, info, "Pos-X")),
        y=int(_real(path, info, "Pos-Y")),
        start_col=origin_x // tile_width,
        start_row=origin_y // tile_height,
        cols=_integer(path, info, "NumCols"),
        rows=_integer(path, info, "NumRows"),
    )
    ends = area.start_col + area.cols, area.start_row + area.rows
    if min(area.start_col, area.start_row) < 0 or min(area.cols, area.rows) < 1 or (
        ends[0] > tiles.cols or ends[1] > tiles.rows
    ):  # fmt: skip
        raise DamagedSlide(
            path,
            f"an area reaches to tile {ends} of an image of {tiles.cols}x{tiles.rows} tiles",
            "the file is damaged",
        )
    return area


def _advance(path: Path, infos: Sequence[Element], tile_size: Size) -> tuple[float, float]:
    """The distance from one tile to the next to the right, and to the next below, over the joints of all areas."""
    sums, weights = [0.0, 0.0], [0, 0]
    for joint in (joint for info in infos for joint in info.iterfind("TileJointInfo")):
        direction = joint.get("Direction", "")
        if direction not in {"RIGHT", "UP"}:
            raise UnsupportedSlide(path, f"its XML joins tiles in the direction {direction[:20]!r}")
        axis = ("RIGHT", "UP").index(direction)
        confidence = _integer(path, joint, "Confidence")
        sums[axis] += confidence * _real(path, joint, ("OverlapX", "OverlapY")[axis])
        weights[axis] += confidence
    # Without a joint that is trusted, tiles lie side by side.
    x, y = (
        side - total / weight if weight > 0 else float(side)
        for side, total, weight in zip(tile_size, sums, weights, strict=True)
    )
    for step, side in zip((x, y), tile_size, strict=True):
        if not 1 <= step <= LARGEST_ADVANCE * side:
            raise DamagedSlide(
                path, f"its header lays tiles of {side} px {step:.1f} px apart", "the file is damaged"
            )
    return x, y


def _cells(path: Path, mosaic: _Mosaic, tiles: TileLayout) -> NDArray[np.int64]:
    """(C, 3) column, row and area of each tile of level 0 that belongs to an area, row by row."""
    owner = np.full((tiles.rows, tiles.cols), -1, np.int32)
    for place, area in enumerate(mosaic.areas):
        rows = slice(area.start_row, area.start_row + area.rows)
        cols = slice(area.start_col, area.start_col + area.cols)
        owner[rows, cols] = place
    rows_C, cols_C = np.nonzero(owner >= 0)
    return np.stack([cols_C, rows_C, owner[rows_C, cols_C]], axis=1).astype(np.int64)


def _placed(
    path: Path, mosaic: _Mosaic, cells_C3: NDArray[np.int64], tiles: TileLayout, downsample: float
) -> tuple[TileLayout, int]:
    """Cut the tiles of a level into one piece for each cell of level 0, and place the pieces.

    Returns the level, and how many cells its image does not hold.
    """
    parts = round(downsample)  # along each side of a tile
    if parts != downsample:
        raise UnsupportedSlide(path, f"a level of it is {downsample:g} times coarser than the first")
    area_A4 = np.array([(area.x, area.y, area.start_col, area.start_row) for area in mosaic.areas], float)
    advance, tile = np.array(mosaic.advance), np.array(tiles.tile_size)
    of_cell_C4 = area_A4[cells_C3[:, 2]]
    # The arithmetic is done in OpenSlide's order, so that the size of the level comes out the same.
    offsets_C2 = (of_cell_C4[:, :2] - of_cell_C4[:, 2:] * advance) / downsample
    at_C2 = cells_C3[:, :2] * (advance / downsample) + offsets_C2
    right, bottom = (at_C2 + tile / downsample).max(axis=0).tolist()
    if not (0 < right <= LARGEST_SIDE_PX and 0 < bottom <= LARGEST_SIDE_PX):
        raise DamagedSlide(path, f"its header states {right:.0f}x{bottom:.0f} px", "the file is damaged")
    stored_C2, part_C2 = np.divmod(cells_C3[:, :2], parts)
    held_C = (stored_C2 < (tiles.cols, tiles.rows)).all(axis=1)
    at_C2, stored_C2, part_C2 = at_C2[held_C], stored_C2[held_C], part_C2[held_C]
    numbers_C = stored_C2[:, 1] * tiles.cols + stored_C2[:, 0]
    xy_C2, sources_C4 = parts_of_tiles(at_C2, part_C2, tiles.tile_size, parts)
    inside_T2 = StoredGrid.of(tiles.level_size, tiles.tile_size).sources_P4[:, 2:]
    sources_C4[:, 2:] = np.minimum(sources_C4[:, 2:], inside_T2[numbers_C] - sources_C4[:, :2])
    layout = replace(
        tiles,
        level_size=(ceil(right), ceil(bottom)),
        placed=PlacedTiles.place(
            path,
            level_size=(ceil(right), ceil(bottom)),
            tile_size=tiles.tile_size,
            missing=tiles.missing,
            numbers_P=numbers_C,
            xy_P2=xy_C2,
            sources_P4=sources_C4,
        ),
    )
    return layout, int((~held_C).sum())


def _pictures(file: TiffDirectories, levels: Sequence[TiffImage]) -> dict[str, TiffImage]:
    found: dict[str, TiffImage] = {}
    for image in file.images:
        name = PICTURES.get(image.description.strip())
        if name and image not in levels:
            found.setdefault(name, image)
    return found


def _left_out(file: TiffDirectories, used: Sequence[TiffImage]) -> Iterator[LeftOut]:
    numbers = {image.number for image in used}
    for image in file.images:
        if image.number not in numbers:
            yield LeftOut(page_name(image), "its description says no level")


def _integer(path: Path, element: Element, name: str) -> int:
    value = _real(path, element, name)
    if value != floor(value):
        raise UnsupportedSlide(path, f"its XML states {name}={value:g}, which should be a whole number")
    return int(value)


def _real(path: Path, element: Element, name: str) -> float:
    value = number(element.get(name))
    if value is None or not isfinite(value) or abs(value) > 1e9:
        raise UnsupportedSlide(path, f"its XML states {name}={element.get(name)!r}")
    return value
