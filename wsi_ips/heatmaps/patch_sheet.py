"""The patches with the largest and the smallest values of a map on one sheet, each with its rank, value and place.

:class:`PatchSheet` is the export; :func:`patch_picture` draws a single patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.errors import ConfigError, count
from wsi_ips.heatmaps.display_scale import FAINT_INK, INK, PAPER, short, signed
from wsi_ips.heatmaps.lettering import printable, write_text
from wsi_ips.heatmaps.maps import Heat, check_same_slide, predictions_in_words
from wsi_ips.slides.base import WHITE, RgbImage, SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.picture import slide_window

PATCH_PX, MARGIN_PX, LINE_PX, TEXT_PX = 192, 16, 20, 14
"""Sizes on the sheet, in pixels."""
COLUMNS = 5
"""Patches side by side, at most."""
MOST = 500
"""The most patches of each kind on a sheet."""


@dataclass(frozen=True, slots=True)
class PatchSheet:
    """A sheet of the ``top`` patches with the most attention and as many with the least.

    For contributions and gradients, it shows the patches that add most to the output and those that take most from
    it. Raises
    :class:`ConfigError` if ``top`` is not 1 to 500.
    """

    top: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MOST:
            raise ConfigError(f"top must be 1 to {MOST} for a sheet, not {self.top}")

    @property
    def suffix(self) -> str:
        """``.png``"""
        return ".png"

    @property
    def needs_slide(self) -> bool:
        """True: the sheet shows the slide's pixels."""
        return True

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write a sheet for one map, as :class:`wsi_ips.heatmaps.export.Exporter` describes.

        Raises :class:`ConfigError` without the slide.
        """
        if slide is None:
            raise ConfigError("a sheet of patches needs the slide")
        check_same_slide(slide, heat.result)
        image = draw_sheet(slide, heat, self.top)
        with whole_file(path) as partial:
            image.save(partial, format="PNG")


def draw_sheet(slide: SlideReader, heat: Heat, top: int) -> Image.Image:
    """The sheet as a picture.

    Ranks count from 1 for the largest value to N for the smallest; of equal values, the first in the grid comes
    first. Raises the reader's :class:`SlideReadError`.
    """
    order = np.argsort(-heat.values_N, kind="stable")
    most, least = "Most attention", "Least attention"
    if heat.output is not None:
        most, least = f"Adds most to {heat.output[1]}", f"Adds least, or takes most from {heat.output[1]}"
        if heat.kind == "gradient":
            most, least = f"Largest gradient for {heat.output[1]}", f"Smallest gradient for {heat.output[1]}"
    sections = [
        (most, list(enumerate(order[:top].tolist(), start=1))),
        (
            least,
            [(len(order) - place, row) for place, row in enumerate(order[::-1][:top].tolist())],
        ),
    ]
    columns = min(COLUMNS, max(1, top))
    cell = (PATCH_PX + MARGIN_PX, PATCH_PX + 2 * LINE_PX + MARGIN_PX)
    lines = [
        heat.coords.slide_id,
        f"{heat.shown}; {count(len(order), 'patch', 'patches')}",
        *predictions_in_words(heat.result),
    ]
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
    """A patch at one exact scale, (side_px, side_px, 3) uint8, white beyond the slide's edge.

    ``l0_xy`` is its top-left corner (x, y) and ``l0_patch`` its side, in level-0 pixels. Raises the reader's
    :class:`SlideReadError`.
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
        ink = INK if number == 0 else FAINT_INK
        write_text(draw, (at[0], at[1] + number * LINE_PX), printable(line), ink, font)
