"""A tiled TIFF image as a level: where its tiles lie."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide
from wsi_ips.slides.codecs.samples import Samples
from wsi_ips.slides.stated_mpp import believable_xy, mpp_of_resolution
from wsi_ips.slides.tiff import directories as tag
from wsi_ips.slides.tiff.directories import TiffDirectories, TiffImage
from wsi_ips.slides.tiff.tile_formats import count, is_planar, tile_format
from wsi_ips.slides.tile_layout import TRUNCATED, TileLayout
from wsi_ips.units import Mpp, Size


def tiled_level(
    file: TiffDirectories,
    image: TiffImage,
    *,
    level_size: Size | None = None,
    samples: Samples | None = None,
    planes: Sequence[TiffImage] = (),
    aperio: bool = False,
) -> TileLayout:
    """The image's tiles. level_size: where the container knows it better than the image's own tags.

    planes: further images that hold the next colours of the same picture, stored in the same way. samples,
    aperio: see :func:`tile_format`. Raises as :func:`tile_format` does, and :class:`DamagedSlide` for tables that
    do not fit the sizes or the file.
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


def _tables(
    file: TiffDirectories, image: TiffImage, size: Size, tiles: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The image's tile offsets and byte counts: (tiles,), or (tiles, samples) where planes lie apart."""
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
    """(planes * tiles,) as TIFF lists it, plane after plane, to (tiles, planes)."""
    return np.ascontiguousarray(table.reshape(planes, -1).T)


class Resolved(Protocol):
    """What states a resolution in TIFF's tags."""

    def integer(self, code: int, default: int = 0) -> int: ...

    def ratio(self, code: int) -> float | None: ...


def resolution_mpp(image: Resolved) -> tuple[Mpp, Mpp] | None:
    """µm per pixel (x, y) of the tags XResolution, YResolution and ResolutionUnit, where they can be believed."""
    unit = {1: "none", 2: "inch", 3: "centimeter"}.get(image.integer(tag.RESOLUTION_UNIT, 2), "unknown")
    x, y = (mpp_of_resolution(image.ratio(code), unit) for code in (tag.X_RESOLUTION, tag.Y_RESOLUTION))
    return believable_xy(x, y)
