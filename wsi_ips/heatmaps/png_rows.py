"""A PNG that is written row by row, so that a picture of any size needs the memory of a few rows.

Format: PNG specification (third edition), colour type 2, 8 bits. Pillow encodes whole images only.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8 = struct.pack(">5B", 8, 2, 0, 0, 0)
LEVEL = 5
SUB, UP = 1, 2
ROWS_AT_ONCE = 32


class PngRows:
    """``PngRows(file, (width, height), text)``: then :meth:`write` all rows, then :meth:`close`.

    text: {keyword: text}, kept as iTXt.
    """

    def __init__(self, file: BinaryIO, size_px: Size, text: Mapping[str, str]) -> None:
        self._file, self._size = file, size_px
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

    def write(self, rows: RgbImage) -> None:
        """The next rows, (n, width, 3) uint8. Raises ``ValueError`` for rows of another width, or too many."""
        self._rows += len(rows)
        if rows.shape[1:] != (self._size[0], 3) or self._rows > self._size[1]:
            raise ValueError(f"rows of {rows.shape}, {self._rows} in all, for an image of {self._size}")
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
        """End the image. Raises ``ValueError`` where rows are missing."""
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
    """Per row, the sum of the bytes taken as signed."""
    return np.asarray(np.minimum(filtered, 0 - filtered).sum(axis=1, dtype=np.int64))
