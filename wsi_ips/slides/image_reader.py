"""Readers of plain images (:class:`ImageReader`: PNG, JPEG, untiled TIFF) and of arrays (:class:`MemoryReader`).

A plain image has no block that could be read by itself. It is one level, which is decoded whole on the first read
and held in memory; files of more than :data:`MOST_PX` pixels are refused. Samples of 16 bits become ``floor((v +
128) / 257)``, as in OpenSlide. Transparent pixels are laid over white. The orientation that a camera wrote into a
JPEG is applied.

A :class:`MemoryReader` makes a slide out of an array, for tests and for callers that have their pixels already.
"""

import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from wsi_ips.errors import ConfigError, SlideClosed, SlideInterrupted, SlideReadError, UnsupportedSlide
from wsi_ips.slides.base import (
    WHITE,
    Bounds,
    ClosingReader,
    LeftOut,
    Level,
    RgbImage,
    SlideInfo,
    check_region,
    level_pixel,
    paste,
    white_region,
)
from wsi_ips.slides.resolution import believable_xy, mpp_of_resolution
from wsi_ips.slides.tiff import directories as tag
from wsi_ips.slides.tiff.directories import PARSING_ERRORS, TiffImage, opened_directories
from wsi_ips.slides.tiff.layout import scanner_of
from wsi_ips.slides.tiff.tile_formats import resolution_mpp
from wsi_ips.storage.files import CONVERT as CONVERT_OR_COPY
from wsi_ips.storage.files import OutsideCause, outside_cause, system_cause
from wsi_ips.units import L0Point, Mpp, Size

MOST_PX = 178_000_000
"""The most pixels of a plain image, 534 MB of RGB.

Pillow takes files of about this size for decompression bombs.
"""

CONVERT = "make it a tiled pyramid, e.g. vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
"""The fix for an image that is too large."""

NOT_PLAIN = "not a plain image (PNG, JPEG, TIFF)"
"""Why a file of another kind is refused."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""

PNG_START = b"\x89PNG\r\n\x1a\n"
"""First bytes of PNG files."""

PILLOW_FORMATS = ("PNG", "JPEG")
"""The formats that Pillow may try."""

PILLOW_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Pillow's modes of grey and RGB images, with and without transparency."""

SWAPS_SIDES = frozenset({5, 6, 7, 8})
"""EXIF orientations that turn an image by a quarter."""

EXIF_ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

BROKEN = "the file is damaged or incomplete; copy it again, or leave the slide out"
"""The fix for a file that cannot be decoded."""

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
"""Values of TIFF's PhotometricInterpretation."""


class ImageReader(ClosingReader):
    """A reader of one PNG, JPEG or untiled TIFF file.

    Raises :class:`UnsupportedSlide` for another kind of file, or one that is too large to be held in memory.
    """

    _pixels: RgbImage | None

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._closed = False
        self._unread()
        found = _look_at(self._path)
        self._info = SlideInfo(
            path=self._path,
            reader="image",
            vendor=found.kind,
            levels=(Level(found.size, 1.0),),
            mpp_xy=found.mpp_xy,
            left_out=found.left_out,
            icc_profile=found.icc_profile,
        )

    @property
    def info(self) -> SlideInfo:
        """The description of the image."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of the image. ``level`` has to be 0.

        ``size_px`` is (width, height) in pixels and ``l0_xy`` the top left corner. What lies outside the image is
        white. Returns (height, width, 3) uint8, a new array. The first read decodes the file, and raises
        :class:`SlideReadError` if that fails.
        """
        check_region(self._info, level=level, size_px=size_px)
        pixels = self._decoded()
        region = white_region(size_px)
        paste(region, pixels, at=(-int(l0_xy[0]), -int(l0_xy[1])))
        return region

    def close(self) -> None:
        """Release the pixels. May be called twice."""
        with self._lock:
            self._closed, self._pixels = True, None

    def _decoded(self) -> RgbImage:
        with self._lock:
            if self._closed:
                raise SlideClosed(self._path)
            if self._pixels is None:
                self._pixels = self._decode()
            return self._pixels

    def _decode(self) -> RgbImage:
        try:
            pixels = _pixels(self._path)
        except UnsupportedSlide as error:  # it was an image when it was opened
            raise SlideReadError(*error.args) from error
        except (OSError, *PARSING_ERRORS) as error:
            if cause := system_cause(error):
                raise SlideInterrupted(self._path, cause.problem, cause.fix) from error
            cause = outside_cause(error)
            fix = cause.fix if cause else BROKEN
            raise SlideReadError(self._path, f"cannot be decoded: {error}", fix) from error
        except ImportError as error:  # a codec that is not in this installation
            raise SlideInterrupted(self._path, f"cannot be decoded here: {error}", CONVERT_OR_COPY) from error
        if pixels.shape[1::-1] != self._info.l0_size:
            raise SlideReadError(
                self._path,
                "is another file now than when it was opened",
                "do not write to it while it is read",
            )
        return pixels

    def _unread(self) -> None:
        self._lock = RLock()
        self._pixels = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_info": self._info, "_closed": self._closed}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._unread()


