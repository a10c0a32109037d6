"""Leica SCN: areas that were scanned on one glass slide, each a pyramid of its own (CONTAINERS.md, section 4).

The slide is the whole glass, as in OpenSlide. Each area lies where the XML of the first image's description says,
and between areas it is white. Only brightfield is read. Two differences from OpenSlide are intended: a tile
without data is white, where OpenSlide fails, and two areas need no macro image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import Bounds, LeftOut
from wsi_ips.slides.resolution import believable_xy
from wsi_ips.slides.tiff.associated import TiffPicture
from wsi_ips.slides.tiff.directories import ICC_PROFILE, TiffDirectories, TiffImage, parsed_xml
from wsi_ips.slides.tiff.generic import page_name, refuse_disordered
from wsi_ips.slides.tiff.tile_formats import resolution_mpp, tiled_level
from wsi_ips.slides.tile_layout import SlideLayout, TileLayout, tiles_without_data
from wsi_ips.slides.tile_places import MOST_LEVELS, PlacedTiles, StoredGrid
from wsi_ips.units import Size

NAMESPACES = (
    "http://www.leica-microsystems.com/scn/2010/03/10",
    "http://www.leica-microsystems.com/scn/2010/10/01",
)
"""Namespaces of Leica's XML."""

BRIGHTFIELD = "brightfield"
"""The illumination that is read."""

MOST_IMAGES = 1000
"""The most images of the XML."""

SAME_RESOLUTION = 0.02
"""By how much, as a share, the resolutions of areas may differ."""


@dataclass(frozen=True, slots=True)
class _Dimension:
    """One size of an image. ``ifd`` is the place in the file of the TIFF image that holds it."""

    ifd: int
    width: int
    nm_per_px: float


@dataclass(frozen=True, slots=True)
class _ScnImage:
    """One ``image`` of the XML. ``dimensions`` are those of the first focal plane, from fine to coarse."""

    nm_offset: tuple[int, int]
    nm_size: tuple[int, int]
    illumination: str
    objective: str
    dimensions: tuple[_Dimension, ...]
    other_planes: tuple[int, ...]
    """The TIFF images of other focal planes."""


def recognises(file: TiffDirectories) -> bool:
    """Whether the first image's description has Leica's XML namespace."""
    return any(name in file.first.description for name in NAMESPACES)


def read_layout(file: TiffDirectories) -> SlideLayout:
    """Where the tiles of the levels lie.

    Raises :class:`UnsupportedSlide` for what is better left to OpenSlide, :class:`DamagedSlide` for a file that is
    cut short or contradicts itself, and :class:`RefusedSlide` for one that OpenSlide would show wrongly.
    """
    nm_size, images = _scn_images(file.path, file.first.description)
    macros = [image for image in images if image.nm_offset == (0, 0) and image.nm_size == nm_size]
    areas = [image for image in images if image not in macros]
    shown = [area for area in areas if area.illumination == BRIGHTFIELD]
    if not shown:
        kinds = ", ".join(sorted({area.illumination or "not stated" for area in areas})) or "no image"
        raise UnsupportedSlide(
            file.path, f"holds no brightfield image (illumination: {kinds})", "fluorescence is not read"
        )
    _refuse_dissimilar(file.path, shown)
    levels, offsets = [], []
    for number in range(len(shown[0].dimensions)):
        level, xy_A2 = _level(file, shown, number, nm_size)
        levels.append(level)
        offsets.append(xy_A2)
    refuse_disordered(file, levels)
    finest = _tiff_image(file, shown[0].dimensions[0].ifd)
    nm_per_px = shown[0].dimensions[0].nm_per_px
    pictures = [macro for macro in macros if macro.illumination == BRIGHTFIELD and macro.dimensions]
    macro = {"macro": _tiff_image(file, pictures[0].dimensions[0].ifd)} if pictures else {}
    return SlideLayout(
        vendor="leica",
        files=(file.path,),
        levels=tuple(levels),
        mpp_xy=resolution_mpp(finest) or believable_xy(nm_per_px / 1000, None),
        bounds=_hull(file, shown, offsets[0]),
        associated={name: TiffPicture.of(image) for name, image in macro.items()},
        left_out=(*_left_out(file, shown, areas, list(macro.values())), *tiles_without_data(levels)),
        icc_profile=ICC_PROFILE in finest.tags,
    )


