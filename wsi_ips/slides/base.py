"""What a slide is: its description (:class:`SlideInfo`) and the one way to read its pixels (:class:`SlideReader`).

Some readers offer more: :class:`AssociatedReader` also reads the label and the macro image, :class:`TiledReader`
hands out stored tiles one by one, and :class:`JpegTiledReader` hands them out as JPEGs. Below these protocols
stand the helpers that every reader uses: checking a region, placing it on a level, filling what lies outside with
white, and wording a failure.
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
from wsi_ips.storage.disk_cache import DiskCache
from wsi_ips.storage.files import no_room, system_cause
from wsi_ips.storage.location import Location
from wsi_ips.units import L0Point, Mpp, Size

RgbImage = NDArray[np.uint8]
"""Pixels, (height, width, 3) uint8, RGB."""

WHITE = 255
"""The value of every channel of a white pixel."""

SQUARE = 0.02
"""By how much the two sides of a pixel may differ, as a share, and still count as square.

Scanners state both sides as measured.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """One pyramid level: its size in pixels, and how many level-0 pixels one of its pixels covers along each axis.

    ``downsample`` is the mean of the factors along x and y.
    """

    size: Size
    downsample: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """The scanned area of a slide in level-0 pixels (OpenSlide's ``openslide.bounds-*`` properties)."""

    l0_x: int
    l0_y: int
    l0_width: int
    l0_height: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in the file of a slide that belongs to no level: what it is (``page 3, 600x250 px``), and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """What is known of a slide without reading a pixel. Levels run from the finest, 0, to the coarsest."""

    path: Location
    """The file, the folder or the URL of the slide."""
    reader: str
    """Name of the reader that opened it."""
    vendor: str
    """The scanner's vendor or the container's kind, for example ``"aperio"``."""
    levels: tuple[Level, ...]
    mpp_xy: tuple[Mpp, Mpp] | None
    """µm per pixel along x and y, as the file states it or the user has given it. None if it is not known."""
    bounds: Bounds | None = None
    """The scanned area, if the file states it."""
    associated: tuple[tuple[str, Size], ...] = ()
    """Names (``label``, ``macro``, ``thumbnail``) and sizes (width, height) of the associated images."""
    left_out: tuple[LeftOut, ...] = ()
    """What in the file is not used, and why."""
    icc_profile: bool = False
    """Whether the file holds a colour profile. Profiles are not applied."""

    @property
    def l0_size(self) -> Size:
        """Width and height of level 0 in pixels."""
        return self.levels[0].size

    @property
    def mpp(self) -> Mpp | None:
        """The mean of the resolutions along x and y in µm per pixel, or None if they are not known."""
        return None if self.mpp_xy is None else Mpp(sum(self.mpp_xy) / 2)

    def with_mpp(self, mpp: Mpp) -> Self:
        """A copy of this description with the resolution that the user has given, in µm per pixel."""
        return replace(self, mpp_xy=(mpp, mpp))

    def known_mpp(self) -> Mpp:
        """The resolution in µm per pixel of a slide with square pixels.

        Raises :class:`MissingResolution` if the resolution is not known, and :class:`PixelsNotSquare` if width and
        height of a pixel differ by more than 2 %, since a patch would then cover another area than it should.
        """
        if self.mpp_xy is None:
            raise MissingResolution(self.path)
        x, y = self.mpp_xy
        if abs(x / y - 1) > SQUARE:
            raise PixelsNotSquare.of(self.path, x, y)
        return Mpp((x + y) / 2)

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as ``downsample``, so that pixels are never upsampled.

        A level that is up to 1 % coarser also counts as fine enough, since padded pyramids have factors such as
        1.99. If ``downsample`` is below 1, level 0 is returned.
        """
        fitting = [i for i, level in enumerate(self.levels) if level.downsample <= downsample * 1.01]
        return max(fitting, key=lambda i: self.levels[i].downsample, default=0)


class SlideReader(Protocol):
    """An open slide. Several threads may read from it at the same time.

    After a failed read the reader reopens the file by itself, so the next read starts with a fresh handle.
    """

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        ...

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``. ``l0_xy`` is its top left corner in level-0 pixels,
        which may be negative or lie beyond the edge. Whatever lies outside the slide is white. Returns (height,
        width, 3) uint8, a new array that the caller owns.

        Raises :class:`ConfigError` if there is no such level or the size has no pixels, :class:`SlideReadError` if
        pixels cannot be decoded, and :class:`SlideClosed` after :meth:`close`.
        """
        ...

    def close(self) -> None:
        """Release the file. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class AssociatedReader(SlideReader, Protocol):
    """A reader of slides that come with further images: label, macro, thumbnail."""

    def read_associated(self, name: str) -> RgbImage:
        """Read the image of this name, one of :attr:`SlideInfo.associated`. Returns (height, width, 3) uint8.

        Raises :class:`ConfigError` if the slide has no image of this name, and :class:`SlideReadError` if it
        cannot be decoded.
        """
        ...


class TileGrid(Protocol):
    """The tiles that a level is stored in. Tile number ``row * cols + col`` is the one in this row and column."""

    @property
    def level_size(self) -> Size:
        """Width and height of the level in pixels."""
        ...

    @property
    def tile_size(self) -> Size:
        """Width and height of a tile in pixels."""
        ...

    @property
    def cols(self) -> int:
        """Number of columns of tiles."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows of tiles."""
        ...

    @property
    def places(self) -> TilePlaces:
        """Where on the level the tiles lie."""
        ...