@dataclass(frozen=True, slots=True)
class _Found:
    """What an image's header says."""

    kind: str
    size: Size
    mpp_xy: tuple[Mpp, Mpp] | None
    icc_profile: bool
    left_out: tuple[LeftOut, ...] = ()


def _look_at(path: Path) -> _Found:
    """Read the header of an image. Raises :class:`UnsupportedSlide` for a file that is not read here."""
    if path.is_dir():
        raise UnsupportedSlide(path, "a folder, not an image")
    if path.suffix.lower() == ".mrxs":
        raise UnsupportedSlide(path, "the small picture of a MIRAX slide, not the slide")
    try:
        found = _look_at_tiff(path) if _start(path).startswith(TIFF_STARTS) else _look_by_pillow(path)
    except OSError as error:
        cause = system_cause(error) or OutsideCause(f"cannot be read: {error.strerror or error}", "")
        raise UnsupportedSlide(path, cause.problem, cause.fix) from error
    width, height = found.size
    if not 0 < width * height <= MOST_PX:
        raise UnsupportedSlide(
            path,
            f"a plain image of {width}x{height} px, which would have to be decoded whole (at most "
            f"{MOST_PX // 1_000_000} million pixels are)",
            CONVERT,
        )
    return found


def _pixels(path: Path) -> RgbImage:
    """Decode a file to (height, width, 3) uint8. Raises what the decoders raise."""
    start = _start(path)
    if start.startswith(TIFF_STARTS):
        return _tiff_pixels(path)
    if start.startswith(PNG_START) and start[24] == 16:  # Pillow would cut 16 bits to their upper 8
        return _as_rgb(imagecodecs.png_decode(path.read_bytes()))
    with _opened_by_pillow(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and "transparency" not in upright.info:
            return np.array(upright)
        return _as_rgb(np.asarray(upright.convert("RGBA")))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _opened_by_pillow(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=PILLOW_FORMATS)


def _look_by_pillow(path: Path) -> _Found:
    try:
        image = _opened_by_pillow(path)
    except UnidentifiedImageError as error:
        raise UnsupportedSlide(path, NOT_PLAIN) from error
    except Image.DecompressionBombError as error:
        raise UnsupportedSlide(
            path, f"a plain image too large to be decoded whole ({error})", CONVERT
        ) from error
    except (ValueError, SyntaxError, struct.error, OverflowError) as error:
        raise UnsupportedSlide(path, f"{NOT_PLAIN}: {error}") from error
    with image:
        if image.mode not in PILLOW_MODES:
            raise UnsupportedSlide(path, f"colours as {image.mode}, not RGB or grey", "save it as RGB")
        turned = image.format == "JPEG" and image.getexif().get(EXIF_ORIENTATION) in SWAPS_SIDES
        x, y = (mpp_of_resolution(float(dpi), "inch") for dpi in image.info.get("dpi", (0, 0)))
        return _Found(
            (image.format or "image").lower(),
            image.size[::-1] if turned else image.size,
            believable_xy(y, x) if turned else believable_xy(x, y),
            "icc_profile" in image.info,
        )


def _look_at_tiff(path: Path) -> _Found:
    with opened_directories(path, file_size=path.stat().st_size) as file:
        first = file.first
        if scanner := scanner_of(file):
            # Its first image may be a label, or the whole slide in a code of its own.
            raise UnsupportedSlide(path, f"a slide as {scanner} scanners write it, and no plain image")
        _refuse_odd_tiff(path, first)
        others = tuple(
            LeftOut(f"page {image.number}, {image.size[0]}x{image.size[1]} px", "a plain image has one level")
            for image in file.images[1:]
        )
        return _Found("tiff", first.size, resolution_mpp(first), tag.ICC_PROFILE in first.tags, others)


def _refuse_odd_tiff(path: Path, image: TiffImage) -> None:
    if image.is_tiled:
        raise UnsupportedSlide(path, "tiled, so no plain image")
    bits, samples = set(image.integers(tag.BITS, 1)), image.integer(tag.SAMPLES, 1)
    photometric = int(image.value(tag.PHOTOMETRIC, MIN_IS_BLACK))
    grey = photometric in {MIN_IS_WHITE, MIN_IS_BLACK}
    odd = []
    if bits not in ({8}, {16}) or max(image.integers(tag.SAMPLE_FORMAT, 1)) != 1:
        odd.append(f"samples of {'/'.join(map(str, sorted(bits)))} bits, not 8 or 16 bit unsigned")
    if not grey and photometric not in {RGB, YCBCR, PALETTE}:
        odd.append(f"colours of kind {photometric}")
    if samples not in ({1, 2} if grey or photometric == PALETTE else {3, 4}):
        odd.append(f"{samples} samples a pixel")
    if image.integer(tag.ORIENTATION, 1) != 1:
        odd.append(f"orientation {image.integer(tag.ORIENTATION, 1)}")
    if odd:
        raise UnsupportedSlide(path, f"a plain TIFF with {', '.join(odd)}", "save it as 8-bit RGB")


def _tiff_pixels(path: Path) -> RgbImage:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        samples = page.asarray()
        if page.planarconfig == 2 and samples.ndim == 3:
            samples = np.moveaxis(samples, 0, 2)
        if page.photometric == PALETTE:
            # TIFF's colour tables have 16 bits a channel, (3, 256 or 65536).
            colours = _to_8_bits(np.asarray(page.colormap).T)
            return np.asarray(colours[samples])
        if page.photometric == MIN_IS_WHITE:
            samples = np.iinfo(samples.dtype).max - samples
        associated = 1 in (page.extrasamples or ())
    return _as_rgb(samples, premultiplied=associated)


def _as_rgb(samples: NDArray[Any], *, premultiplied: bool = False) -> RgbImage:
    """Lay samples over white as (height, width, 3) uint8.

    ``samples`` are grey, grey and alpha, RGB, or RGB and alpha, in 8 or 16 bits. ``premultiplied`` says that the
    colours are already multiplied by alpha.
    """
    eight = _to_8_bits(samples)
    if eight.ndim == 2:
        eight = eight[..., None]
    colours, alpha = (eight[..., :-1], eight[..., -1:]) if eight.shape[2] in (2, 4) else (eight, None)
    rgb = np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))
    if alpha is None or (alpha == WHITE).all():
        return rgb
    share = alpha.astype(np.float32) / WHITE
    over = rgb + WHITE * (1 - share) if premultiplied else rgb * share + WHITE * (1 - share)
    return np.rint(over).clip(0, WHITE).astype(np.uint8)


