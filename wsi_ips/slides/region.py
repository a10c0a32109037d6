"""What every reader does with a region: check it, place it on a level, fill what lies outside with white."""

from math import floor
from types import TracebackType
from typing import Self

import numpy as np

from wsi_ips.errors import ConfigError, SlideReadError
from wsi_ips.slides.base import RgbImage, SlideInfo
from wsi_ips.slides.limits import LARGEST_BLOCK_PX
from wsi_ips.units import L0Point, Size

WHITE = 255


class ClosingReader:
    """A reader that closes itself at the end of a ``with`` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_region(info: SlideInfo, *, level: int, size_px: Size) -> None:
    """Raise :class:`ConfigError` for a level that is not there or a size without pixels."""
    if not 0 <= level < len(info.levels):
        raise ConfigError(f"{info.path} has the levels 0 to {len(info.levels) - 1}, not {level}")
    if min(size_px) <= 0:
        raise ConfigError(f"{info.path}: a region of {size_px[0]}x{size_px[1]} px has no pixels")


def check_associated(info: SlideInfo, name: str) -> Size:
    """The size of the picture of this name that comes with a slide.

    Raises :class:`ConfigError` where there is none, :class:`SlideReadError` for one too large to be decoded.
    """
    sizes = dict(info.associated)
    if name not in sizes:
        known = ", ".join(sizes) or "none"
        raise ConfigError(f"{info.path} comes with no picture named {name!r}; it has {known}")
    width, height = sizes[name]
    if not 0 < width * height <= LARGEST_BLOCK_PX:
        raise SlideReadError(info.path, f"its {name} picture claims {width}x{height} px")
    return width, height


def level_pixel(l0_xy: L0Point, downsample: float) -> tuple[int, int]:
    """The whole pixel of a level that is nearest to a level-0 position.

    Halves go up, so that neighbours stay equally far apart (Python's ``round`` sends 0.5 and 1.5 to 0, 2).
    """
    return floor(l0_xy[0] / downsample + 0.5), floor(l0_xy[1] / downsample + 0.5)


def white_region(size_px: Size) -> RgbImage:
    """(height, width, 3) uint8, white."""
    width, height = size_px
    return np.full((height, width, 3), WHITE, np.uint8)


def paste(target: RgbImage, source: RgbImage, *, at: tuple[int, int]) -> None:
    """Copy ``source`` into ``target`` with its top left at ``at`` (x, y), which may lie outside."""
    x, y = at
    height, width = target.shape[:2]
    left, top = max(0, x), max(0, y)
    right, bottom = min(width, x + source.shape[1]), min(height, y + source.shape[0])
    if left < right and top < bottom:
        target[top:bottom, left:right] = source[top - y : bottom - y, left - x : right - x]
