"""Where the tiles of a TIFF slide lie, for the TIFFs that OpenSlide calls "aperio" and "generic-tiff".

Levels are chosen as OpenSlide 4.0 does: of an Aperio file every tiled top-level image, in file order; of
another TIFF the first image and every tiled one marked as reduced (NewSubfileType bit 0), by width. Every
number of the file is checked against the file's size before anything is allocated for it.
"""

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import Level
from wsi_ips.slides.stated_mpp import believable, mpp_of_resolution, number
from wsi_ips.slides.tile_codec import Compression, Photometric, TileFormat
from wsi_ips.units import Mpp, Size

LARGEST_TILE_PX = 1 << 26
MOST_IMAGES = 1000

IMAGE_WIDTH, IMAGE_LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, ORIENTATION, SAMPLES, PLANAR = 266, 270, 274, 277, 284
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, SOFTWARE, PREDICTOR = 282, 283, 296, 305, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
NEW_SUBFILE_TYPE, SAMPLE_FORMAT, JPEG_TABLES, XMP, NDPI_FORMAT = 254, 339, 347, 700, 65420

# tifffile logs what it meets in a broken file, and we say it in one error: without any handler, Python would
# print both.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TRUNCATED = "copy it again: the copy or download was cut short"

Tags = tifffile.TiffTags


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The tiles of one level. Tile (col, row) covers the level's pixels from (col, row) * tile_size on."""

    level_size: Size
    tile: TileFormat
    cols: int
    rows: int
    offsets: NDArray[np.int64]  # (rows * cols,), row by row; where each tile's bytes start in the file
    byte_counts: NDArray[np.int64]  # (rows * cols,); 0: the tile was never written

    @property
    def tile_size(self) -> Size:
        return self.tile.size


@dataclass(frozen=True, slots=True)
class TiffLayout:
    vendor: str
    levels: tuple[TileLayout, ...]
    mpp: Mpp | None

    def described_levels(self) -> tuple[Level, ...]:
        """Sizes and downsamples; a downsample is the mean of the ratios of widths and heights, as OpenSlide's."""
        return tuple(Level(layout.level_size, _downsample(layout, self.levels[0])) for layout in self.levels)


def read_layout(path: Path, *, file_size: int) -> TiffLayout:
    """Read the file's directories; no pixels.

    Raises :class:`UnsupportedSlide` for what had better go to OpenSlide, :class:`DamagedSlide` for a file
    that is cut short or whose header states what cannot be.
    """
    _check_start(path, file_size)
    try:
        with tifffile.TiffFile(path) as tiff:
            images = [page.tags for page in _images(path, tiff)]
            return _layout(path, images, file_size)
    except UnsupportedSlide:
        raise
    except OSError as error:
        raise UnsupportedSlide(path, f"cannot be read: {error.strerror or error}") from error
    # tifffile meets hostile files with whatever its parsing runs into.
    except (tifffile.TiffFileError, ArithmeticError, LookupError, MemoryError, RuntimeError) as error:
        raise UnsupportedSlide(path, f"not a TIFF that can be understood: {error}") from error
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise UnsupportedSlide(path, f"not a TIFF that can be understood: {error}") from error


def _check_start(path: Path, file_size: int) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise UnsupportedSlide(path, "an empty file" if not start else "not a TIFF file")
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    field = start[8:16] if big else start[4:8]
    if len(field) == (8 if big else 4):
        first = struct.unpack(f"{order}{'Q' if big else 'I'}", field)[0]
        if first >= file_size:
            raise DamagedSlide(
                path,
                f"truncated: its directory should be at byte {first}, the file has {file_size}",
                TRUNCATED,
            )


