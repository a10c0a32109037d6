"""A slide, or a window of it, as a picture at one exact scale.

Start with :func:`slide_picture`, :func:`slide_window` or :func:`thumbnail`.

Memory grows with the picture and not with the slide: it is read block by block.
"""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.slides.base import WHITE, RgbImage, SlideReader
from wsi_ips.units import Size

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)

BLOCK_PX = 1024
"""Approximate side of the region of a level that is read at once; it takes 25 MB while it is averaged."""
STRIP_ROWS = 32
"""Rows of a picture that are averaged at once."""
PIECE_PX = 256
"""Largest side, in level-0 pixels, of an area that is made white because it cannot be read.

Tiles are about as large.
"""
MOST_FAILURES = 200
"""Failed reads in one picture after which the file is given up. One damaged tile costs about ten."""


def slide_picture(
    slide: SlideReader, size_px: Size, *, l0_per_px: float, unread_HW: NDArray[np.bool_] | None = None
) -> RgbImage:
    """The whole slide as a picture, (height, width, 3) uint8 for ``size_px`` (width, height).

    Pixels cover ``l0_per_px`` level-0 pixels a side and are made as :func:`slide_window` describes. Where
    ``unread_HW``, (height, width) bool, is given, it is set to True at the pixels that cannot be read, which are
    white.

    Raises the reader's :class:`SlideReadError` where the slide cannot be read: without ``unread_HW`` at the first
    such place, with it where nothing at all can be read, for such a picture would be all white.
    """
    picture_HWC, error = _window(slide, (0, 0), size_px, l0_per_px, unread_HW)
    if error is not None and unread_HW is not None and unread_HW.all():
        raise error
    return picture_HWC


def thumbnail(slide: SlideReader, *, side_px: int) -> RgbImage:
    """The whole slide as a picture whose longer side has ``side_px`` pixels, (height, width, 3) uint8.

    A slide that is smaller is not enlarged. Raises the reader's :class:`SlideReadError` where the slide cannot be
    read.
    """
    width, height = slide.info.l0_size
    l0_per_px = max(1.0, max(width, height) / side_px)
    size = max(1, round(width / l0_per_px)), max(1, round(height / l0_per_px))
    return slide_picture(slide, size, l0_per_px=l0_per_px)


def band_height(slide: SlideReader, *, l0_per_px: float) -> int:
    """How many rows of a picture at this scale are best made at once: those of one block."""
    return _step(slide, slide.info.level_for(l0_per_px), l0_per_px)


def slide_window(
    slide: SlideReader,
    at_px: tuple[float, float],
    size_px: Size,
    *,
    l0_per_px: float,
    unread_HW: NDArray[np.bool_] | None = None,
) -> RgbImage:
    """A window of the slide as a picture, (height, width, 3) uint8.

    Each pixel is the mean of the area that it covers.

    ``at_px`` (x, y) is the window's top-left corner in pixels of the picture; it may lie between pixels, but has
    to lie in the slide. ``size_px`` is (width, height), ``l0_per_px`` the side of a pixel in level-0 pixels.

    Pixel (i, j) of the whole picture covers the level-0 area [i, i + 1) * ``l0_per_px`` by [j, j + 1) *
    ``l0_per_px``, as far as it lies in the slide. The scale is never stretched to whole pixels, which would move
    the far corner. Blocks are read from the coarsest level that is fine enough, so that a large slide of one level
    can be read too; a block that cannot be read there is read from the finer levels.

    With ``unread_HW``, (height, width) bool, what cannot be read at level 0 is white, as in patches, and True
    there. Raises the reader's :class:`SlideReadError` where ``unread_HW`` is not given, and for a file that is
    damaged all over.
    """
    return _window(slide, at_px, size_px, l0_per_px, unread_HW)[0]