def _to_8_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype != np.uint16:
        raise ValueError(f"samples of {samples.dtype}")
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


class MemoryReader(ClosingReader):
    """A slide made of an array, for example ``MemoryReader(image, mpp=Mpp(0.5), levels=(1, 4))``.

    Args:
        image: (height, width, 3) uint8 RGB, level 0. It is copied.
        mpp: µm per pixel, None if it is not known.
        levels: Downsample factors from 1 upwards. Coarser levels are means of areas (Pillow's BOX filter), and at
            least one pixel wide and high.
        name: What the slide is called in its description and in messages.
        bounds: The scanned area in level-0 pixels, if the description should state one.

    Raises :class:`ConfigError` for another kind of array, or for factors out of order.
    """

    def __init__(
        self,
        image: RgbImage,
        *,
        mpp: Mpp | None = None,
        levels: Sequence[float] = (1,),
        name: str = "memory",
        bounds: Bounds | None = None,
    ) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ConfigError(f"{name}: expected (height, width, 3) uint8, got {image.shape} {image.dtype}")
        if not levels or levels[0] != 1 or any(finer >= coarser for finer, coarser in pairwise(levels)):
            raise ConfigError(f"{name}: levels are factors from 1 upwards, got {tuple(levels)}")
        # A copy: the caller's array may change after.
        self._images = [image.copy(), *(_shrink(image, factor) for factor in levels[1:])]
        self._info = SlideInfo(
            path=Path(name),
            reader="memory",
            vendor="memory",
            levels=tuple(_level(shrunk, of=image) for shrunk in self._images),
            mpp_xy=None if mpp is None else (mpp, mpp),
            bounds=bounds,
        )
        self._closed = False

    @property
    def info(self) -> SlideInfo:
        """The description of the slide."""
        return self._info

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        """Read a region of a level.

        ``size_px`` is (width, height) in pixels of ``level``, ``l0_xy`` its top left corner in level-0 pixels. A
        position between two pixels of the level goes to the nearest one. What lies outside the slide is white.
        Returns (height, width, 3) uint8, a new array.
        """
        if self._closed:
            raise SlideClosed(self._info.path)
        check_region(self._info, level=level, size_px=size_px)
        lv_x, lv_y = level_pixel(l0_xy, self._info.levels[level].downsample)
        region = white_region(size_px)
        paste(region, self._images[level], at=(-lv_x, -lv_y))
        return region

    def called(self, reader: str) -> None:
        """Say in the description which reader made this slide, in place of "memory"."""
        self._info = replace(self._info, reader=reader)

    def close(self) -> None:
        """Make the reader unusable. May be called twice."""
        self._closed = True


def _shrink(image: RgbImage, factor: float) -> RgbImage:
    height, width = image.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _level(image: RgbImage, *, of: RgbImage) -> Level:
    height, width = image.shape[:2]
    return Level((width, height), (of.shape[1] / width + of.shape[0] / height) / 2)