def _scn_images(path: Path, description: str) -> tuple[Size, list[_ScnImage]]:
    """The size of the glass slide in nanometres, and the images on it."""
    root = parsed_xml(path, description)
    names = {f"{{{name}}}scn": {"": name} for name in NAMESPACES}
    if root is None or root.tag not in names:
        raise UnsupportedSlide(path, "its description is not the XML of Leica's SCN")
    space = names[root.tag]
    collection = root.find("collection", space)
    if collection is None:
        raise UnsupportedSlide(path, "Leica's XML without a collection of images")
    elements = collection.findall("image", space)
    if len(elements) > MOST_IMAGES:
        raise UnsupportedSlide(path, f"Leica's XML with {len(elements)} images")
    images = [_scn_image(path, element, space) for element in elements]
    return (_integer(path, collection, "sizeX"), _integer(path, collection, "sizeY")), images


def _scn_image(path: Path, element: Element, space: dict[str, str]) -> _ScnImage:
    view = element.find("view", space)
    if view is None:
        raise UnsupportedSlide(path, "Leica's XML with an image that has no view")
    nm_size = _integer(path, view, "sizeX"), _integer(path, view, "sizeY")
    dimensions, other_planes = [], []
    for dimension in element.iterfind("pixels/dimension", space):
        ifd, width = _integer(path, dimension, "ifd"), _integer(path, dimension, "sizeX")
        if dimension.get("z", "0") != "0":
            other_planes.append(ifd)
        elif min(width, *nm_size) < 1:
            raise UnsupportedSlide(path, f"Leica's XML with an image of {width} px and {nm_size[0]} nm")
        else:
            dimensions.append(_Dimension(ifd, width, nm_size[0] / width))
    return _ScnImage(
        nm_offset=(_integer(path, view, "offsetX"), _integer(path, view, "offsetY")),
        nm_size=nm_size,
        illumination=_text(element, "scanSettings/illuminationSettings/illuminationSource", space),
        objective=_text(element, "scanSettings/objectiveSettings/objective", space),
        dimensions=tuple(sorted(dimensions, key=lambda dimension: -dimension.width)),
        other_planes=tuple(other_planes),
    )


def _refuse_dissimilar(path: Path, areas: Sequence[_ScnImage]) -> None:
    """Check that all areas have the same levels, since they are laid out on one pyramid."""
    first = areas[0]
    if not first.dimensions:
        raise UnsupportedSlide(path, "Leica's XML with an image that has no pixels")
    for area in areas[1:]:
        if (area.objective, len(area.dimensions)) != (first.objective, len(first.dimensions)):
            raise UnsupportedSlide(
                path, "its areas were scanned with several objectives, or have other levels"
            )
        for ours, theirs in zip(first.dimensions, area.dimensions, strict=True):
            if abs(theirs.nm_per_px - ours.nm_per_px) / ours.nm_per_px > SAME_RESOLUTION:
                raise UnsupportedSlide(path, "its areas have other resolutions")
    ifds = [dimension.ifd for area in areas for dimension in area.dimensions]
    if len(set(ifds)) != len(ifds) or len(first.dimensions) > MOST_LEVELS:
        raise UnsupportedSlide(path, "Leica's XML that names an image of the file twice, or too many of them")


