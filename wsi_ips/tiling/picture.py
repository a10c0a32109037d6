"""The slide at one exact scale, in memory that grows with the picture and not with the slide."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.slides.base import WHITE, RgbImage, SlideReader
from wsi_ips.units import Size

logger = logging.getLogger(__name__)

BLOCK_PX = 1024
"""Side of the region of a level that is read at once, about: 25 MB while it is averaged."""
PIECE_PX = 256
"""Side of the area of level 0 that is white where it cannot be read, at most; tiles are about as large."""
MOST_FAILURES = 200
"""Failed reads in one picture before the file is given up: a damaged tile costs about ten."""


def slide_picture(
    slide: SlideReader, size_px: Size, *, l0_per_px: float, unread_HW: NDArray[np.bool_] | None = None
) -> RgbImage:
    """(height, width, 3) uint8: the window of :func:`slide_window` that is the whole picture.

    Raises the reader's :class:`SlideReadError` where nothing of the slide can be read, with ``unread_HW`` too:
    such a picture would be all white.
    """
    picture_HWC, error = _window(slide, (0, 0), size_px, l0_per_px, unread_HW)
    if error is not None and unread_HW is not None and unread_HW.all():
        raise error
    return picture_HWC


def thumbnail(slide: SlideReader, *, side_px: int) -> RgbImage:
    """(height, width, 3) uint8: the whole slide, its longer side ``side_px`` pixels; a smaller slide as it is.

    Made from the slide's levels. Raises the reader's :class:`SlideReadError` where they cannot be read.
    """
    width, height = slide.info.l0_size
    l0_per_px = max(1.0, max(width, height) / side_px)
    size = max(1, round(width / l0_per_px)), max(1, round(height / l0_per_px))
    return slide_picture(slide, size, l0_per_px=l0_per_px)


def band_height(slide: SlideReader, *, l0_per_px: float) -> int:
    """Rows of a picture that are best made at once: those of one block."""
    return _step(slide, slide.info.level_for(l0_per_px), l0_per_px)


def slide_window(
    slide: SlideReader,
    at_px: tuple[float, float],
    size_px: Size,
    *,
    l0_per_px: float,
    unread_HW: NDArray[np.bool_] | None = None,
) -> RgbImage:
    """(height, width, 3) uint8, the slide's pixels from ``at_px`` (x, y) on: each the mean of the area it covers.

    ``at_px`` may lie between pixels, but in the slide.

    Pixel (i, j) covers the level-0 area [i, i + 1) * l0_per_px by [j, j + 1) * l0_per_px, as far as it lies in
    the slide: the scale is never stretched to whole pixels, which would move the far corner. Read block by
    block from the coarsest level that is fine enough, so that a large slide of one level fits too. A block that
    cannot be read there is read from the finer levels. With ``unread_HW``, (height, width), what of level 0 cannot
    be read is white, as patches are, and made True there.

    Raises the reader's :class:`SlideReadError` without it, and for a file that is damaged all over.
    """
    return _window(slide, at_px, size_px, l0_per_px, unread_HW)[0]


def _window(
    slide: SlideReader,
    at_px: tuple[float, float],
    size_px: Size,
    l0_per_px: float,
    unread_HW: NDArray[np.bool_] | None,
) -> tuple[RgbImage, SlideReadError | None]:
    """What :func:`slide_window` gives, and why the last of the reads failed that did."""
    l0_columns, l0_rows = (
        np.minimum((first + np.arange(pixels + 1)) * l0_per_px, l0_length)
        for first, pixels, l0_length in zip(at_px, size_px, slide.info.l0_size, strict=True)
    )
    marks_HW = np.zeros(size_px[::-1], bool) if unread_HW is None else unread_HW
    canvas = _Canvas(np.empty((size_px[1], size_px[0], 3), np.uint8), marks_HW, l0_columns, l0_rows)
    painter = _Painter(slide, l0_per_px, white_where_unread=unread_HW is not None)
    painter.paint(canvas, slide.info.level_for(l0_per_px))
    if painter.failures:
        logger.warning(
            "%s: %d reads for a picture failed; it is made of other levels, or white there; the last: %s",
            slide.info.path,
            painter.failures,
            "" if painter.last is None else painter.last.args[1],
        )
    return canvas.picture_HWC, painter.last


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A picture, or a part of one: pixel (i, j) covers l0_columns[i] to [i + 1] by l0_rows[j] to [j + 1]."""

    picture_HWC: RgbImage
    unread_HW: NDArray[np.bool_]
    l0_columns: NDArray[np.float64]
    l0_rows: NDArray[np.float64]

    def part(self, top: int, left: int, height: int, width: int) -> "_Canvas":
        return _Canvas(
            self.picture_HWC[top : top + height, left : left + width],
            self.unread_HW[top : top + height, left : left + width],
            self.l0_columns[left : left + width + 1],
            self.l0_rows[top : top + height + 1],
        )


