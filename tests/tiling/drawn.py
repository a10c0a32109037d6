"""Slides drawn for tests of the tissue mask: what is tissue is known."""

import numpy as np

from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.units import Mpp

GLASS, EOSIN, HAEMATOXYLIN = (243, 242, 245), (225, 150, 185), (110, 70, 150)
BLUE_INK, GREEN_INK, BLACK_INK, RED_INK = (30, 60, 190), (20, 130, 70), (20, 20, 22), (225, 25, 30)


class Drawing:
    """A slide at 2 µm per pixel on which areas are painted, (x, y, width, height) in pixels."""

    mpp = Mpp(2.0)

    def __init__(self, size: tuple[int, int], *, background: tuple[int, int, int] = GLASS) -> None:
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 1.5, (size[1], size[0], 3))
        self.pixels = np.clip(np.array(background) + noise, 0, 255).astype(np.uint8)
        self._rng = rng

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
