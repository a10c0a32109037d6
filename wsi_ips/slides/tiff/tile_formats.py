"""A tiled TIFF image as a level: how its tiles are stored, and where they lie.

:func:`tiled_level` makes the level. :func:`tile_format` turns the tags into a :class:`TileFormat`, or says why
they cannot be read. :func:`misread_by_openslide` tells which images OpenSlide would show wrongly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, RefusedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.base import RGB_8, Alpha, Samples, TileFormat
from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.codecs.plain import Packing, PictureCodec, PictureTiles, PlainTiles
from wsi_ips.slides.resolution import believable_xy, mpp_of_resolution
from wsi_ips.slides.tiff import directories as tag
from wsi_ips.slides.tiff.directories import TiffDirectories, TiffImage
from wsi_ips.slides.tile_layout import TRUNCATED, TileLayout
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX
from wsi_ips.units import Mpp, Size


class Compression(IntEnum):
    """TIFF compression schemes that are decoded here."""

    NONE = 1
    LZW = 5
    JPEG = 7
    DEFLATE = 8
    PACKBITS = 32773
    DEFLATE_OLD = 32946
    JPEG2000_33003 = 33003
    """Y, Cb, Cr in Aperio's files. In those of Bio-Formats, what the photometric tag says."""
    JPEG2000_33004 = 33004
    JPEG2000_33005 = 33005
    JPEG2000 = 34712
    LZMA = 34925
    ZSTD_OLD = 34926
    WEBP_OLD = 34927
    ZSTD = 50000
    WEBP = 50001
    JPEG_XL = 50002
    JPEG_XL_DNG = 52546


PACKINGS = frozenset({*Packing} & {*Compression})
"""Lossless packings of plain samples."""

JPEG2000S = frozenset(
    {Compression.JPEG2000_33003, Compression.JPEG2000_33004, Compression.JPEG2000_33005, Compression.JPEG2000}
)
"""Numbers of JPEG 2000."""

WEBPS = frozenset({Compression.WEBP, Compression.WEBP_OLD})
"""Numbers of WebP."""

JPEG_XLS = frozenset({Compression.JPEG_XL, Compression.JPEG_XL_DNG})
"""Numbers of JPEG XL."""


class Photometric(IntEnum):
    """Values of PhotometricInterpretation."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    INKS = 5
    YCBCR = 6


GREYS = frozenset({Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO})
"""Colour spaces of grey images."""

UPRIGHT = frozenset({0, 1})
"""Orientations that turn nothing. 0 stands in files whose writers left the tag empty."""

SEPARATE_PLANES = LOWEST_BIT_FIRST = 2
"""The values of PlanarConfiguration and FillOrder that mean this."""

UNSIGNED = frozenset({1, 4})
"""SampleFormats that are read as unsigned integers."""

SAMPLE_FORMATS: Mapping[int, str] = MappingProxyType(
    {1: "whole", 2: "signed", 3: "floating-point", 4: "untyped", 5: "complex", 6: "complex"}
)
"""What the numbers of TIFF's SampleFormat mean. 4 is read like 1."""