@dataclass(slots=True)
class _Painter:
    slide: SlideReader
    l0_per_px: float
    white_where_unread: bool
    failures: int = 0
    last: SlideReadError | None = None
    """Why the last of them failed."""

    def paint(self, canvas: _Canvas, level: int) -> None:
        """Block by block; what this level does not give is taken from finer ones."""
        step = _step(self.slide, level, self.l0_per_px)
        height, width = canvas.unread_HW.shape
        for top in range(0, height, step):
            for left in range(0, width, step):
                block = canvas.part(top, left, step, step)
                if self._painted(block, level):
                    continue
                if level > 0:
                    self.paint(block, level - 1)
                else:
                    self._in_pieces(block)

    def _painted(self, canvas: _Canvas, level: int) -> bool:
        try:
            canvas.picture_HWC[:] = _block(self.slide, level, canvas.l0_columns, canvas.l0_rows)
        except SlideInterrupted:
            raise
        except SlideReadError as error:
            self.failures, self.last = self.failures + 1, error
            if self.failures > MOST_FAILURES or (level == 0 and not self.white_where_unread):
                raise
            return False
        return True

    def _in_pieces(self, canvas: _Canvas) -> None:
        """Half by half of what level 0 does not give, as much of it as can be read."""
        height, width = canvas.unread_HW.shape
        if max(height, width) == 1 or max(height, width) * self.l0_per_px <= PIECE_PX:
            canvas.picture_HWC[:] = WHITE
            canvas.unread_HW[:] = True
            return
        if height >= width:
            half = height // 2
            halves = canvas.part(0, 0, half, width), canvas.part(half, 0, height - half, width)
        else:
            half = width // 2
            halves = canvas.part(0, 0, height, half), canvas.part(0, half, height, width - half)
        for each in halves:
            if not self._painted(each, level=0):
                self._in_pieces(each)


def _step(slide: SlideReader, level: int, l0_per_px: float) -> int:
    return max(1, int(BLOCK_PX * slide.info.levels[level].downsample / l0_per_px))


def _block(
    slide: SlideReader, level: int, l0_columns: NDArray[np.float64], l0_rows: NDArray[np.float64]
) -> RgbImage:
    lv_size, downsample = slide.info.levels[level].size, slide.info.levels[level].downsample
    lv_columns, lv_rows = (
        edges * (lv_length / l0_length)
        for edges, lv_length, l0_length in zip(
            (l0_columns, l0_rows), lv_size, slide.info.l0_size, strict=True
        )
    )
    starts = [int(edges[0]) for edges in (lv_columns, lv_rows)]
    # The level's own end, and not the white beyond it, ends the last pixel.
    ends = [
        min(int(np.ceil(edges[-1])), length)
        for edges, length in zip((lv_columns, lv_rows), lv_size, strict=True)
    ]
    l0_at = (round(starts[0] * downsample), round(starts[1] * downsample))
    pixels = slide.read(l0_at, level=level, size_px=(ends[0] - starts[0], ends[1] - starts[1]))
    if _whole_pixels(lv_columns) and _whole_pixels(lv_rows):
        return pixels
    by_row = _means_between(pixels, lv_rows - starts[1])
    by_column = _means_between(np.ascontiguousarray(by_row.swapaxes(0, 1)), lv_columns - starts[0])
    return np.rint(by_column.swapaxes(0, 1)).clip(0, 255).astype(np.uint8)


def _whole_pixels(edges: NDArray[np.float64]) -> bool:
    """Each pixel of the picture is one of the level: nothing to average."""
    return bool((edges == edges[0] + np.arange(len(edges))).all() and edges[0] == int(edges[0]))


def _means_between(
    pixels: NDArray[np.uint8] | NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means over [edges[i], edges[i + 1]) along the first axis, fractions of pixels counted as such."""
    sums = np.zeros((len(pixels) + 1, *pixels.shape[1:]))
    for index, line in enumerate(pixels):  # ten times as fast as np.cumsum along this axis
        np.add(sums[index], line, out=sums[index + 1])
    whole = np.minimum(edges.astype(np.intp), len(pixels) - 1)
    part = (edges - whole)[:, None, None]
    return np.asarray(np.diff(sums[whole] + part * pixels[whole], axis=0) / np.diff(edges)[:, None, None])
