"""The reader of tiled TIFF pyramids and Aperio SVS at a URL, by range requests: tiffslide over fsspec.

The pixels are those of the ``tiff`` reader, with these differences. If a JPEG tile and the TIFF's own tag disagree
on the colour space, this reader believes the tile. In an Aperio file, tifffile takes the second image for the
thumbnail. OME-TIFF pyramids are read here. Vendors whose levels or tiles are laid out differently (NDPI, SCN, BIF,
Philips) are refused, since tiffslide places some of their pixels differently from OpenSlide.
"""

import logging
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from operator import add
from pathlib import Path
from threading import RLock
from typing import Any, cast

import fsspec
import tifffile
from tifffile.tifffile import jpeg_shape
from tiffslide import TiffSlide

from wsi_ips.errors import (
    DamagedSlide,
    FileError,
    SlideClosed,
    SlideInterrupted,
    SlideNotFound,
    SlideReadError,
    SlideUnreachable,
    UnsupportedSlide,
)
from wsi_ips.slides.base import (
    WHITE,
    ClosingReader,
    Level,
    RgbImage,
    SlideInfo,
    check_region,
    level_pixel,
    paste,
    white_region,
)
from wsi_ips.slides.remote import NO_RANGES, TIMEOUT_SECONDS, network_error, storage_options
from wsi_ips.slides.resolution import MICRONS_PER, believable_xy, mpp_of_resolution
from wsi_ips.slides.tiff.ome import read_ome_xml
from wsi_ips.slides.tile_places import check_levels
from wsi_ips.storage.disk_cache import CachedFile, DiskCache
from wsi_ips.storage.files import outside_cause, system_cause
from wsi_ips.storage.location import Location, Url, locate
from wsi_ips.units import L0Point, Mpp, Size

BLOCK_BYTES = 1 << 17
"""What is fetched at once, a few tiles. fsspec's own 5 MiB suit files that are read in order."""

KEPT_BLOCKS = 64
"""How many blocks are kept."""

IDENTIFIES_CONTENT = ("ETag", "etag", "e_tag", "generation", "md5Hash", "content_md5", "Content-MD5")
"""What file systems of fsspec call that which changes when the content of a file does."""

MOST_IMAGES = 1000
"""The most images of a file."""

OTHER_VENDORS = {
    "is_scn": "Leica SCN",
    "is_bif": "Ventana BIF",
    "is_ndpi": "Hamamatsu NDPI",
    "is_philips": "Philips TIFF",
}
"""tifffile's flags of vendors whose slides are refused, and what they are called."""

RGB, YCBCR = tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR
"""Values of PhotometricInterpretation that are read."""

JPEG, JPEG2000 = tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.APERIO_JP2000_RGB
"""Compressions whose header states the size of the tile."""

PLAIN = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
)
"""Compressions that tifffile decodes to as many bytes as the tile has, and no more."""


logger = logging.getLogger(__name__)