def _window(
    slide: SlideReader,
    at_px: tuple[float, float],
    size_px: Size,
    l0_per_px: float,
    unread_HW: NDArray[np.bool_] | None,
) -> tuple[RgbImage, SlideReadError | None]:
    """The window's picture, and the error of the last read that failed, if any."""
    marks_HW = np.zeros(size_px[::-1], bool) if unread_HW is None else unread_HW
    picture_HWC = np.empty((size_px[1], size_px[0], 3), np.uint8)
    canvas = Canvas.of_slide(slide, picture_HWC, marks_HW, l0_per_px=l0_per_px, at_px=at_px)
    painter = Painter(slide, l0_per_px, white_where_unread=unread_HW is not None)
    painter.paint(canvas, slide.info.level_for(l0_per_px))
    painter.tell()
    return canvas.picture_HWC, painter.last


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture, or a part of one.

    Pixel (i, j) covers level-0 columns ``l0_columns[i]`` to ``[i + 1]``, and rows likewise. ``unread_HW``,
    (height, width) bool, is True at pixels that cannot be read.
    """

    picture_HWC: RgbImage
    unread_HW: NDArray[np.bool_]
    l0_columns: NDArray[np.float64]
    l0_rows: NDArray[np.float64]

    @classmethod
    def of_slide(
        cls,
        slide: SlideReader,
        picture_HWC: RgbImage,
        unread_HW: NDArray[np.bool_],
        *,
        l0_per_px: float,
        at_px: tuple[float, float] = (0, 0),
    ) -> "Canvas":
        """A canvas whose top-left corner is at ``at_px`` (x, y) of the slide's whole picture."""
        height, width = unread_HW.shape
        l0_columns, l0_rows = (
            np.minimum((first + np.arange(pixels + 1)) * l0_per_px, l0_length)
            for first, pixels, l0_length in zip(at_px, (width, height), slide.info.l0_size, strict=True)
        )
        return cls(picture_HWC, unread_HW, l0_columns, l0_rows)

    def part(self, top: int, left: int, height: int, width: int) -> "Canvas":
        """A part of the picture; what is painted there is painted here."""
        return Canvas(
            self.picture_HWC[top : top + height, left : left + width],
            self.unread_HW[top : top + height, left : left + width],
            self.l0_columns[left : left + width + 1],
            self.l0_rows[top : top + height + 1],
        )

    def rgb(self) -> "Canvas":
        """The first three channels."""
        return replace(self, picture_HWC=self.picture_HWC[..., :3])


@dataclass(slots=True)
class Painter:
    """Fills a canvas from the slide's levels and counts the reads that fail."""

    slide: SlideReader
    l0_per_px: float
    white_where_unread: bool
    failures: int = 0
    last: SlideReadError | None = None
    """The error of the last read that failed."""

    def tell(self) -> None:
        """Log the reads that failed, if any."""
        if self.failures:
            logger.warning(
                "%s: %d reads for a picture failed; it is made of other levels, or white there; the last: %s",
                self.slide.info.path,
                self.failures,
                "" if self.last is None else self.last.args[1],
            )

    def paint(self, canvas: Canvas, level: int) -> None:
        """Fill the canvas block by block from this level; blocks that cannot be read are taken from the finer
        levels.
        """
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

    def _painted(self, canvas: Canvas, level: int) -> bool:
        """Fill the canvas with one read of this level. Returns False where that fails."""
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

    def _in_pieces(self, canvas: Canvas) -> None:
        """Halve a block that level 0 does not give until what can be read is read and the rest is white."""
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
    """Pixels of the picture per block of a level."""
    return max(1, int(BLOCK_PX * slide.info.levels[level].downsample / l0_per_px))


