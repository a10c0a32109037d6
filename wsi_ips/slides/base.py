"""What is said of a slide that failed, whatever it raised.

What a slide is: its description, and the one way to read pixels from it.

What every reader does with a region: check it, place it on a level, fill what lies outside with white.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError, MissingResolution, PixelsNotSquare, SlideReadError, WsiIpsError
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX, TilePlaces
from wsi_ips.storage.files import no_room, system_cause
from wsi_ips.storage.location import Location
from wsi_ips.units import L0Point, Mpp, Size

logger = logging.getLogger(__name__)


def failure_in_words(slide_id: str, error: Exception) -> str:
    """The error in words. One that was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, WsiIpsError):
        return str(error)
    if no_room(error):
        assert isinstance(error, OSError)
        assert error.errno is not None
        where = f": {error.filename}" if error.filename else ""
        return f"{os.strerror(error.errno).lower()} where the results are written{where}; make room there"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, OSError | MemoryError) and (cause := system_cause(error)):
        return f"{cause.problem}; {cause.fix}"
    logger.error("slide %s failed", slide_id, exc_info=error)
    return f"{type(error).__name__}: {error}"


def named(slide_id: str, why: str) -> str:
    """The reason, with the slide's id in front where it does not name the slide yet."""
    return why if slide_id in why else f"{slide_id}: {why}"


RgbImage = NDArray[np.uint8]
"""(height, width, 3) uint8, RGB."""


@dataclass(frozen=True, slots=True)
class Level:
    """One pyramid level. ``downsample`` is level-0 pixels per pixel of this level (mean of x and y)."""

    size: Size
    downsample: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """The scanned area of a slide, in level-0 pixels (OpenSlide's ``openslide.bounds-*``)."""

    l0_x: int
    l0_y: int
    l0_width: int
    l0_height: int


SQUARE = 0.02
"""Pixels whose sides differ by no more than this share count as square: scanners state both sides as measured."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in a slide's file that is no level of it: what it is (``page 3, 600x250 px``), and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """What is known of a slide without reading a pixel. Levels run from the finest (0) to the coarsest."""

    path: Location
    reader: str
    vendor: str
    levels: tuple[Level, ...]
    mpp_xy: tuple[Mpp, Mpp] | None
    """µm per pixel along x and y, as the file states it or the user has given it; None: unknown."""
    bounds: Bounds | None = None
    associated: tuple[tuple[str, Size], ...] = ()
    """Names (``label``, ``macro``, ``thumbnail``) and sizes of what :class:`AssociatedReader` reads."""
    left_out: tuple[LeftOut, ...] = ()
    icc_profile: bool = False
    """Whether the file states a colour profile. It is not applied."""

    @property
    def l0_size(self) -> Size:
        """(width, height) in level-0 pixels."""
        return self.levels[0].size

    @property
    def mpp(self) -> Mpp | None:
        """The mean of the resolutions along x and y, or None."""
        return None if self.mpp_xy is None else Mpp(sum(self.mpp_xy) / 2)

    def with_mpp(self, mpp: Mpp) -> Self:
        """The same slide with a resolution given by the user."""
        return replace(self, mpp_xy=(mpp, mpp))

    def known_mpp(self) -> Mpp:
        """The resolution of the slide's square pixels.

        Raises :class:`MissingResolution` where the file states none, :class:`PixelsNotSquare` where its pixels
        are not square: a patch would then cover another area than it should.
        """
        if self.mpp_xy is None:
            raise MissingResolution(self.path)
        x, y = self.mpp_xy
        if abs(x / y - 1) > SQUARE:
            raise PixelsNotSquare.of(self.path, x, y)
        return Mpp((x + y) / 2)

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as ``downsample``, so that pixels are never invented.

        A level within 1 % of the wanted one counts as fitting: padded pyramids have factors such as 1.99.
        """
        fitting = [i for i, level in enumerate(self.levels) if level.downsample <= downsample * 1.01]
        return max(fitting, key=lambda i: self.levels[i].downsample, default=0)


class SlideReader(Protocol):
    """An open slide. Reads may come from several threads at once.

    After a failed read a reader has reopened itself: the next read starts from a fresh handle.
    """

    @property
    def info(self) -> SlideInfo: ...

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """The region of ``size_px`` (width, height) pixels of ``level`` whose top left is at ``l0_xy``.

        ``l0_xy`` is in level-0 pixels, may be negative or beyond the edge; whatever lies outside the slide
        is white. Returns (height, width, 3) uint8, a new array that the caller owns.

        Raises :class:`SlideReadError` when pixels cannot be decoded, :class:`SlideClosed` after close.
        """
        ...

    def close(self) -> None:
        """Release the file. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TileGrid(Protocol):
    """The tiles that a level is stored in. Tile ``row * cols + col`` is the one in this row and column."""

    @property
    def level_size(self) -> Size: ...

    @property
    def tile_size(self) -> Size: ...

    @property
    def cols(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def places(self) -> TilePlaces:
        """Where on the level the tiles lie."""
        ...


@runtime_checkable
class AssociatedReader(SlideReader, Protocol):
    """A reader of slides that come with further pictures: label, macro, thumbnail."""

    def read_associated(self, name: str) -> RgbImage:
        """The picture of this name (:attr:`SlideInfo.associated`), (height, width, 3) uint8.

        Raises :class:`ConfigError` for a name that the slide does not have, :class:`SlideReadError` for a picture
        that cannot be decoded.
        """
        ...


@runtime_checkable
class TiledReader(SlideReader, Protocol):
    """A reader whose stored tiles can be had one by one, for callers who plan their own reading.

    Fetching and decoding are apart, so that a caller fetches many tiles at once and decodes each where it
    wants it.
    """

    def tile_layout(self, level: int) -> TileGrid:
        """Size, count and place of the level's tiles."""
        ...

    def tile_scales(self, level: int) -> tuple[int, ...]:
        """By which whole factors the level's tiles can be decoded smaller, 1 among them."""
        ...

    def fetch_tiles(self, level: int, numbers: Sequence[int]) -> list[memoryview]:
        """The stored bytes of these tiles (ascending numbers), empty for a tile that was never written.

        Raises :class:`SlideReadError` when the file cannot be read.
        """
        ...

    def decode_tile(self, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        """Decode a fetched tile into ``out``, (tile height, tile width, 3 or 4) uint8, contiguous.

        White beyond the level's edge where the tiles are a regular grid; what of a placed tile is not shown may
        be anything. With four channels the fourth has no meaning. With a height and width
        divided by one of :meth:`tile_scales`, each pixel is the mean of that many by that many, as near as the
        tile's coding gives it. Raises
        :class:`SlideReadError` where the bytes are no such tile; ``out`` may then hold anything.
        """
        ...

    def reopen(self) -> None:
        """Read the file's directory again. Raises :class:`SlideReadError` if it is not what it was."""
        ...


@runtime_checkable
class JpegTiledReader(TiledReader, Protocol):
    """A reader whose tiles may be had as they are stored, for callers who decode them elsewhere."""

    def tile_jpeg(self, level: int, number: int, data: memoryview) -> bytes | None:
        """A fetched tile as one whole JPEG that says its own colour space; None for a tile of another kind, or
        one that was never written.

        What lies beyond the level's edge is not white yet. Raises :class:`SlideReadError` for bytes that are no
        such tile.
        """
        ...


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