class TiffSlideReader(ClosingReader):
    """A reader of a slide at a URL, for example ``TiffSlideReader("https://host/slide.svs")``.

    Reads from several threads wait for each other. ``timeout_s`` is how many seconds to wait for a connection, and
    for data. Raises :class:`SlideNotFound`, :class:`SlideUnreachable`, and :class:`UnsupportedSlide` for a file
    that is not read here.
    """

    def __init__(self, path: Location | str, *, timeout_s: float = TIMEOUT_SECONDS) -> None:
        self._path = locate(path)
        self._timeout_s = timeout_s
        self._lock = RLock()
        self._closed = False
        self._disk_cache: DiskCache | None = None
        self._handle: _LevelSlide | None = self._open()
        self._info = _described(self._path, self._handle)

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``, ``l0_xy`` its top left corner in level-0 pixels. A
        position between two pixels of the level goes to the nearest one. What lies outside the slide is white.
        Returns (height, width, 3) uint8, a new array.

        Raises :class:`SlideReadError` if a tile cannot be decoded, and :class:`SlideInterrupted` if the network is
        to blame.
        """
        check_region(self._info, level=level, size_px=size_px)
        level_size = self._info.levels[level].size
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        left, top = max(0, lv_x), max(0, lv_y)
        width = min(level_size[0], lv_x + int(size_px[0])) - left
        height = min(level_size[1], lv_y + int(size_px[1])) - top
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            if width <= 0 or height <= 0:
                return white_region(size_px)
            inside = self._read_inside((left, top), int(level), (width, height))
        if (width, height) == tuple(size_px):
            return inside
        region = white_region(size_px)
        paste(region, inside, at=(left - lv_x, top - lv_y))
        return region

    def read_through(self, cache: DiskCache) -> None:
        """Keep what is fetched from now on in a cache on a local disk, and read from there what it holds.

        That needs a server that says when the content changes (an ETag, or what S3, GCS and Azure have of that
        kind); without one, everything is fetched each time. What the headers of the file hold is fetched when it
        is opened. A reader that is pickled forgets the cache.
        """
        with self._lock:
            self._disk_cache = cache
            if self._handle is not None:
                self._handle.read_through(cache)

    def close(self) -> None:
        """Release the connection. May be called twice."""
        with self._lock:
            self._closed = True
            self._drop()

    def _read_inside(self, lv_xy: Size, level: int, size_px: Size) -> RgbImage:
        """Read a region that lies inside the level. After an error, the next read starts with a new handle."""
        try:
            if self._handle is None:
                self._handle = self._open()
            region = self._handle.read_region(lv_xy, level, size_px, as_array=True, padding=False)
            return cast(RgbImage, region)
        except Exception as error:  # the network's, fsspec's, tifffile's, zarr's and the codecs' errors
            self._drop()
            known = error if isinstance(error, FileError) else _network_error(self._path, error)
            cause = outside_cause(error)
            interrupted = isinstance(known, SlideUnreachable | SlideNotFound) or system_cause(error)
            failed = (SlideInterrupted if interrupted else SlideReadError)(
                self._path,
                f"level {level} cannot be read at its pixel ({lv_xy[0]}, {lv_xy[1]}): "
                + (
                    known.args[1] if known else cause.problem if cause else f"{type(error).__name__}: {error}"
                ),
                "try again, or download it",
            )
            logger.debug("%s", failed, exc_info=error)
        raise failed

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _open(self) -> "_LevelSlide":
        file = _open_file(self._path, timeout_s=self._timeout_s)
        try:
            handle = _checked(self._path, file)
            if self._disk_cache is not None:
                handle.read_through(self._disk_cache)
            return handle
        except Exception as error:  # tifffile meets hostile files with whatever its parsing runs into
            file.close()
            failed = (error if isinstance(error, FileError) else None) or _network_error(self._path, error)
            failed = failed or UnsupportedSlide(self._path, f"not a TIFF that can be understood: {error}")
            logger.debug("%s", failed, exc_info=error)
        raise failed

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("_path", "_timeout_s", "_closed", "_info")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()
        self._disk_cache = None
        self._handle = None  # the first read opens


class _LevelSlide(TiffSlide):
    """A TiffSlide whose positions are pixels of the level, and that closes its file.

    tiffslide itself takes positions in level-0 pixels, and cuts fractions off.
    """

    def __init__(self, file: Any, *, name: str) -> None:
        self._file = file
        # _multifile is off, because an OME-TIFF may name other files anywhere.
        super().__init__(file, tifffile_options={"name": name, "_multifile": False})

    def read_through(self, cache: DiskCache) -> None:
        """Read tiles through a cache from now on, if the file is a remote one that the cache can know."""
        if isinstance(self._file, _RemoteFile):
            self._file.read_through(cache)

    def close(self) -> None:
        """Close the slide and its file."""
        super().close()
        self._file.close()

    def _read_region_loc_transform(self, location: tuple[int, int], level: int) -> tuple[int, int]:
        return location


class _RemoteFile(RawIOBase):
    """A file of fsspec's that can be read through a cache on a local disk."""

    def __init__(self, file: Any, *, url: Url) -> None:
        super().__init__()
        self._file = file
        self._url = url
        self._size = int(file.size)
        self._place = 0
        self._cached: CachedFile | None = None

    def read_through(self, cache: DiskCache) -> None:
        """Use the cache, if the server says what the content is identified by."""
        details = self._file.details
        stated = [f"{name}={details[name]}" for name in IDENTIFIES_CONTENT if details.get(name)]
        stated = [each for each in stated if "=W/" not in each]  # a weak ETag promises no equal bytes
        if stated:
            self._cached = cache.content("\n".join([self._url, str(self._size), *stated]), self._size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        start = {SEEK_SET: 0, SEEK_CUR: self._place, SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} lies before the file")
        self._place = start + offset
        return self._place

    def readinto(self, into: Any, /) -> int:
        data = self._at(self._place, len(memoryview(into).cast("B")))
        memoryview(into).cast("B")[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _at(self, offset: int, count: int) -> bytes:
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        return (
            self._fetched(offset, count)
            if self._cached is None
            else self._cached.read(offset, count, self._fetched)
        )

    def _fetched(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return bytes(self._file.read(count))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_file(path: Location, *, timeout_s: float) -> Any:
    if isinstance(path, Path):
        try:
            return path.open("rb")
        except OSError as error:
            raise UnsupportedSlide(path, f"cannot be read: {error.strerror or error}") from error
    options = storage_options(path, reader="tiffslide", timeout_s=timeout_s)
    file: Any = None
    failed: FileError | None = None
    try:
        filesystem, inner = fsspec.url_to_fs(str(path), **options)
        cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": KEPT_BLOCKS}}
        file = filesystem.open(inner, block_size=BLOCK_BYTES, **cache)
    except Exception as error:
        failed = network_error(path, error) or UnsupportedSlide(path, f"cannot be opened: {error}")
        logger.debug("%s", failed, exc_info=error)
    if failed is not None:
        raise failed
    if isinstance(file, BytesIO):  # memory:// hands everyone the same writable file, with one position
        return BufferedReader(BytesIO(file.getvalue()))
    try:
        file.seek(1)  # fails for a stream, which fsspec returns for a server without ranges or a length
        file.seek(0)
    except (OSError, ValueError) as error:
        file.close()
        raise SlideUnreachable(path, NO_RANGES, "download the file and name its path") from error
    return _RemoteFile(file, url=path) if hasattr(file, "details") else file


def _checked(path: Location, file: Any) -> _LevelSlide:
    """Open the slide and check it. Raises :class:`UnsupportedSlide` or :class:`DamagedSlide`."""
    slide = _LevelSlide(file, name=path.name)
    tiff = slide.ts_tifffile
    for number, _ in enumerate(tiff.pages):
        if number >= MOST_IMAGES:
            raise UnsupportedSlide(path, f"more than {MOST_IMAGES} images")
    vendor = next((name for flag, name in OTHER_VENDORS.items() if getattr(tiff, flag)), None)
    if vendor:
        raise UnsupportedSlide(path, f"{vendor} is not read by tiffslide here", "download it")
    levels = tiff.series[0].levels
    for number, series in enumerate(levels):
        page = series.keyframe
        _check_page(path, number, series.axes, page)
        # tifffile fills tiles without data with this value. Its default is black, which would count as tissue.
        page.nodata = WHITE
        page.decode = _guarded(page)
    sizes = [(series.keyframe.imagewidth, series.keyframe.imagelength) for series in levels]
    check_levels(path, sizes, [(s.keyframe.tilewidth, s.keyframe.tilelength) for s in levels])
    if list(slide.level_dimensions) != sizes:
        raise UnsupportedSlide(path, "tiffslide gives its levels other sizes than the file does")
    return slide


def _check_page(path: Location, level: int, axes: str, page: Any) -> None:
    if not page.is_tiled:
        raise UnsupportedSlide(
            path,
            f"level {level} is not tiled: a flat image of {page.imagewidth}x{page.imagelength}",
            "make it a tiled pyramid, e.g. vips tiffsave --tile --pyramid",
        )
    if axes != "YXS" or page.samplesperpixel != 3 or page.dtype != "uint8":
        raise UnsupportedSlide(
            path,
            f"level {level} is {page.samplesperpixel} x {page.dtype} with axes {axes}, not RGB in 8 bits",
        )
    if page.compression not in (JPEG, JPEG2000, *PLAIN):
        raise UnsupportedSlide(path, f"level {level} has the compression {page.compression!r}")
    if page.photometric != RGB and not (page.photometric == YCBCR and page.compression == JPEG):
        raise UnsupportedSlide(path, f"level {level} has the colour space {page.photometric!r}")
    tiles = -(-page.imagewidth // max(1, page.tilewidth)) * -(-page.imagelength // max(1, page.tilelength))
    if not len(page.dataoffsets) == len(page.databytecounts) == tiles:
        raise DamagedSlide(path, f"level {level} needs {tiles} tiles, {len(page.dataoffsets)} are listed")
    end, size = max(map(add, page.dataoffsets, page.databytecounts)), page.parent.filehandle.size
    if end > size:
        raise DamagedSlide(
            path, f"truncated: level {level} goes on to byte {end}, the file has {size}", "copy it again"
        )


def _guarded(page: Any) -> Callable[..., Any]:
    """The decoder of a page, which decodes only tiles whose headers state the size that the page says.

    The decoder itself allocates whatever the header of a JPEG claims.
    """
    decode, expected = page.decode, (page.tilelength, page.tilewidth, 3)

    def decode_checked(data: bytes | None, index: int, /, **options: Any) -> Any:
        if data is not None and page.compression in (JPEG, JPEG2000):
            stated = _jpeg_shape(data) if page.compression == JPEG else _jpeg2000_shape(data)
            if stated != expected:
                raise ValueError(f"tile {index} is {stated}, not {expected} (height, width, samples)")
        return decode(data, index, **options)

    return decode_checked


def _jpeg_shape(data: bytes) -> tuple[int, int, int]:
    _, height, width, samples = jpeg_shape(data)
    return height, width, samples


def _jpeg2000_shape(data: bytes) -> tuple[int, int, int]:
    """(height, width, components) of a codestream, from its SIZ segment (ISO/IEC 15444-1, A.5.1)."""
    if not data.startswith(b"\xff\x4f\xff\x51"):
        raise ValueError("not a JPEG 2000 codestream")
    right, bottom, left, top, *_, components = struct.unpack_from(">8IH", data, 8)
    return bottom - top, right - left, components


def _described(path: Location, slide: TiffSlide) -> SlideInfo:
    properties = slide.properties
    return SlideInfo(
        path=path,
        reader="tiffslide",
        vendor=properties.get("tiffslide.vendor") or "generic-tiff",
        levels=tuple(map(Level, slide.level_dimensions, slide.level_downsamples)),
        mpp_xy=_mpp_xy(path, slide),
    )


def _network_error(path: Location, error: Exception) -> FileError | None:
    return network_error(path, error) if isinstance(path, Url) else None


def _number(stated: Any) -> float | None:
    """What a file states as a number, or None if it is none."""
    try:
        return None if stated is None else float(stated)
    except (TypeError, ValueError):
        return None


def _mpp_xy(path: Location, slide: TiffSlide) -> tuple[Mpp, Mpp] | None:
    tiff = slide.ts_tifffile
    if tiff.is_ome:
        with suppress(UnsupportedSlide):  # XML that is broken states no resolution
            of_xml = read_ome_xml(path, tiff.pages.first.description).images[0].mpp_xy
            if of_xml:
                return of_xml
    stated = (slide.properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    x, y = map(_number, stated)
    if not tiff.is_svs:  # tiffslide believes the tags of other files, whatever image program wrote them
        x, y = (value and mpp_of_resolution(MICRONS_PER["inch"] / value, "inch") for value in (x, y))
    return believable_xy(x, y)