def _block(
    slide: SlideReader, level: int, l0_columns: NDArray[np.float64], l0_rows: NDArray[np.float64]
) -> RgbImage:
    """The canvas's pixels as means over one region of a level."""
    lv_size, downsample = slide.info.levels[level].size, slide.info.levels[level].downsample
    lv_columns, lv_rows = (
        edges * (lv_length / l0_length)
        for edges, lv_length, l0_length in zip(
            (l0_columns, l0_rows), lv_size, slide.info.l0_size, strict=True
        )
    )
    starts = [
        min(int(edges[0]), length - 1) for edges, length in zip((lv_columns, lv_rows), lv_size, strict=True)
    ]
    # The level's own end, and not the white beyond it, ends the last pixel.
    ends = [
        min(int(np.ceil(edges[-1])), length)
        for edges, length in zip((lv_columns, lv_rows), lv_size, strict=True)
    ]
    l0_at = (round(starts[0] * downsample), round(starts[1] * downsample))
    pixels = slide.read(l0_at, level=level, size_px=(ends[0] - starts[0], ends[1] - starts[1]))
    if _whole_pixels(lv_columns) and _whole_pixels(lv_rows):
        return pixels
    return _means(pixels, lv_rows - starts[1], lv_columns - starts[0])


def _whole_pixels(edges: NDArray[np.float64]) -> bool:
    """Whether each pixel of the picture is exactly one of the level, so that nothing is averaged."""
    return bool((edges == edges[0] + np.arange(len(edges))).all() and edges[0] == int(edges[0]))


def _means(pixels: RgbImage, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> RgbImage:
    """Means over [rows[i], rows[i + 1]) by [columns[j], columns[j + 1]); pixels that lie inside in part count in
    part. Strips of a few rows are averaged at a time, because a processor's cache holds those."""
    length, width = pixels.shape[:2]
    down, across = _shares(rows, length), _shares(columns, width)
    means = np.empty((len(rows) - 1, len(columns) - 1, 3), np.uint8)
    for top in range(0, len(means), STRIP_ROWS):
        first, of_strip = _rows_of(down, top, min(len(means), top + STRIP_ROWS))
        strip = pixels[first : first + of_strip.shape[1]].reshape(-1, width * 3).astype(np.float64)
        by_row = of_strip @ strip
        height = len(by_row)
        by_row = np.ascontiguousarray(by_row.reshape(height, width, 3).swapaxes(0, 1))
        by_column = np.rint(across @ by_row.reshape(width, height * 3)).astype(np.uint8)
        means[top : top + height] = by_column.reshape(-1, height, 3).swapaxes(0, 1)
    return means


def _rows_of(shares: "csr_array", top: int, bottom: int) -> tuple[int, "csr_array"]:
    """Some rows of a matrix, and the first of the columns that these are made of. Slicing would check and copy."""
    from scipy.sparse import csr_array

    ends = shares.indptr[top : bottom + 1]
    at_n, share_n = shares.indices[ends[0] : ends[-1]], shares.data[ends[0] : ends[-1]]
    first, end = int(at_n.min()), int(at_n.max()) + 1
    return first, csr_array((share_n, at_n - first, ends - ends[0]), shape=(bottom - top, end - first))


def _shares(edges: NDArray[np.float64], length: int) -> "csr_array":
    """(n, length) sparse float64: the share of each of ``length`` pixels in [edges[i], edges[i + 1]).

    Where both edges are the same (rounded numbers may have a last pixel begin where the slide ends), the pixel
    there counts as a whole.
    """
    from scipy.sparse import csr_array

    first_n = np.minimum(edges.astype(np.intp), length - 1)
    taps = int(np.diff(first_n).max()) + 1
    at_nT = first_n[:-1, None] + np.arange(taps)
    inside_nT = np.minimum(edges[1:, None], at_nT + 1) - np.maximum(edges[:-1, None], at_nT)
    widths_n = np.diff(edges)
    share_nT = inside_nT.clip(0) / np.where(widths_n > 0, widths_n, 1)[:, None]
    share_nT[widths_n <= 0, 0] = 1
    counted_nT = (share_nT > 0) & (at_nT < length)
    ends_n = np.concatenate([[0], counted_nT.sum(axis=1).cumsum()])
    return csr_array((share_nT[counted_nT], at_nT[counted_nT], ends_n), shape=(len(edges) - 1, length))