@runtime_checkable
class TiledReader(SlideReader, Protocol):
    """A reader that hands out its stored tiles one by one, for callers that plan their own reading.

    Fetching and decoding are separate, so that a caller can fetch many tiles at once and decode each where it
    needs it.
    """

    def tile_layout(self, level: int) -> TileGrid:
        """The size, the number and the places of the tiles of a level."""
        ...

    def tile_scales(self, level: int) -> tuple[int, ...]:
        """The whole factors by which the tiles of a level can be decoded smaller. 1 is among them."""
        ...

    def fetch_tiles(self, level: int, numbers: Sequence[int]) -> list[memoryview]:
        """Read the stored bytes of these tiles, whose numbers must ascend. A tile that was never written is empty.

        Raises :class:`SlideReadError` if the file cannot be read.
        """
        ...

    def decode_tile(self, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        """Decode a fetched tile into ``out``, a contiguous array (tile height, tile width, 3 or 4) uint8.

        In a regular grid, what lies beyond the edge of the level becomes white. Of a tile with a place of its own,
        the part that is not shown may hold anything. A fourth channel has no meaning. If height and width of
        ``out`` are those of the tile divided by one of :meth:`tile_scales`, each pixel becomes the mean of that
        many by that many pixels, as nearly as the coding of the tile gives it.

        Raises :class:`SlideReadError` if the bytes are no such tile. ``out`` may then hold anything.
        """
        ...

    def reopen(self) -> None:
        """Read the directory of the file again.

        Raises :class:`SlideReadError` if the file is not the one that was opened before.
        """
        ...


@runtime_checkable
class JpegTiledReader(TiledReader, Protocol):
    """A reader that can hand out tiles as the JPEGs that are stored, for callers that decode them elsewhere."""

    def tile_jpeg(self, level: int, number: int, data: memoryview) -> bytes | None:
        """A fetched tile as one complete JPEG that states its own colour space.

        Returns None if tiles are not stored as JPEGs, or if this one was never written. What lies beyond the edge
        of the level is not white yet. Raises :class:`SlideReadError` if the bytes are no such tile.
        """
        ...


@runtime_checkable
class CacheableReader(SlideReader, Protocol):
    """A reader that can keep what it reads in a cache on a local disk."""

    def read_through(self, cache: DiskCache) -> None:
        """From now on, read what the cache holds from there, and store there what it lacks. No pixel changes.

        Raises :class:`SlideReadError` if the file cannot be read.
        """
        ...


class ClosingReader:
    """Base class of readers, which closes the reader at the end of a ``with`` block."""

    def close(self) -> None:
        """Release the file. May be called twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_region(info: SlideInfo, *, level: int, size_px: Size) -> None:
    """Raise :class:`ConfigError` for a level that does not exist or a size without pixels."""
    if not 0 <= level < len(info.levels):
        raise ConfigError(f"{info.path} has the levels 0 to {len(info.levels) - 1}, not {level}")
    if min(size_px) <= 0:
        raise ConfigError(f"{info.path}: a region of {size_px[0]}x{size_px[1]} px has no pixels")


def check_associated(info: SlideInfo, name: str) -> Size:
    """The size (width, height) of the image of this name that comes with a slide.

    Raises :class:`ConfigError` if there is none, and :class:`SlideReadError` if it is too large to be decoded.
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
    """The whole pixel (x, y) of a level that is nearest to a level-0 position.

    Halves are rounded up, so that neighbours stay equally far apart. Python's ``round`` sends 0.5 to 0 and 1.5 to
    2.
    """
    return floor(l0_xy[0] / downsample + 0.5), floor(l0_xy[1] / downsample + 0.5)


def white_region(size_px: Size) -> RgbImage:
    """A white image of this (width, height): (height, width, 3) uint8."""
    width, height = size_px
    return np.full((height, width, 3), WHITE, np.uint8)


def paste(target: RgbImage, source: RgbImage, *, at: tuple[int, int]) -> None:
    """Copy ``source`` into ``target`` with its top left corner at ``at`` (x, y). What falls outside is cut off."""
    x, y = at
    height, width = target.shape[:2]
    left, top = max(0, x), max(0, y)
    right, bottom = min(width, x + source.shape[1]), min(height, y + source.shape[0])
    if left < right and top < bottom:
        target[top:bottom, left:right] = source[top - y : bottom - y, left - x : right - x]


def failure_in_words(slide_id: str, error: Exception) -> str:
    """What to tell the user about the failure of a slide, whatever exception it was.

    An exception that wsi_ips did not raise on purpose is also logged with its traceback.
    """
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
    """The reason with the slide's id in front, unless the reason names the slide already."""
    return why if slide_id in why else f"{slide_id}: {why}"
