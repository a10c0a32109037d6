"""One picture of a slide's tissue and patches, to check both at a glance: :func:`write_preview`."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely import Polygon

from wsi_ips.heatmaps.display_scale import printable
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.tiling.tissue import TissueMask

SIDE_PX = 2000
"""Longer side of the slide in the picture, at most."""

LEAST_WIDTH_PX = 640
"""Width of the whole picture, at least, so that the legend can be read."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

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
    l0_per_px = max(1.0, max(l0_size) / SIDE_PX)
    size_px = (ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px))
    unread_HW = np.zeros(size_px[::-1], bool)
    picture_HWC = slide_picture(slide, size_px, l0_per_px=l0_per_px, unread_HW=unread_HW)
    picture = _shaded(picture_HWC, mask, l0_per_px)
    draw = ImageDraw.Draw(picture)
    if coords.l0_patch / l0_per_px >= LEAST_PATCH_PX:
        for x, y in coords.l0_exact_corners() / l0_per_px:
            side = coords.l0_patch / l0_per_px
            draw.rectangle([x, y, x + side, y + side], outline=PATCH, width=2)
    for polygon in contours:
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.asarray(ring.coords) / l0_per_px
            draw.line([tuple(point) for point in points.tolist()], fill=CONTOUR, width=3)
    return _with_legend(picture, coords, mask)


def _shaded(picture_HWC: RgbImage, mask: TissueMask, l0_per_px: float) -> Image.Image:
    """Darken what is no tissue; on a dark slide, lighten it."""
    height, width = picture_HWC.shape[:2]
    rows, columns = (
        _mask_pixels(count, l0_per_px / scale, length)
        for count, scale, length in zip(
            (height, width), mask.l0_per_px[::-1], mask.mask_HW.shape, strict=True
        )
    )
    share, grey = SHADE
    shades = (np.arange(256) * share + grey * (1 - share)).astype(np.uint8)
    picture, tissue_HW = Image.fromarray(picture_HWC), mask.mask_HW[np.ix_(rows, columns)]
    return Image.composite(picture, picture.point(shades.tolist() * 3), Image.fromarray(tissue_HW))


def _mask_pixels(count: int, scale: float, length: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(count) + 0.5) * scale).astype(np.intp), length - 1)


def _with_legend(picture: Image.Image, coords: PatchCoords, mask: TissueMask) -> Image.Image:
    um = coords.patch_px * coords.patch_mpp
    lines = [
        (INK, f"{coords.slide_id}: {mask.mask_HW.mean():.1%} of the slide is tissue"),
        (
            PATCH,
            f"{len(coords)} patches of {coords.patch_px} px at {coords.patch_mpp:.4g} µm ({um:.4g} µm wide)",
        ),
        (CONTOUR, "outline of the tissue; what is no tissue is shaded"),
    ]
    if mask.why_empty is not None:
        lines.append((INK, mask.why_empty[0]))
    return with_legend(picture, lines)


def with_legend(picture: Image.Image, lines: Sequence[tuple[Colour, str]]) -> Image.Image:
    """The picture with these lines of text below it, each behind a box of its colour; ink has no box."""
    width = max(picture.width, LEAST_WIDTH_PX)
    unit = max(LEAST_FONT_PX, width // 70)
    font, row = ImageFont.load_default(size=unit), round(1.6 * unit)
    whole = Image.new("RGB", (width, picture.height + row * len(lines) + unit), PAPER)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for number, (colour, line) in enumerate(lines):
        y = picture.height + unit // 2 + number * row
        if colour != INK:
            draw.rectangle([unit, y + 2, 2 * unit, y + unit], outline=colour, width=3)
        draw.text((unit if colour == INK else 2.6 * unit, y), printable(line), INK, font)
    return whole
