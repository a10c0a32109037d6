"""From values of patches to pixels: :class:`PatchRaster` and :class:`Cells`.

:class:`PngRows` writes a PNG row by row, so that a picture of any size needs the memory of a few rows (Pillow
encodes whole images only). Format: PNG specification (third edition), colour type 2, 8 bits.

Shape suffixes: N patches; H, W rows and columns of the canvas; R, C rows and columns of cells.
"""

import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG."""

RGB_8 = struct.pack(">5B", 8, 2, 0, 0, 0)
"""The part of the IHDR chunk that says RGB with 8 bits a channel."""

LEVEL = 2
"""Compression level of zlib: at 4, pictures take 1.1 to 1.7 times the time, and 16 % fewer to 2 % more bytes."""

SUB, UP = 1, 2
"""The PNG filters that are used: difference from the pixel to the left, and from the one above."""

ROWS_AT_ONCE = 32
"""Rows that are compressed at once."""

Pixel = TypeVar("Pixel", bound=np.generic)

SAME_EDGE = 1e-3
"""Lines that are nearer than this, in pixels, are one line."""

PIXEL_DECIMALS = 6
"""Positions on the canvas are rounded to so many decimals, so that two ways to compute one edge give one pixel."""


def canvas_size(l0_size: Size, l0_per_px: float) -> Size:
    """(width, height) in pixels of the canvas that covers the slide. Its last column and row may stick out."""
    width, height = (max(1, ceil(round(length / l0_per_px, PIXEL_DECIMALS))) for length in l0_size)
    return width, height


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Values between the lines on which patches begin and end: a raster whose pixels are as large as they can be.

    ``x_edges``, (C + 1,), and ``y_edges``, (R + 1,), ascend. ``values_RC``, float32, is the mean of the patches
    that contain a cell, and NaN where there is no patch.
    """

    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]
    values_RC: NDArray[np.float32]

    def spread(self, cells_RC: NDArray[Pixel]) -> NDArray[Pixel]:
        """Repeat values of cells, (R, C, ...), as pixels (H, W, ...).

        Edges have to be whole pixels that begin at 0.
        """
        heights, widths = (np.diff(edges).astype(np.intp) for edges in (self.y_edges, self.x_edges))
        return cells_RC.repeat(heights, axis=0).repeat(widths, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class PatchRaster:
    """Where patches lie on a canvas that is never held whole; :meth:`window` gives parts of it.

    ``size_px`` is the canvas's (width, height). ``starts_N2`` and ``ends_N2``, (N, 2) int64, are for each patch
    the first pixel (x, y) whose centre it contains, and the one past the last.
    """

    size_px: Size
    starts_N2: NDArray[np.int64]
    ends_N2: NDArray[np.int64]
    values_N: NDArray[np.floating]

    @classmethod
    def of(
        cls,
        l0_xy_N2: NDArray[np.integer | np.floating],
        l0_patch: float,
        values_N: NDArray[np.floating],
        *,
        l0_size: Size,
        l0_per_px: float,
    ) -> Self:
        """Place patches on a canvas of ``l0_per_px`` level-0 pixels a pixel.

        A pixel belongs to the patches that contain its centre.

        ``l0_xy_N2``, (N, 2), are the patches' top-left corners and ``l0_patch`` their side, in level-0 pixels. The
        centre of column i, row j is the level-0 point ((i + 0.5) * ``l0_per_px``, (j + 0.5) * ``l0_per_px``). A
        patch covers [x, x + l0_patch) as far as it lies in the slide. Neither corners nor sides are rounded to
        pixels of the canvas, so that nothing drifts towards the bottom right. A patch smaller than a pixel may
        contain no centre.
        """
        l0_ends_N2 = np.minimum(l0_xy_N2 + l0_patch, l0_size)
        # (i + 0.5) * l0_per_px >= edge, solved for the smallest whole i.
        starts_N2, ends_N2 = (
            np.ceil(np.round(edge_N2 / l0_per_px - 0.5, PIXEL_DECIMALS)).clip(0).astype(np.int64)
            for edge_N2 in (l0_xy_N2, l0_ends_N2)
        )
        return cls(canvas_size(l0_size, l0_per_px), starts_N2, ends_N2, values_N)

    def window(self, at_px: tuple[int, int], size_px: Size) -> Cells:
        """A window of ``size_px`` (width, height) at ``at_px`` (x, y), as cells counted from its corner."""
        at_2, end_2 = np.array(at_px), np.array(at_px) + size_px
        near_N = ((self.starts_N2 < end_2) & (self.ends_N2 > at_2)).all(axis=1)
        return mean_cells(
            self.starts_N2[near_N] - at_2, self.ends_N2[near_N] - at_2, self.values_N[near_N], size=size_px
        )


def patch_values_to_canvas(
    l0_xy_N2: NDArray[np.integer | np.floating],
    l0_patch: float,
    values_N: NDArray[np.floating],
    *,
    l0_size: Size,
    l0_per_px: float,
) -> NDArray[np.float32]:
    """The values of patches as pixels, (H, W) float32, NaN where there is no patch.

    A pixel has the value of the patch that contains its centre, or the mean of several; :meth:`PatchRaster.of`
    explains the arguments.
    """
    raster = PatchRaster.of(l0_xy_N2, l0_patch, values_N, l0_size=l0_size, l0_per_px=l0_per_px)
    cells = raster.window((0, 0), raster.size_px)
    return cells.spread(cells.values_RC)


def mean_cells(
    starts_N2: NDArray[np.integer | np.floating],
    ends_N2: NDArray[np.integer | np.floating],
    values_N: NDArray[np.floating],
    *,
    size: tuple[float, float],
) -> Cells:
    """The cells of rectangles [start, end) (x, y), as far as they lie in [0, size); overlaps have the mean.

    ``starts_N2`` and ``ends_N2`` are (N, 2), ``values_N`` (N,), ``size`` is (width, height). A cell that only one
    patch contains has exactly that patch's value. Memory: 16 bytes a cell.
    """
    first_N2, past_N2 = (np.clip(edge_N2, 0, size).astype(np.float64) for edge_N2 in (starts_N2, ends_N2))
    held_N = (first_N2 < past_N2).all(axis=1)
    first_N2, past_N2, held = first_N2[held_N], past_N2[held_N], values_N[held_N].astype(np.float64)
    x_edges, left, right = _lines(first_N2[:, 0], past_N2[:, 0], size[0])
    y_edges, top, bottom = _lines(first_N2[:, 1], past_N2[:, 1], size[1])
    sum_RC = np.zeros((len(y_edges) - 1, len(x_edges) - 1))
    count_RC = np.zeros(sum_RC.shape, np.int32)
    single = (right - left == 1) & (bottom - top == 1)
    np.add.at(sum_RC, (top[single], left[single]), held[single])
    np.add.at(count_RC, (top[single], left[single]), 1)
    several = [each[~single].tolist() for each in (held, left, right, top, bottom)]
    for value, x0, x1, y0, y1 in zip(*several, strict=True):
        sum_RC[y0:y1, x0:x1] += value
        count_RC[y0:y1, x0:x1] += 1
    sum_RC[count_RC == 0] = np.nan
    return Cells(x_edges, y_edges, (sum_RC / np.maximum(count_RC, 1)).astype(np.float32))


def _lines(
    start_N: NDArray[np.float64], end_N: NDArray[np.float64], length: float
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """The lines between cells, and for each patch the numbers of the lines at which it begins and ends."""
    lines = np.unique(np.concatenate([[0.0, length], start_N, end_N]))
    # Two ways to compute one edge are one line.
    number = np.concatenate([[0], np.cumsum(np.diff(lines) > SAME_EDGE)])
    distinct = lines[np.unique(number, return_index=True)[1]]
    return distinct, number[np.searchsorted(lines, start_N)], number[np.searchsorted(lines, end_N)]


class PngRows:
    """Writes an RGB PNG row by row: :meth:`write` all rows, then :meth:`close`, within a ``with`` statement.

    ``size_px`` is (width, height); ``text`` maps keywords to texts, which are stored as iTXt chunks. A thread
    compresses and writes rows while the next ones are made; it holds those of one :meth:`write`.
    """

    def __init__(self, file: BinaryIO, size_px: Size, text: Mapping[str, str]) -> None:
        self._file, self._size = file, size_px
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-png")
        self._coming: Future[None] | None = None
        self._deflate = zlib.compressobj(LEVEL)
        self._above: NDArray[np.uint8] = np.zeros((size_px[0], 3), np.uint8)
        self._rows = 0
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">2I", *size_px) + RGB_8)
        facts = PngInfo()
        for keyword, fact in text.items():
            facts.add_itxt(keyword, fact)
        for name, data, *_ in facts.chunks:
            self._chunk(name, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, rows: RgbImage) -> None:
        """Write the next rows, (n, width, 3) uint8, which must not be changed afterwards.

        Raises ``ValueError`` for rows of another width, or too many of them, and what writing earlier rows raised.
        """
        self._rows += len(rows)
        if rows.shape[1:] != (self._size[0], 3) or self._rows > self._size[1]:
            raise ValueError(f"rows of {rows.shape}, {self._rows} in all, for an image of {self._size}")
        self._wait()
        self._coming = self._pool.submit(self._compress_all, rows)

    def _wait(self) -> None:
        if self._coming is not None:
            self._coming.result()

    def _compress_all(self, rows: RgbImage) -> None:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            self._compress(rows[first : first + ROWS_AT_ONCE])

    def _compress(self, rows: RgbImage) -> None:
        filtered = np.empty((len(rows), 1 + 3 * self._size[0]), np.uint8)
        previous = np.concatenate([self._above[None], rows[:-1]])
        filtered[:, 0] = SUB
        filtered[:, 1:4] = rows[:, 0]
        np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 4:].reshape(len(rows), self._size[0] - 1, 3))
        up = (rows - previous).reshape(len(rows), -1)
        # The rule of thumb of the specification: the filter whose bytes are nearer to zero.
        better = _size_of(up) < _size_of(filtered[:, 1:])
        filtered[better, 0] = UP
        filtered[better, 1:] = up[better]
        self._above = rows[-1].copy()
        self._chunk(b"IDAT", self._deflate.compress(filtered.data))

    def close(self) -> None:
        """End the image. Raises ``ValueError`` if rows are missing, and what writing earlier rows raised."""
        self._wait()
        if self._rows != self._size[1]:
            raise ValueError(f"{self._rows} of {self._size[1]} rows were written")
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, data: bytes) -> None:
        if not data and name == b"IDAT":
            return
        self._file.write(struct.pack(">I", len(data)) + name)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _size_of(filtered: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of the absolute values of each row's bytes, taken as signed."""
    return np.asarray(np.minimum(filtered, 0 - filtered).sum(axis=1, dtype=np.int64))
