"""A picture of where everything lies that was read of a slide, to check a run: :func:`write_debug_overlay`.

It shows the slide with its grid, its patches, the patches that were kept with their ids, and the outline of the
tissue. Nothing is coloured by a map: :mod:`wsi_ips.heatmaps.overlay` does that.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely import Polygon

from wsi_ips.heatmaps.tissue_preview import CONTOUR, INK, LEAST_PATCH_PX, PATCH, SIDE_PX, Colour, with_legend
from wsi_ips.slides.base import SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_picture

KEPT, GRID = (225, 30, 30), (150, 150, 150)
"""Colours of kept patches and of the grid."""

LEAST_KEPT_PX = 7
"""Kept patches are drawn at least this large, so that they are found on a large slide."""

LABELLED = 200
"""How many of the kept patches get their id written beside them; more would cover the slide."""


def write_debug_overlay(
    path: Path,
    slide: SlideReader,
    coords: PatchCoords,
    *,
    kept_ids: Sequence[int] = (),
    contours: Sequence[Polygon] = (),
    notes: Sequence[str] = (),
) -> None:
    """Draw the picture of :func:`draw_debug_overlay` and write it as a PNG, whole or not at all."""
    picture = draw_debug_overlay(slide, coords, kept_ids=kept_ids, contours=contours, notes=notes)
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")


def draw_debug_overlay(
    slide: SlideReader,
    coords: PatchCoords,
    *,
    kept_ids: Sequence[int] = (),
    contours: Sequence[Polygon] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """The slide with grid, patches, kept patches, contours, and a legend below.

    Args:
        slide: The slide.
        coords: Its patches. A grid is drawn if they lie on one.
        kept_ids: Ids of the kept patches, the best first; the first 200 of them are labelled.
        contours: Outlines of the tissue in level-0 pixels.
        notes: Further lines of the legend.

    Raises the reader's :class:`SlideReadError` for a file that is damaged all over, and ``KeyError`` for a kept
    patch that is not one of the patches.
    """
    l0_per_px = max(1.0, max(coords.l0_size) / SIDE_PX)
    size_px = (ceil(coords.l0_size[0] / l0_per_px), ceil(coords.l0_size[1] / l0_per_px))
    unread_HW = np.zeros(size_px[::-1], bool)
    picture = Image.fromarray(slide_picture(slide, size_px, l0_per_px=l0_per_px, unread_HW=unread_HW))
    draw = ImageDraw.Draw(picture)
    side = coords.l0_patch / l0_per_px
    step = (coords.patch_px - coords.overlap_px) * coords.patch_mpp / coords.slide_mpp / l0_per_px
    has_grid = coords.lies_on_grid and step >= LEAST_PATCH_PX
    if has_grid:
        _draw_grid(draw, size_px, step)
    xy_N2 = coords.l0_exact_corners() / l0_per_px
    if side >= LEAST_PATCH_PX:
        for x, y in xy_N2:
            draw.rectangle([x, y, x + side, y + side], outline=PATCH, width=2)
    for polygon in contours:
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.asarray(ring.coords) / l0_per_px
            draw.line([tuple(point) for point in points.tolist()], fill=CONTOUR, width=3)
    ids = np.asarray(kept_ids, np.int64)
    _draw_kept(draw, xy_N2[coords.rows(ids)], ids, side, size_px)
    return with_legend(
        picture, _legend(coords, len(ids), side, has_grid, outlined=bool(contours), notes=notes)
    )


def _draw_grid(draw: ImageDraw.ImageDraw, size_px: tuple[int, int], step: float) -> None:
    """Lines at every step from the slide's corner."""
    width, height = size_px
    for number in range(int(width / step) + 1):
        draw.line([number * step, 0, number * step, height], fill=GRID, width=1)
    for number in range(int(height / step) + 1):
        draw.line([0, number * step, width, number * step], fill=GRID, width=1)


def _draw_kept(
    draw: ImageDraw.ImageDraw,
    xy_M2: NDArray[np.float64],
    ids_M: NDArray[np.int64],
    side: float,
    size_px: tuple[int, int],
) -> None:
    """Boxes around the kept patches, and the ids beside the best of them. The best are drawn last, on top."""
    grown = max(0.0, LEAST_KEPT_PX - side) / 2
    font = ImageFont.load_default(size=min(30, max(16, round(side / 8))))
    for x, y in xy_M2[::-1].tolist():
        box = [x - grown, y - grown, x + side + grown, y + side + grown]
        draw.rectangle(box, outline=KEPT, width=3)
    for (x, y), patch_id in list(zip(xy_M2.tolist(), ids_M.tolist(), strict=True))[:LABELLED]:
        _draw_label(draw, (x, y), side, str(patch_id), font, size_px)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    side: float,
    label: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size_px: tuple[int, int],
) -> None:
    """Write a label into the upper left corner of its patch, or to the right of one that is too small for it."""
    x, y = xy
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    if right + 12 <= side and bottom + 10 <= side:
        at = (x + 6, y + 5)
    else:
        # A label beside the right or lower edge stands to the left of its patch, or higher.
        beyond = x + side + 4 + right > size_px[0] - 2
        at = (x - 4 - right if beyond else x + side + 4, min(y, size_px[1] - 2 - bottom))
    box = [left + at[0] - 2, top + at[1] - 1, right + at[0] + 2, bottom + at[1] + 1]
    draw.rectangle(box, fill=(255, 255, 255))
    draw.text(at, label, KEPT, font)


def _legend(
    coords: PatchCoords, kept: int, side: float, has_grid: bool, *, outlined: bool, notes: Sequence[str]
) -> list[tuple[Colour, str]]:
    size = f"{coords.l0_size[0]}x{coords.l0_size[1]} px of {coords.slide_mpp:.4g} µm"
    lines: list[tuple[Colour, str]] = [(INK, f"{coords.slide_id}: {size}")]
    um = coords.patch_px * coords.patch_mpp
    small = "" if side >= LEAST_PATCH_PX else "; they are too small here to be outlined"
    lines.append(
        (
            PATCH,
            f"{len(coords)} patches of {coords.patch_px} px at {coords.patch_mpp:.4g} µm, {um:.4g} µm wide{small}",
        )
    )
    if kept:
        labelled = "with their ids" if kept <= LABELLED else f"the best {LABELLED} with their ids"
        lines.append((KEPT, f"{kept} kept patches, {labelled}"))
    if has_grid:
        lines.append((GRID, f"grid of {coords.g_size[0]} columns and {coords.g_size[1]} rows"))
    if outlined:
        lines.append((CONTOUR, "outline of the tissue"))
    return [*lines, *((INK, note) for note in notes)]
