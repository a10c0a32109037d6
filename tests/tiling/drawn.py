"""Slides drawn for tests of the tissue mask: what is tissue is known."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.units import Mpp

GLASS, EOSIN, HAEMATOXYLIN = (243, 242, 245), (225, 150, 185), (110, 70, 150)
BLUE_INK, GREEN_INK, BLACK_INK, RED_INK = (30, 60, 190), (20, 130, 70), (20, 20, 22), (225, 25, 30)


class Drawing:
    """A slide at 2 µm per pixel on which areas are painted, (x, y, width, height) in pixels."""

    mpp = Mpp(2.0)

    def __init__(self, size: tuple[int, int], *, background: tuple[int, int, int] = GLASS) -> None:
        noise, state = _noise(*size)
        self.pixels = np.clip(np.array(background) + noise, 0, 255).astype(np.uint8)
        self._rng = np.random.default_rng()
        self._rng.bit_generator.state = state

    def tissue(self, x: int, y: int, width: int, height: int) -> "Drawing":
        """Eosin with scattered nuclei."""
        block = np.empty((height, width, 3))
        block[:] = EOSIN
        block[self._rng.random((height, width)) < 0.25] = HAEMATOXYLIN
        block += self._rng.normal(0, 6, block.shape)
        self.pixels[y : y + height, x : x + width] = np.clip(block, 0, 255)
        return self

    def paint(self, colour: tuple[int, int, int], x: int, y: int, width: int, height: int) -> "Drawing":
        self.pixels[y : y + height, x : x + width] = colour
        return self

    def reader(self, *, levels: tuple[int, ...] = (1,)) -> MemoryReader:
        return MemoryReader(self.pixels, mpp=self.mpp, levels=levels)


@lru_cache(maxsize=2)
def _noise(width: int, height: int) -> tuple[NDArray[np.float64], Any]:
    """The noise of the glass, the same on all slides of a size, and the state of the generator after it."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 1.5, (height, width, 3)), rng.bit_generator.state
