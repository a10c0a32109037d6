"""What did it see? The patches with the largest and the smallest values on one sheet: rank, raw value, place.

One picture of what was taken for tissue and which patches were laid: one look tells whether it is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely import Polygon

from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import FAINT_INK, INK, PAPER, printable, short, signed
from wsi_ips.heatmaps.maps import Heat, check_same_slide, predictions_in_words
from wsi_ips.slides.base import WHITE, RgbImage, SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_picture, slide_window
from wsi_ips.tiling.tissue import TissueMask

PATCH_PX, MARGIN_PX, LINE_PX, TEXT_PX = 192, 16, 20, 14
COLUMNS = 5
MOST = 500
"""Of each kind on a sheet."""


@dataclass(frozen=True, slots=True)
class PatchSheet:
    """top: so many patches with the most attention, and as many with the least; or those that add most to an
    output and those that take most from it. Raises :class:`ConfigError`."""

    top: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MOST:
            raise ConfigError(f"top must be 1 to {MOST} for a sheet, not {self.top}")

    @property
    def suffix(self) -> str:
        return ".png"

    @property
    def needs_slide(self) -> bool:
        return True

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """See :meth:`wsi_ips.heatmaps.export.Exporter.write`."""
        if slide is None:
            raise ConfigError("a sheet of patches needs the slide")
        check_same_slide(slide, heat.coords)
        image = draw_sheet(slide, heat, self.top)
        with whole_file(path) as partial:
            image.save(partial, format="PNG")


def draw_sheet(slide: SlideReader, heat: Heat, top: int) -> Image.Image:
    """Ranks count from the largest value, 1, to the smallest; of equals, the first in the grid comes first."""
    order = np.argsort(-heat.values_N, kind="stable")
    most, least = "Most attention", "Least attention"
    if heat.output is not None:
        most, least = f"Adds most to {heat.output[1]}", f"Adds least, or takes most from {heat.output[1]}"
    sections = [
        (most, list(enumerate(order[:top].tolist(), start=1))),
        (
            least,
            [(len(order) - place, row) for place, row in enumerate(order[::-1][:top].tolist())],
        ),
    ]
    columns = min(COLUMNS, max(1, top))
    cell = (PATCH_PX + MARGIN_PX, PATCH_PX + 2 * LINE_PX + MARGIN_PX)
    lines = [heat.coords.slide_id, f"{heat.shown}; {len(order)} patches", *predictions_in_words(heat.result)]
    head = MARGIN_PX + LINE_PX * len(lines) + MARGIN_PX
    rows = [-(-len(patches) // columns) for _, patches in sections]
    width = MARGIN_PX + max(columns, 3) * cell[0]
    image = Image.new("RGB", (width, head + sum(2 * LINE_PX + each * cell[1] for each in rows)), PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, (MARGIN_PX, MARGIN_PX), lines)
    y = head
    for (title, patches), n_rows in zip(sections, rows, strict=True):
        draw.line([(MARGIN_PX, y), (width - MARGIN_PX, y)], FAINT_INK)
        _text(draw, (MARGIN_PX, y + LINE_PX // 2), [title])
        y += 2 * LINE_PX
        for place, (rank, row) in enumerate(patches):
            at = (MARGIN_PX + place % columns * cell[0], y + place // columns * cell[1])
            _draw_patch(image, slide, heat, at, rank=rank, row=row)
        y += n_rows * cell[1]
    return image


def _draw_patch(
    image: Image.Image, slide: SlideReader, heat: Heat, at: tuple[int, int], *, rank: int, row: int
) -> None:
    x, y = heat.coords.l0_xy_N2[row].tolist()
    image.paste(Image.fromarray(patch_picture(slide, (x, y), heat.coords.l0_patch)), at)
    said = short if heat.kind == "attention" else signed
    below = (at[0], at[1] + PATCH_PX + 3)
    _text(ImageDraw.Draw(image), below, [f"#{rank}   {said(float(heat.values_N[row]))}", f"({x}, {y})"])


def patch_picture(
    slide: SlideReader, l0_xy: tuple[int, int], l0_patch: float, *, side_px: int = PATCH_PX
) -> RgbImage:
    """(side_px, side_px, 3) uint8: the footprint at one exact scale, white beyond the slide's edge.

    l0_xy: its corner, l0_patch: its side, in level-0 pixels. Raises the reader's :class:`SlideReadError`.
    """
    l0_per_px = l0_patch / side_px
    patch = np.full((side_px, side_px, 3), WHITE, np.uint8)
    inside = [
        max(0, min(side_px, int((length - start) / l0_per_px)))
        for start, length in zip(l0_xy, slide.info.l0_size, strict=True)
    ]
    if min(inside) > 0 and min(l0_xy) >= 0:
        at_px = (l0_xy[0] / l0_per_px, l0_xy[1] / l0_per_px)
        patch[: inside[1], : inside[0]] = slide_window(
            slide, at_px, (inside[0], inside[1]), l0_per_px=l0_per_px
        )
    return patch


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str]) -> None:
    font = ImageFont.load_default(size=TEXT_PX)
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * LINE_PX), printable(line), INK if number == 0 else FAINT_INK, font)


SIDE_PX = 2000
"""Longer side of the slide in the picture, at most."""

LEAST_WIDTH_PX = 640
"""Width of the whole picture, so that the legend can be read."""

CONTOUR, PATCH, PREVIEW_INK, PREVIEW_PAPER = (0, 150, 60), (30, 90, 230), (25, 25, 25), (255, 255, 255)
SHADE = (0.45, 110)
"""What is no tissue keeps this share of its colour and gets the rest of this grey level."""

LEAST_PATCH_PX = 4
"""Patches that would be smaller in the picture are not outlined: they would hide the tissue."""

LEAST_FONT_PX = 18


def write_preview(
    path: Path, slide: SlideReader, coords: PatchCoords, mask: TissueMask, contours: Sequence[Polygon]
) -> None:
    """Write what :func:`draw_preview` draws as a JPEG, whole or not at all."""
    picture = draw_preview(slide, coords, mask, contours)
    with whole_file(path) as partial:
        picture.save(partial, quality=85, subsampling=0)  # thin lines keep their colour


def draw_preview(
    slide: SlideReader, coords: PatchCoords, mask: TissueMask, contours: Sequence[Polygon]
) -> Image.Image:
    """The slide with what is no tissue shaded, the contours, the patches, and a legend below it.

    ``contours`` are in level-0 pixels. A slide without patches or tissue is drawn as such. Raises the slide's
    :class:`SlideReadError` for a file that is damaged all over.
    """
    l0_size = coords.l0_size
    l0_per_px = max(1.0, max(l0_size) / SIDE_PX)
    size_px = (ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px))
    unread_HW = np.zeros(size_px[::-1], bool)
    picture_HWC = slide_picture(slide, size_px, l0_per_px=l0_per_px, unread_HW=unread_HW)
    picture = Image.fromarray(_shaded(picture_HWC, mask, l0_per_px))
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


def _shaded(picture_HWC: RgbImage, mask: TissueMask, l0_per_px: float) -> RgbImage:
    """Darker where there is no tissue; on a dark slide, lighter."""
    height, width = picture_HWC.shape[:2]
    rows, columns = (
        _mask_pixels(count, l0_per_px / scale, length)
        for count, scale, length in zip(
            (height, width), mask.l0_per_px[::-1], mask.mask_HW.shape, strict=True
        )
    )
    share, grey = SHADE
    shades = (np.arange(256) * share + grey * (1 - share)).astype(np.uint8)
    tissue_HW1 = mask.mask_HW[np.ix_(rows, columns)][..., None]
    return np.asarray(np.where(tissue_HW1, picture_HWC, shades[picture_HWC]))


def _mask_pixels(count: int, scale: float, length: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(count) + 0.5) * scale).astype(np.intp), length - 1)


def _with_legend(picture: Image.Image, coords: PatchCoords, mask: TissueMask) -> Image.Image:
    um = coords.patch_px * coords.patch_mpp
    lines = [
        (PREVIEW_INK, f"{coords.slide_id}: {mask.mask_HW.mean():.1%} of the slide is tissue"),
        (
            PATCH,
            f"{len(coords)} patches of {coords.patch_px} px at {coords.patch_mpp:.4g} µm ({um:.4g} µm wide)",
        ),
        (CONTOUR, "outline of the tissue; what is no tissue is shaded"),
    ]
    if mask.why_empty is not None:
        lines.append((PREVIEW_INK, mask.why_empty[0]))
    width = max(picture.width, LEAST_WIDTH_PX)
    unit = max(LEAST_FONT_PX, width // 70)
    font, row = ImageFont.load_default(size=unit), round(1.6 * unit)
    whole = Image.new("RGB", (width, picture.height + row * len(lines) + unit), PREVIEW_PAPER)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for number, (colour, line) in enumerate(lines):
        y = picture.height + unit // 2 + number * row
        if colour != PREVIEW_INK:
            draw.rectangle([unit, y + 2, 2 * unit, y + unit], outline=colour, width=3)
        draw.text((unit if colour == PREVIEW_INK else 2.6 * unit, y), printable(line), PREVIEW_INK, font)
    return whole