def _level(
    file: TiffDirectories, areas: Sequence[_ScnImage], number: int, nm_size: tuple[int, int]
) -> tuple[TileLayout, list[tuple[int, int]]]:
    """One level of all areas, and where on it each area begins.

    As in OpenSlide, places are cut to whole pixels, and where areas overlap, the one that comes first in the file
    is seen.
    """
    dimensions = [area.dimensions[number] for area in areas]
    nm_per_px = min(dimension.nm_per_px for dimension in dimensions)
    level_size = ceil(nm_size[0] / nm_per_px), ceil(nm_size[1] / nm_per_px)
    stored = [tiled_level(file, _tiff_image(file, dimension.ifd)) for dimension in dimensions]
    if any(tiles.tile != stored[0].tile for tiles in stored):
        raise UnsupportedSlide(file.path, f"its areas store the tiles of level {number} in several ways")
    tile_size = stored[0].tile_size
    offsets = [(int(area.nm_offset[0] / nm_per_px), int(area.nm_offset[1] / nm_per_px)) for area in areas]
    for tiles, dimension, offset in zip(stored, dimensions, offsets, strict=True):
        _check_area(file.path, tiles, dimension, offset, level_size)
    numbers, places, sources = [], [], []
    n_tiles = 0
    for tiles, offset in zip(stored, offsets, strict=True):
        grid = StoredGrid.of(tiles.level_size, tile_size)
        numbers.append(n_tiles + np.arange(len(grid.cols_P)))
        places.append(np.stack([grid.cols_P, grid.rows_P], axis=1) * tile_size + offset)
        sources.append(grid.sources_P4)
        n_tiles += len(grid.cols_P)
    alone = len(stored) == 1
    layout = replace(
        stored[0],
        level_size=level_size,
        cols=stored[0].cols if alone else n_tiles,
        rows=stored[0].rows if alone else 1,
        offsets=np.concatenate([tiles.offsets for tiles in stored]),
        byte_counts=np.concatenate([tiles.byte_counts for tiles in stored]),
    )
    # What is painted last is seen, so the first area of the file comes last.
    placed = PlacedTiles.place(
        file.path,
        level_size=level_size,
        tile_size=tile_size,
        missing=layout.missing,
        numbers_P=np.concatenate(numbers[::-1]),
        xy_P2=np.concatenate(places[::-1]),
        sources_P4=np.concatenate(sources[::-1]),
        disjoint=_disjoint(offsets, [tiles.level_size for tiles in stored]),
    )
    return replace(layout, placed=placed), offsets


def _disjoint(offsets: Sequence[tuple[int, int]], sizes: Sequence[Size]) -> bool:
    """Whether no area overlaps another."""
    starts_A2 = np.array(offsets)
    ends_A2 = starts_A2 + sizes
    over_AA = (starts_A2[:, None] < ends_A2) & (starts_A2 < ends_A2[:, None])
    return int(over_AA.all(axis=2).sum()) == len(offsets)  # each over itself alone


def _check_area(
    path: Path, tiles: TileLayout, dimension: _Dimension, offset: tuple[int, int], level_size: Size
) -> None:
    width, height = tiles.level_size
    if width != dimension.width:
        raise UnsupportedSlide(
            path, f"Leica's XML states a width of {dimension.width} px for an image of {width} px"
        )
    inside = -width < offset[0] < level_size[0] and -height < offset[1] < level_size[1]
    if not inside:
        raise DamagedSlide(
            path, f"an area of {width}x{height} px lies off the slide, at {offset}", "the file is damaged"
        )


def _hull(file: TiffDirectories, areas: Sequence[_ScnImage], offsets: Sequence[tuple[int, int]]) -> Bounds:
    """The rectangle around all areas of level 0."""
    sizes = [_tiff_image(file, area.dimensions[0].ifd).size for area in areas]
    left, top = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    right, bottom = (
        max(offset[axis] + size[axis] for offset, size in zip(offsets, sizes, strict=True)) for axis in (0, 1)
    )
    return Bounds(left, top, right - left, bottom - top)


def _left_out(
    file: TiffDirectories,
    shown: Sequence[_ScnImage],
    areas: Sequence[_ScnImage],
    macro: Sequence[TiffImage],
) -> Iterator[LeftOut]:
    """The images of the file that are no level, and why."""
    used = {dimension.ifd for area in shown for dimension in area.dimensions}
    used |= {image.number for image in macro}
    why = {ifd: "another focal plane than the first" for area in areas for ifd in area.other_planes}
    for area in areas:
        if area not in shown:
            kind = area.illumination or "not stated"
            reason = f"its illumination is {kind}, and only brightfield is read"
            why |= {dimension.ifd: reason for dimension in area.dimensions}
    for image in file.images:
        if image.number not in used:
            reason = why.get(image.number, "no part of an area: another macro, or a smaller one")
            yield LeftOut(page_name(image), reason)


def _tiff_image(file: TiffDirectories, ifd: int) -> TiffImage:
    if not 0 <= ifd < len(file.images):
        raise UnsupportedSlide(
            file.path, f"Leica's XML names image {ifd} of a file that has {len(file.images)}"
        )
    return file.images[ifd]


def _integer(path: Path, element: Element, name: str) -> int:
    try:
        return int(element.get(name, ""))
    except ValueError:
        raise UnsupportedSlide(path, f"Leica's XML with {name}={element.get(name)!r}") from None


def _text(element: Element, where: str, space: dict[str, str]) -> str:
    return (element.findtext(where, "", space) or "").strip()