def tiled_level(
    file: TiffDirectories,
    image: TiffImage,
    *,
    level_size: Size | None = None,
    samples: Samples | None = None,
    planes: Sequence[TiffImage] = (),
    aperio: bool = False,
) -> TileLayout:
    """The tiles of an image as a level.

    Args:
        file: The directories of the file.
        image: The image directory.
        level_size: (width, height), if the container knows it better than the tags.
        samples: What the samples mean, if the container knows it better than the tags.
        planes: Further images that hold the next colours of the same picture, stored in the same way.
        aperio: Whether compression 33003 means Y, Cb, Cr whatever the photometric tag says.

    Raises :class:`UnsupportedSlide` for what is left to OpenSlide, :class:`RefusedSlide` for what OpenSlide would
    show wrongly, and :class:`DamagedSlide` for tags that cannot be right, or tables that do not fit the sizes or
    the file.
    """
    path = file.path
    tile = tile_format(path, image, samples=samples, planes=bool(planes), aperio=aperio)
    width, height = count(path, image, tag.IMAGE_WIDTH), count(path, image, tag.IMAGE_LENGTH)
    cols, rows = -(-width // tile.size[0]), -(-height // tile.size[1])
    tables = [_tables(file, one, (width, height), cols * rows) for one in (image, *planes)]
    offsets, byte_counts = (
        np.column_stack(table) if planes else table[0] for table in zip(*tables, strict=True)
    )
    return TileLayout(
        level_size=level_size or (width, height),
        tile=tile,
        cols=cols,
        rows=rows,
        offsets=offsets,
        byte_counts=byte_counts,
    )


def tile_format(
    path: Path,
    image: TiffImage,
    *,
    samples: Samples | None = None,
    planes: bool = False,
    aperio: bool = False,
) -> TileFormat:
    """How the tiles of an image are stored.

    Args:
        path: The slide, for messages.
        image: The image directory.
        samples: What the samples mean, if the container knows it better than the tags.
        planes: Whether the image holds one of several colours, each of which is stored like this one.
        aperio: Whether compression 33003 means Y, Cb, Cr whatever the photometric tag says.

    Raises :class:`UnsupportedSlide` for what is left to OpenSlide, :class:`RefusedSlide` for what OpenSlide would
    show wrongly, and :class:`DamagedSlide` for tags that cannot be right.
    """
    samples = samples or stated_samples(path, image)
    size = count(path, image, tag.TILE_WIDTH), count(path, image, tag.TILE_LENGTH)
    if size[0] * size[1] > LARGEST_BLOCK_PX:
        raise DamagedSlide(path, f"its header states tiles of {size[0]}x{size[1]} px", "the file is damaged")
    compression, photometric = image.value(tag.COMPRESSION, 1), image.value(tag.PHOTOMETRIC, -1)
    planes = planes or is_planar(image)
    ycbcr, plain = photometric == Photometric.YCBCR, samples in (RGB_8, replace(RGB_8, colours=1))
    tiles: TileFormat | None = None
    if compression == Compression.JPEG:
        tiles = _jpeg(image, samples, size, planes=planes) if plain else None
    elif compression in JPEG2000S:
        means_ycbcr = compression == Compression.JPEG2000_33003 and (aperio or ycbcr)
        if samples == RGB_8 if means_ycbcr else not ycbcr:
            tiles = Jpeg2000Tiles(size=size, samples=samples, planes=planes, ycbcr=means_ycbcr)
    elif compression in WEBPS and samples.colours == 3 and samples.bits == 8 and not planes:
        tiles = PictureTiles(size=size, codec=PictureCodec.WEBP, samples=samples)
    elif compression in JPEG_XLS and not ycbcr:
        tiles = PictureTiles(size=size, codec=PictureCodec.JPEG_XL, samples=samples)
    elif compression in PACKINGS and not ycbcr:
        tiles = _plain(path, image, samples, size)
    if tiles is None:
        colours = f"{named(photometric)} of {samples.bits} bits"
        raise refusal(path, image, f"compression {named(compression)} with colours as {colours}")
    return tiles


def stated_samples(path: Path, image: TiffImage) -> Samples:
    """What the samples are according to the tags of the image.

    Raises :class:`UnsupportedSlide` for samples that are left to OpenSlide, and :class:`RefusedSlide` for samples
    that OpenSlide would show wrongly.
    """
    photometric, n_samples = image.value(tag.PHOTOMETRIC, -1), image.integer(tag.SAMPLES, 1)
    bits = set(image.integers(tag.BITS, 1))
    if bits not in ({8}, {16}) or not set(image.integers(tag.SAMPLE_FORMAT, 1)) <= UNSIGNED:
        raise refusal(path, image, f"{n_samples} samples of {'/'.join(map(str, sorted(bits)))} bits")
    if photometric not in {*GREYS, Photometric.RGB, Photometric.YCBCR}:
        raise refusal(path, image, f"colours as {named(photometric)}")
    colours = 1 if photometric in GREYS else 3
    extra = image.integers(tag.EXTRA_SAMPLES, 0)[: max(0, n_samples - colours)]
    if (
        n_samples < colours
        or len(extra) > 1
        or n_samples > colours + len(extra)
        or extra not in ([], [1], [2])
    ):
        raise refusal(path, image, f"{n_samples} samples a pixel")
    alpha = Alpha.NONE if not extra else Alpha.ASSOCIATED if extra == [1] else Alpha.UNASSOCIATED
    white_is_zero = photometric == Photometric.WHITE_IS_ZERO
    if white_is_zero and alpha is not Alpha.NONE:
        raise refusal(path, image, "grey that counts from white, with transparency")
    return Samples(colours=colours, bits=bits.pop(), alpha=alpha, white_is_zero=white_is_zero)


def _jpeg(image: TiffImage, samples: Samples, size: Size, *, planes: bool) -> JpegTiles | None:
    photometric, tables = image.value(tag.PHOTOMETRIC, -1), image.data(tag.JPEG_TABLES)
    if planes or samples.colours == 1:
        if photometric == Photometric.YCBCR:
            return None
        return JpegTiles(size=size, colours=Colours.GREY, tables=tables)
    colours = {Photometric.RGB: Colours.RGB, Photometric.YCBCR: Colours.YCBCR}.get(photometric)
    return colours and JpegTiles(size=size, colours=colours, tables=tables)


def _plain(path: Path, image: TiffImage, samples: Samples, size: Size) -> PlainTiles:
    predictor = image.integer(tag.PREDICTOR, 1)
    if predictor not in {1, 2}:
        raise refusal(path, image, f"predictor {predictor}")
    return PlainTiles(
        size=size,
        packing=Packing(int(image.value(tag.COMPRESSION, 1))),
        horizontal_predictor=predictor == 2,
        samples=samples,
        big_endian=image.big_endian,
        reversed_bits=image.integer(tag.FILL_ORDER, 1) == LOWEST_BIT_FIRST,
    )


def _tables(
    file: TiffDirectories, image: TiffImage, size: Size, tiles: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The offsets and byte counts of the tiles.

    Both are (tiles,), or (tiles, samples) if each sample has tiles of its own.
    """
    path, (width, height) = file.path, size
    planes = image.integer(tag.SAMPLES, 1) if is_planar(image) else 1
    entries = [image.tags.get(code) for code in (tag.TILE_OFFSETS, tag.TILE_BYTE_COUNTS)]
    for table in entries:
        held = 0 if table is None else table.count
        if held != tiles * planes:
            raise DamagedSlide(
                path,
                f"its header states {width}x{height} px, that is {tiles * planes} tiles, and lists {held}",
                "the file is damaged or cut short; copy it again",
            )
    offsets, byte_counts = (np.atleast_1d(np.asarray(table.value, np.uint64)) for table in entries if table)
    used = byte_counts > 0
    file_size = np.uint64(file.file_size)
    beyond = used & ((offsets > file_size) | (byte_counts > file_size - np.minimum(offsets, file_size)))
    if beyond.any():
        raise DamagedSlide(
            path,
            f"truncated: {int(beyond.sum())} of {tiles * planes} tiles of its {width}x{height} level lie beyond "
            f"the file's end at byte {file.file_size}",
            TRUNCATED,
        )
    signed = offsets.astype(np.int64), byte_counts.astype(np.int64)
    return signed if planes == 1 else (_by_tile(signed[0], planes), _by_tile(signed[1], planes))


def _by_tile(table: NDArray[np.int64], planes: int) -> NDArray[np.int64]:
    """Turn (planes * tiles,), as TIFF lists it plane after plane, into (tiles, planes)."""
    return np.ascontiguousarray(table.reshape(planes, -1).T)


def misread_by_openslide(image: TiffImage) -> str | None:
    """Why OpenSlide returns wrong pixels of a tiled image, or none although it opens the file.

    None if it shows it rightly.

    The rules were found by comparing OpenSlide 4.0.1 (libtiff's TIFFRGBAImage) with tifffile.
    """
    photometric, n_samples = image.value(tag.PHOTOMETRIC, -1), image.integer(tag.SAMPLES, 1)
    bits, kinds = max(image.integers(tag.BITS, 1)), set(image.integers(tag.SAMPLE_FORMAT, 1))
    if bits > 16 or not kinds <= UNSIGNED:
        names = "/".join(SAMPLE_FORMATS.get(kind, "unknown") for kind in sorted(kinds))
        return f"its samples are {names} numbers of {bits} bits, not colours of 8 or 16 bits"
    if photometric == Photometric.INKS:
        return "its colours are amounts of ink (CMYK), and which ink is not stated"
    colours = 1 if photometric in {*GREYS, Photometric.PALETTE} else 3
    extra = n_samples - colours
    if extra > 0 and (extra > 1 or image.integers(tag.EXTRA_SAMPLES, 0)[:1] not in ([1], [2])):
        return f"it has {n_samples} samples a pixel, and what the last {extra} mean is not stated"
    ragged = any(
        whole % image.integer(side, 1)
        for whole, side in zip(image.size, (tag.TILE_WIDTH, tag.TILE_LENGTH), strict=True)
        if image.integer(side, 1)
    )
    if bits == 16 and photometric in GREYS and ragged:
        return "it is grey of 16 bits in tiles that reach beyond the image"
    orientation = image.integer(tag.ORIENTATION, 1)
    if orientation not in UPRIGHT and not _decoded_as_stored(image):
        return f"its Orientation tag is {orientation}, by which each tile would be turned in its place"
    return None


def refusal(path: Path, image: TiffImage, reason: str) -> UnsupportedSlide:
    """The error for an image that is not read here for this reason.

    It leaves the image to OpenSlide, or, if OpenSlide would show it wrongly, ends the search for a reader.
    """
    wrong = misread_by_openslide(image)
    if wrong:
        return RefusedSlide(path, wrong, "convert it to RGB of 8 bits, for example with vips")
    return UnsupportedSlide(path, f"not a kind of tiles that is read here: {reason}")


def orientation_note(image: TiffImage) -> tuple[LeftOut, ...]:
    """A note that the orientation of the image is not applied, if it states one."""
    orientation = image.integer(tag.ORIENTATION, 1)
    if orientation in UPRIGHT:
        return ()
    return (LeftOut(f"its Orientation tag, {orientation}", "pixels are read as they are stored"),)


def is_planar(image: TiffImage) -> bool:
    """Whether each sample has tiles of its own (PlanarConfiguration 2)."""
    return image.integer(tag.PLANAR, 1) == SEPARATE_PLANES and image.integer(tag.SAMPLES, 1) > 1


def count(path: Path, image: TiffImage, code: int) -> int:
    """The positive integer of a tag. Raises :class:`DamagedSlide` if it is none."""
    value = image.value(code, 0)
    if not isinstance(value, int) or value <= 0:
        raise DamagedSlide(path, f"its header states {value!r} for tag {code}", "the file is damaged")
    return int(value)


def named(value: Any) -> str:
    """tifffile's name for the value of a tag."""
    return str(getattr(value, "name", value))


def _decoded_as_stored(image: TiffImage) -> bool:
    """Whether OpenSlide passes the tiles to libjpeg itself, which knows nothing of orientations."""
    return (
        image.value(tag.COMPRESSION, 1) == Compression.JPEG
        and image.value(tag.PHOTOMETRIC, -1) in {Photometric.RGB, Photometric.YCBCR}
        and image.integer(tag.SAMPLES, 1) == 3
        and not is_planar(image)
    )


class Resolved(Protocol):
    """An image whose tags state a resolution."""

    def integer(self, code: int, default: int = 0) -> int:
        """The one integer of a tag, ``default`` if it is missing."""
        ...

    def ratio(self, code: int) -> float | None:
        """The value of a rational tag, or None."""
        ...


def resolution_mpp(image: Resolved) -> tuple[Mpp, Mpp] | None:
    """µm per pixel (x, y) by the tags XResolution, YResolution and ResolutionUnit.

    None if they cannot be believed.
    """
    unit = {1: "none", 2: "inch", 3: "centimeter"}.get(image.integer(tag.RESOLUTION_UNIT, 2), "unknown")
    x, y = (mpp_of_resolution(image.ratio(code), unit) for code in (tag.X_RESOLUTION, tag.Y_RESOLUTION))
    return believable_xy(x, y)
