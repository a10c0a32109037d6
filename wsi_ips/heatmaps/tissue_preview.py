"""One picture of a slide's tissue and patches, to check both at a glance: :func:`write_preview`."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely import Polygon

from wsi_ips.errors import count
from wsi_ips.heatmaps.lettering import printable, write_text
from wsi_ips.slides.base import SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.quick_picture import STRIP_ROWS, RgbxImage, quick_picture
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.units import Size

SIDE_PX = 2000
"""Longer side of the slide in the picture, at most."""

ENOUGH_PX = 1000
"""Longer side of the slide in the picture from which on ``PX_OF_MASK`` bounds it."""

PX_OF_MASK = 2.0
"""Pixels of the picture along the side of a pixel of the mask: finer ones show no more of what was found."""

LEAST_WIDTH_PX = 640
"""Width of the whole picture, at least, so that the legend can be read."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

Line = tuple[Colour, str]
"""A line of a legend: the colour that it explains, and its words."""

CONTOUR, PATCH, INK, PAPER = (0, 150, 60), (30, 90, 230), (25, 25, 25), (255, 255, 255)
"""Colours of contours, patches, text and the background."""
SHADE = (0.45, 110)
"""What is no tissue keeps this share of its colour and gets the rest from this grey level."""

LEAST_PATCH_PX = 4
"""Patches that are smaller than this in the picture are not outlined, for they would hide the tissue."""

LEAST_FONT_PX = 18
"""Height of the legend's letters, at least."""


def write_preview(
    path: Path, slide: SlideReader, coords: PatchCoords, mask: TissueMask, contours: Sequence[Polygon]
) -> None:
    """Draw the preview of :func:`draw_preview` and write it as a JPEG, whole or not at all."""
    picture = draw_preview(slide, coords, mask, contours)
    with whole_file(path) as partial:
        picture.save(partial, quality=85, subsampling=0)  # thin lines keep their colour


def draw_preview(
    slide: SlideReader, coords: PatchCoords, mask: TissueMask, contours: Sequence[Polygon]
) -> Image.Image:
    """The slide with everything that is no tissue shaded, the contours, the patches, and a legend below.

    ``contours`` are in level-0 pixels. A slide may have no tissue or patches. Raises the reader's
    :class:`SlideReadError` for a file that is damaged all over.
    """
    l0_size = coords.l0_size
    l0_side = max(l0_size)
    l0_per_px = max(1.0, l0_side / SIDE_PX, min(l0_side / ENOUGH_PX, min(mask.l0_per_px) / PX_OF_MASK))
    width, height = ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px)
    lines = _legend(coords, mask)
    unit, page_px = _legend_size((width, height), lines)
    page_HW4 = np.full((page_px[1], page_px[0], 4), max(PAPER), np.uint8)
    picture_HW4 = page_HW4[:height, :width]
    quick_picture(slide, picture_HW4, l0_per_px=l0_per_px, unread_HW=np.zeros((height, width), bool))
    _shade(picture_HW4, mask, l0_per_px)
    # Pillow keeps three channels in four bytes too, so that nothing is repacked.
    picture = Image.frombytes("RGB", page_px, page_HW4.data, "raw", "RGBX", 0, 1)
    draw = ImageDraw.Draw(picture)
    if coords.l0_patch / l0_per_px >= LEAST_PATCH_PX:
        for x, y in coords.l0_exact_corners() / l0_per_px:
            side = coords.l0_patch / l0_per_px
            draw.rectangle([x, y, x + side, y + side], outline=PATCH, width=2)
    for polygon in contours:
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.asarray(ring.coords) / l0_per_px
            draw.line([tuple(point) for point in points.tolist()], fill=CONTOUR, width=3)
    # Patches may reach beyond the slide, and no line is to cross the legend.
    draw.rectangle([0, height, *page_px], fill=PAPER)
    draw.rectangle([width, 0, *page_px], fill=PAPER)
    _write_legend(picture, lines, unit=unit, below=height)
    return picture


def _shade(picture_HW4: RgbxImage, mask: TissueMask, l0_per_px: float) -> None:
    """Darken what is no tissue; on a dark slide, lighten it."""
    height, width = picture_HW4.shape[:2]
    rows, columns = (
        _mask_pixels(count, l0_per_px / scale, length)
        for count, scale, length in zip(
            (height, width), mask.l0_per_px[::-1], mask.mask_HW.shape, strict=True
        )
    )
    share, grey = SHADE
    share_16, rest_16 = np.uint16(round(256 * share)), np.uint16(round(256 * grey * (1 - share)))
    bare_hW = ~mask.mask_HW.take(columns, axis=1)
    for top in range(0, height, STRIP_ROWS):
        strip = picture_HW4[top : top + STRIP_ROWS]
        shaded = np.multiply(strip, share_16, dtype=np.uint16)
        shaded += rest_16
        shaded >>= np.uint16(8)
        bare = bare_hW.take(rows[top : top + STRIP_ROWS], axis=0)
        pixels, of_shade = (each.view(np.uint32)[..., 0] for each in (strip, shaded.astype(np.uint8)))
        np.copyto(pixels, of_shade, where=bare)


def _mask_pixels(count: int, scale: float, length: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(count) + 0.5) * scale).astype(np.intp), length - 1)


def _legend(coords: PatchCoords, mask: TissueMask) -> list[Line]:
    um = coords.patch_px * coords.patch_mpp
    lines = [
        (INK, f"{coords.slide_id}: {mask.mask_HW.mean():.1%} of the slide is tissue"),
        (
            PATCH,
            f"{count(len(coords), 'patch', 'patches')} of {coords.patch_px} px at {coords.patch_mpp:.4g} µm "
            f"({um:.4g} µm wide)",
        ),
        (CONTOUR, "outline of the tissue; what is no tissue is shaded"),
    ]
    if mask.why_empty is not None:
        lines.append((INK, mask.why_empty[0]))
    return lines


def with_legend(picture: Image.Image, lines: Sequence[Line]) -> Image.Image:
    """The picture with these lines of text below it, each behind a box of its colour; ink has no box."""
    unit, page_px = _legend_size(picture.size, lines)
    whole = Image.new("RGB", page_px, PAPER)
    whole.paste(picture, (0, 0))
    _write_legend(whole, lines, unit=unit, below=picture.height)
    return whole


def _legend_size(size_px: Size, lines: Sequence[Line]) -> tuple[int, Size]:
    """The unit of the legend in pixels, and (width, height) of a picture of this size with its legend below."""
    width = max(size_px[0], LEAST_WIDTH_PX)
    unit = max(LEAST_FONT_PX, width // 70)
    return unit, (width, size_px[1] + round(1.6 * unit) * len(lines) + unit)


def _write_legend(page: Image.Image, lines: Sequence[Line], *, unit: int, below: int) -> None:
    font, row = ImageFont.load_default(size=unit), round(1.6 * unit)
    draw = ImageDraw.Draw(page)
    for number, (colour, line) in enumerate(lines):
        y = below + unit // 2 + number * row
        if colour != INK:
            draw.rectangle([unit, y + 2, 2 * unit, y + unit], outline=colour, width=3)
        write_text(draw, (unit if colour == INK else 2.6 * unit, y), printable(line), INK, font)