def _images(path: Path, tiff: tifffile.TiffFile) -> list[Any]:
    """The top-level images; a chain that breaks off is a truncated file."""
    images: list[Any] = []
    for page in tiff.pages:
        images.append(page)
        if len(images) > MOST_IMAGES:
            raise UnsupportedSlide(path, f"more than {MOST_IMAGES} images")
    if not images:
        raise UnsupportedSlide(path, "a TIFF without images")
    last, handle, form = images[-1], tiff.filehandle, tiff.tiff
    handle.seek(last.offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    handle.seek(last.offset + form.tagnosize + count * form.tagsize)
    after = handle.read(form.offsetsize)
    if len(after) < form.offsetsize or struct.unpack(form.offsetformat, after)[0] >= handle.size:
        raise DamagedSlide(path, f"truncated: the list of images breaks off after {len(images)}", TRUNCATED)
    return images


def _layout(path: Path, images: Sequence[Tags], file_size: int) -> TiffLayout:
    first = images[0]
    _refuse_other_vendors(path, first)
    if not _is_tiled(first):
        width, height = first.valueof(IMAGE_WIDTH), first.valueof(IMAGE_LENGTH)
        raise UnsupportedSlide(
            path,
            f"not tiled: a flat image of {width}x{height}",
            "make it a tiled pyramid, e.g. vips tiffsave --tile --pyramid",
        )
    aperio = _text(first, DESCRIPTION).startswith("Aperio")
    if aperio:
        levels = [_level(path, tags, file_size) for tags in images if _is_tiled(tags)]
    else:
        reduced = [tags for tags in images[1:] if _is_tiled(tags) and tags.valueof(NEW_SUBFILE_TYPE, 0) & 1]
        levels = [_level(path, tags, file_size) for tags in (first, *reduced)]
        levels.sort(key=lambda level: -level.level_size[0])
    _refuse_what_differs(path, levels, aperio=aperio)
    mpp = _aperio_mpp(first) if aperio else None
    return TiffLayout("aperio" if aperio else "generic-tiff", tuple(levels), mpp or _resolution_mpp(first))


def _refuse_other_vendors(path: Path, first: Tags) -> None:
    """OpenSlide treats these differently from a plain pyramid (its own detection, in its own order)."""
    description, software = _text(first, DESCRIPTION), _text(first, SOFTWARE)
    vendor = (
        ("Hamamatsu NDPI" if NDPI_FORMAT in first else "")
        or ("Trestle" if software.startswith("MedScan") else "")
        or ("Leica SCN" if "leica-microsystems.com/scn" in description else "")
        or ("Philips TIFF" if software.startswith("Philips") else "")
        or ("Ventana BIF" if b"iScan" in _bytes(first, XMP) else "")
        or ("OME-TIFF" if description.rstrip().endswith("OME>") else "")
    )
    if vendor:
        raise UnsupportedSlide(path, f"{vendor} is left to OpenSlide")


def _refuse_what_differs(path: Path, levels: Sequence[TileLayout], *, aperio: bool) -> None:
    if any(_downsample(b, levels[0]) < _downsample(a, levels[0]) for a, b in pairwise(levels)):
        raise UnsupportedSlide(path, "its levels are not ordered from fine to coarse")
    sparse = any((level.byte_counts == 0).any() for level in levels)
    if aperio and sparse and len(levels) > 1:
        raise UnsupportedSlide(path, "has tiles without data, which OpenSlide fills in from a finer level")
    if not aperio and any(level.tile.compression is Compression.JPEG2000_RGB for level in levels):
        raise UnsupportedSlide(path, "JPEG 2000 outside an Aperio file")


def _level(path: Path, tags: Tags, file_size: int) -> TileLayout:
    tile = _tile_format(path, tags)
    width, height = _count(path, tags, IMAGE_WIDTH), _count(path, tags, IMAGE_LENGTH)
    cols, rows = -(-width // tile.size[0]), -(-height // tile.size[1])
    tables = [tags.get(code) for code in (TILE_OFFSETS, TILE_BYTE_COUNTS)]
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
    size = np.uint64(file_size)
    beyond = used & ((offsets > size) | (byte_counts > size - np.minimum(offsets, size)))
    if beyond.any():
        raise DamagedSlide(
            path,
            f"truncated: {int(beyond.sum())} of {cols * rows} tiles of its {width}x{height} level lie beyond "
            f"the file's end at byte {file_size}",
            TRUNCATED,
        )
    return TileLayout(
        (width, height), tile, cols, rows, offsets.astype(np.int64), byte_counts.astype(np.int64)
    )


def _tile_format(path: Path, tags: Tags) -> TileFormat:
    compression, photometric = tags.valueof(COMPRESSION, 1), tags.valueof(PHOTOMETRIC, -1)
    samples, bits = tags.valueof(SAMPLES, 1), set(np.atleast_1d(tags.valueof(BITS, 1)).tolist())
    predictor = int(tags.valueof(PREDICTOR, 1))
    plain = {
        "orientation": tags.valueof(ORIENTATION, 1),
        "fill order": tags.valueof(FILL_ORDER, 1),
        "planar configuration": tags.valueof(PLANAR, 1),
        "sample format": max(np.atleast_1d(tags.valueof(SAMPLE_FORMAT, 1)).tolist()),
    }
    odd = [f"{name} {int(value)}" for name, value in plain.items() if int(value) != 1]
    if compression not in {*Compression}:
        odd.append(f"compression {_named(compression)}")
    if samples != 3 or bits != {8}:
        odd.append(f"{samples} samples of {'/'.join(map(str, sorted(bits)))} bits")
    is_jpeg = compression == Compression.JPEG
    if photometric not in ({*Photometric} if is_jpeg else {Photometric.RGB}):
        odd.append(f"colours as {_named(photometric)}")
    if predictor not in {1, 2}:
        odd.append(f"predictor {predictor}")
    if odd:
        raise UnsupportedSlide(path, f"not plain 8-bit RGB ({', '.join(odd)})")
    size = _count(path, tags, TILE_WIDTH), _count(path, tags, TILE_LENGTH)
    if size[0] * size[1] > LARGEST_TILE_PX:
        raise DamagedSlide(path, f"its header states tiles of {size[0]}x{size[1]} px", "the file is damaged")
    return TileFormat(
        size=size,
        compression=Compression(int(compression)),
        photometric=Photometric(int(photometric)),
        horizontal_predictor=predictor == 2,
        jpeg_tables=_bytes(tags, JPEG_TABLES),
    )


def _aperio_mpp(first: Tags) -> Mpp | None:
    fields = [field.partition("=") for field in _text(first, DESCRIPTION).split("|")[1:]]
    stated = [value for name, _, value in fields if name.strip() == "MPP"]
    return believable(number(stated[-1])) if stated else None


def _resolution_mpp(first: Tags) -> Mpp | None:
    unit = {1: "none", 2: "inch", 3: "centimeter"}.get(int(first.valueof(RESOLUTION_UNIT, 2)), "unknown")
    axes = [_ratio(first.valueof(code)) for code in (X_RESOLUTION, Y_RESOLUTION)]
    return believable(*(mpp_of_resolution(axis, unit) for axis in axes))


def _ratio(value: Any) -> float | None:
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else None


def _downsample(level: TileLayout, finest: TileLayout) -> float:
    (width, height), (l0_width, l0_height) = level.level_size, finest.level_size
    return (l0_height / height + l0_width / width) / 2


def _is_tiled(tags: Tags) -> bool:
    return TILE_WIDTH in tags and TILE_LENGTH in tags


def _count(path: Path, tags: Tags, code: int) -> int:
    value = tags.valueof(code, 0)
    if not isinstance(value, int) or value <= 0:
        raise DamagedSlide(path, f"its header states {value!r} for tag {code}", "the file is damaged")
    return int(value)


def _named(value: Any) -> str:
    return str(getattr(value, "name", value))


def _text(tags: Tags, code: int) -> str:
    value = tags.valueof(code, "")
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes(tags: Tags, code: int) -> bytes:
    value = tags.valueof(code, b"")
    return value if isinstance(value, bytes) else bytes(str(value), "utf-8", "replace")
