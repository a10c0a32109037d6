"""A tiled TIFF image as a level: how its tiles are stored, and where."""

from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.codecs.jpeg import Colours, JpegTiles
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.codecs.plain import Packing, PlainTiles
from wsi_ips.slides.limits import LARGEST_BLOCK_PX
from wsi_ips.slides.stated_mpp import believable_xy, mpp_of_resolution
from wsi_ips.slides.tiff import directories as tag
from wsi_ips.slides.tiff.directories import TiffDirectories, TiffImage
from wsi_ips.slides.tile_layout import TRUNCATED, TileLayout
from wsi_ips.units import Mpp, Size


class Compression(IntEnum):
    """TIFF compression schemes that are decoded here."""

    NONE = 1
    LZW = 5
    JPEG = 7
    DEFLATE = 8
    DEFLATE_OLD = 32946
    APERIO_JPEG2000_RGB = 33005


class Photometric(IntEnum):
    RGB = 2
    YCBCR = 6


def tiled_level(file: TiffDirectories, image: TiffImage, *, level_size: Size | None = None) -> TileLayout:
    """The image's tiles. level_size: where the container knows it better than the image's own tags.

    Raises :class:`UnsupportedSlide` for tiles of a kind that is not decoded here, :class:`DamagedSlide` for
    tables that do not fit the sizes or the file.
    """
    path = file.path
    tile = tile_format(path, image)
    width, height = _count(path, image, tag.IMAGE_WIDTH), _count(path, image, tag.IMAGE_LENGTH)
    cols, rows = -(-width // tile.size[0]), -(-height // tile.size[1])
    tables = [image.tags.get(code) for code in (tag.TILE_OFFSETS, tag.TILE_BYTE_COUNTS)]
    for table in tables:
        held = 0 if table is None else table.count
        if held != cols * rows:
            raise DamagedSlide(
                path,
                f"its header states {width}x{height} px, that is {cols * rows} tiles, and lists {held}",
                "the file is damaged or cut short; copy it again",
            )
    offsets, byte_counts = (np.atleast_1d(np.asarray(table.value, np.uint64)) for table in tables if table)
    used = byte_counts > 0
    size = np.uint64(file.file_size)
    beyond = used & ((offsets > size) | (byte_counts > size - np.minimum(offsets, size)))
    if beyond.any():
        raise DamagedSlide(
            path,
            f"truncated: {int(beyond.sum())} of {cols * rows} tiles of its {width}x{height} level lie beyond "
            f"the file's end at byte {file.file_size}",
            TRUNCATED,
        )
    return TileLayout(
        level_size=level_size or (width, height),
        tile=tile,
        cols=cols,
        rows=rows,
        offsets=offsets.astype(np.int64),
        byte_counts=byte_counts.astype(np.int64),
    )


def tile_format(path: Path, image: TiffImage) -> TileFormat:
    """How the tiles are stored. Raises as :func:`tiled_level` does."""
    compression, photometric = image.value(tag.COMPRESSION, 1), image.value(tag.PHOTOMETRIC, -1)
    predictor = image.integer(tag.PREDICTOR, 1)
    odd = _oddities(image, predictor)
    if compression not in {*Compression}:
        odd.append(f"compression {_named(compression)}")
    is_jpeg = compression == Compression.JPEG
    if photometric not in ({*Photometric} if is_jpeg else {Photometric.RGB}):
        odd.append(f"colours as {_named(photometric)}")
    if odd:
        raise UnsupportedSlide(path, f"not plain 8-bit RGB ({', '.join(odd)})")
    size = _count(path, image, tag.TILE_WIDTH), _count(path, image, tag.TILE_LENGTH)
    if size[0] * size[1] > LARGEST_BLOCK_PX:
        raise DamagedSlide(path, f"its header states tiles of {size[0]}x{size[1]} px", "the file is damaged")
    if is_jpeg:
        colours = Colours.RGB if photometric == Photometric.RGB else Colours.YCBCR
        return JpegTiles(size=size, colours=colours, tables=image.data(tag.JPEG_TABLES))
    if compression == Compression.APERIO_JPEG2000_RGB:
        return Jpeg2000Tiles(size=size)
    return PlainTiles(size=size, packing=Packing(int(compression)), horizontal_predictor=predictor == 2)


class Resolved(Protocol):
    """What states a resolution in TIFF's tags."""

    def integer(self, code: int, default: int = 0) -> int: ...

    def ratio(self, code: int) -> float | None: ...


def resolution_mpp(image: Resolved) -> tuple[Mpp, Mpp] | None:
    """µm per pixel (x, y) of the tags XResolution, YResolution and ResolutionUnit, where they can be believed."""
    unit = {1: "none", 2: "inch", 3: "centimeter"}.get(image.integer(tag.RESOLUTION_UNIT, 2), "unknown")
    x, y = (mpp_of_resolution(image.ratio(code), unit) for code in (tag.X_RESOLUTION, tag.Y_RESOLUTION))
    return believable_xy(x, y)


def _oddities(image: TiffImage, predictor: int) -> list[str]:
    samples, bits = image.integer(tag.SAMPLES, 1), set(image.integers(tag.BITS, 1))
    plain = {
        "orientation": image.integer(tag.ORIENTATION, 1),
        "fill order": image.integer(tag.FILL_ORDER, 1),
        "planar configuration": image.integer(tag.PLANAR, 1),
        "sample format": max(image.integers(tag.SAMPLE_FORMAT, 1)),
    }
    odd = [f"{name} {value}" for name, value in plain.items() if value != 1]
    if samples != 3 or bits != {8}:
        odd.append(f"{samples} samples of {'/'.join(map(str, sorted(bits)))} bits")
    if predictor not in {1, 2}:
        odd.append(f"predictor {predictor}")
    return odd


def _count(path: Path, image: TiffImage, code: int) -> int:
    value = image.value(code, 0)
    if not isinstance(value, int) or value <= 0:
        raise DamagedSlide(path, f"its header states {value!r} for tag {code}", "the file is damaged")
    return int(value)


def _named(value: Any) -> str:
    return str(getattr(value, "name", value))
