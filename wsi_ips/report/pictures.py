"""A slide's pictures for a page: as it is, under its map, and the patches with the largest values of it.

The map is of contributions where the head tells them, else of attention.

The slide is read once, at the largest size that may fit its share of the report; smaller looks are made of what
was read. Pixel (i, j) shows the level-0 area [i, i + 1) * l0_per_px by [j, j + 1) * l0_per_px at every size, so
that the map lies where it belongs to the far corner.

Shape suffixes: N patches; H, W rows and columns.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.heatmaps.colours import HeatColours
from wsi_ips.heatmaps.maps import Heat
from wsi_ips.heatmaps.overlay import blend
from wsi_ips.heatmaps.patch_sheet import patch_picture
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.report.budget import SURELY_TOO_LARGE, Look, worth_trying
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.slides.memory_reader import MemoryReader
from wsi_ips.slides.region import WHITE
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.units import Size

ALPHA = 0.5
"""Opacity of the heat over tissue; over none it is the picture."""
COLOURS = HeatColours()
"""The same as an overlay's by default."""


@dataclass(frozen=True, slots=True)
class Picture:
    """uri: ``data:image/…``, the whole picture. width, height: in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Place:
    """One of the patches with the largest values. rank: from 1. value: raw attention, or what it contributes in
    logits. l0_x, l0_y: its corner."""

    rank: int
    value: float
    l0_x: int
    l0_y: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a slide's card shows. patches: with their places, as many as there is room for; left_out: the others
    that were asked for. mpp: µm a pixel of the overlay, NaN where the resolution is not known."""

    slide: Picture | None = None
    overlay: Picture | None = None
    patches: Sequence[tuple[Place, Picture]] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What was read of a slide. picture_HW3: uint8, None where the slide cannot be opened. l0_per_px: its scale.
    patches: uint8 squares, one for each of the first places."""

    l0_size: Size
    l0_per_px: float
    picture_HW3: RgbImage | None = None
    patches: Sequence[RgbImage] = field(default_factory=tuple)


def top_places(heat: Heat, top: int) -> list[Place]:
    """The ``top`` patches with the most attention, or of those that add to the output the ones that add most; of
    equals, the first in the grid comes first."""
    order = np.argsort(-heat.values_N, kind="stable")[:top].tolist()
    if heat.kind == "contribution":
        order = [row for row in order if heat.values_N[row] > 0]
    corners = heat.coords.l0_xy_N2[order].tolist()
    return [
        Place(rank, float(heat.values_N[row]), *corner)
        for rank, (row, corner) in enumerate(zip(order, corners, strict=True), start=1)
    ]


def read_pixels(slide: SlideReader, places: Sequence[Place], *, l0_patch: float | None, share: int) -> Pixels:
    """Read as many pixels as may fit ``share`` bytes. l0_patch: side of a patch, in level-0 pixels.

    Memory grows with the share and not with the slide. Raises the reader's :class:`SlideReadError`.
    """
    look = worth_trying(share)[0]
    l0_size = slide.info.l0_size
    l0_per_px = max(1.0, max(l0_size) / look.side_px)
    picture_HW3 = slide_picture(slide, canvas_size(l0_size, l0_per_px), l0_per_px=l0_per_px)
    patches: list[RgbImage] = []
    if l0_patch is not None:
        side_px = min(look.patch_px, max(1, round(l0_patch)))  # not enlarged
        patches = [
            patch_picture(slide, (place.l0_x, place.l0_y), l0_patch, side_px=side_px) for place in places
        ]
    return Pixels(l0_size, l0_per_px, picture_HW3, patches)


def draw_pictures(pixels: Pixels, heat: Heat | None, places: Sequence[Place], *, share: int) -> Pictures:
    """Pictures that take ``share`` bytes of the page at most, data URIs and all.

    In the first look in which all fit; in the smallest, what is most telling is kept: the overlay, the slide,
    the patches from the first rank on.
    """
    *larger, smallest = worth_trying(share)
    bytes_by_weight = 0.0
    for look in larger:
        weight = look.weight(len(places))
        if bytes_by_weight * weight > SURELY_TOO_LARGE * share:
            continue  # drawing a look costs as much as reading it
        drawn = _drawn(pixels, heat, places, look)
        if _bytes(drawn) <= share:
            return drawn
        bytes_by_weight = _bytes(drawn) / weight
    return _as_much_as_fits(_drawn(pixels, heat, places, smallest), share)


def _drawn(pixels: Pixels, heat: Heat | None, places: Sequence[Place], look: Look) -> Pictures:
    l0_per_px = max(pixels.l0_per_px, max(pixels.l0_size) / look.side_px)
    picture_HW3 = _smaller(pixels, l0_per_px)
    patches = [
        (place, _jpeg(_square(patch, look.patch_px), look.quality))
        for place, patch in zip(places, pixels.patches, strict=False)
    ]
    overlay = None
    if heat is not None:
        overlay = _jpeg(_under_heat(picture_HW3, pixels.l0_size, l0_per_px, heat), look.quality)
    return Pictures(None if picture_HW3 is None else _jpeg(picture_HW3, look.quality), overlay, patches)


def _under_heat(picture_HW3: RgbImage | None, l0_size: Size, l0_per_px: float, heat: Heat) -> RgbImage:
    """The picture, or white paper, with the map over it, on the scale that all slides share."""
    width, height = canvas_size(l0_size, l0_per_px)
    alpha = 1.0 if picture_HW3 is None else ALPHA
    shown_HW3 = np.full((height, width, 3), WHITE, np.uint8) if picture_HW3 is None else picture_HW3.copy()
    coords = heat.coords
    raster = PatchRaster.of(
        coords.l0_exact_corners(), coords.l0_patch, heat.values_N, l0_size=l0_size, l0_per_px=l0_per_px
    )
    display, table = COLOURS.display(heat.values_N, heat.kind), COLOURS.table(heat.kind)
    blend(shown_HW3, raster.window((0, 0), (width, height)), display, table, alpha)
    return shown_HW3


def _smaller(pixels: Pixels, l0_per_px: float) -> RgbImage | None:
    """The picture at a coarser scale, each pixel the mean of the area that it covers."""
    picture_HW3 = pixels.picture_HW3
    if picture_HW3 is None or l0_per_px <= pixels.l0_per_px:
        return picture_HW3
    size_px = canvas_size(pixels.l0_size, l0_per_px)
    return slide_picture(MemoryReader(picture_HW3), size_px, l0_per_px=l0_per_px / pixels.l0_per_px)


def _square(patch: RgbImage, side_px: int) -> RgbImage:
    if len(patch) <= side_px:
        return patch
    # Pillow's mean over the triangle around a pixel, and not over its own area: nothing has to lie over a patch.
    return np.asarray(Image.fromarray(patch).resize((side_px, side_px), Image.Resampling.BILINEAR))


def _jpeg(pixels_HW3: NDArray[np.uint8], quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, format="JPEG", quality=quality, optimize=True)
    return Picture(data_uri(file.getvalue(), "image/jpeg"), pixels_HW3.shape[1], pixels_HW3.shape[0])


def data_uri(content: bytes, kind: str) -> str:
    """``data:<kind>;base64,…``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _bytes(pictures: Pictures) -> int:
    whole = [picture for picture in (pictures.slide, pictures.overlay) if picture is not None]
    return sum(len(picture.uri) for picture in (*whole, *(patch for _, patch in pictures.patches)))


def _as_much_as_fits(pictures: Pictures, share: int) -> Pictures:
    kept: dict[str, Picture | None] = {}
    for name, picture in (("overlay", pictures.overlay), ("slide", pictures.slide)):
        kept[name] = picture if picture is not None and len(picture.uri) <= share else None
        share -= len(picture.uri) if picture is not None and kept[name] is not None else 0
    patches = []
    for place, patch in pictures.patches:
        if len(patch.uri) > share:
            break
        share -= len(patch.uri)
        patches.append((place, patch))
    return Pictures(kept["slide"], kept["overlay"], patches, len(pictures.patches) - len(patches))
