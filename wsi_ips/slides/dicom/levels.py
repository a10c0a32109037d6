"""The levels of a DICOM slide: which frame of which file is each tile, and where it lies in the file.

:func:`stored_level` makes a level out of the files of one size (PS3.3, C.8.12.4, C.7.6.17.3). :func:`frame_index`
finds the frames of one file (PS3.5, A.4), from a table of offsets or by walking the items.

The range of an encapsulated frame begins with the header of its first item and ends with its last item. What lies
between, maybe in several pieces, is joined when the frame is decoded (:mod:`wsi_ips.slides.codecs.jpeg`). A table
is therefore believed without a look at every item, and a frame that is not where the table says is noticed when it
is read.

One DICOM file of a slide: what its header states about the image, checked.

:func:`read_image` reads a header, :func:`check_sizes` and :func:`tile_format` check it.
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.codecs.jpeg import ITEM, ITEM_HEADER, SEQUENCE_END, Colours, EncapsulatedTiles, JpegTiles
from wsi_ips.slides.codecs.jpeg2000 import Jpeg2000Tiles
from wsi_ips.slides.codecs.plain import Packing, PlainTiles, RleTiles
from wsi_ips.slides.dicom import elements as tags
from wsi_ips.slides.dicom.elements import LONG_FORMS, UNDEFINED, BrokenHeader, DataSet, Header, read_header
from wsi_ips.slides.dicom.series import image_kind
from wsi_ips.slides.tile_layout import TRUNCATED, TileFile, TileLayout
from wsi_ips.slides.tile_places import LARGEST_BLOCK_PX, LARGEST_SIDE_PX
from wsi_ips.units import Size

JPEG = {tags.JPEG_BASELINE, tags.JPEG_EXTENDED}
"""Transfer syntaxes of JPEG."""

NATIVE = {tags.EXPLICIT_LITTLE, tags.IMPLICIT_LITTLE}
"""Transfer syntaxes of frames that are not compressed."""

JPEG_COLOURS = {"YBR_FULL_422": Colours.YCBCR, "YBR_FULL": Colours.YCBCR, "RGB": Colours.RGB}
"""The colour space of the components of a JPEG, by photometric interpretation."""

COLOURS: Mapping[str, Collection[str]] = MappingProxyType(
    {
        tags.EXPLICIT_LITTLE: {"RGB"},
        tags.IMPLICIT_LITTLE: {"RGB"},
        tags.RLE: {"RGB"},
        tags.JPEG_BASELINE: JPEG_COLOURS,
        tags.JPEG_EXTENDED: JPEG_COLOURS,
        tags.JPEG2000_LOSSLESS: {"YBR_RCT", "YBR_ICT", "RGB"},
        tags.JPEG2000: {"YBR_RCT", "YBR_ICT", "RGB"},
    }
)
"""The photometric interpretations that are read, by transfer syntax. JPEG 2000 decodes to RGB with all of them."""

SMALLEST_SPACING, LARGEST_SPACING = 1e-6, 10.0
"""Limits, in mm and exclusive, for the distance of two pixels, so that ratios of distances are numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a file in a concatenation, which is one image cut into several files.

    Source: PS3.3, C.7.6.16.2.2.4.
    """

    concatenation: str
    """UID of the concatenation."""
    number: int
    """Number of the part, from 1."""
    count: int | None
    """The number of parts, if it is stated."""
    first_frame: int
    """How many frames of the image lie in the parts before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomImage:
    """The header of one file as it states it. :func:`check_sizes` and :func:`tile_format` check the values."""

    path: Path
    header: Header
    instance: str
    """The UID of the file itself."""
    kind: str
    """VOLUME, LABEL, OVERVIEW, THUMBNAIL, or something else."""
    matrix: Size
    """(width, height) of the whole image in pixels."""
    tile_size: Size
    """(width, height) of a frame in pixels."""
    frames: int
    """Number of frames in this file."""
    part: Part | None
    """The file's place in a concatenation, None if it is whole."""
    spacing_mm: tuple[float, float] | None
    """The distance of neighbouring pixels along (x, y) in mm, if it is stated."""

    @property
    def elements(self) -> DataSet:
        """The elements of the data set."""
        return self.header.body

    @property
    def is_native(self) -> bool:
        """Whether the frames are not compressed, and so lie one behind the other without items."""
        return self.header.transfer_syntax in NATIVE

    def damaged(self, problem: str, fix: str = "the file is damaged; copy it again") -> DamagedSlide:
        """Make the error for this file, to be raised by the caller."""
        return DamagedSlide(self.path, problem, fix)


def read_image(path: Path) -> DicomImage:
    """Read the header of a file, but no pixels.

    Raises :class:`DamagedSlide` if the header is broken, and ``OSError``.
    """
    try:
        header = read_header(path)
        if header is None:
            raise DamagedSlide(path, "is no DICOM file any more", "do not write to it while it is read")
        body = header.body
        measures = _first(_first(body, tags.SHARED_GROUPS), tags.PIXEL_MEASURES)
    except BrokenHeader as error:
        raise DamagedSlide(path, f"its header is broken: {error}", TRUNCATED) from error
    tile_size = body.unsigned(tags.COLUMNS) or 0, body.unsigned(tags.ROWS) or 0
    matrix = body.unsigned(tags.MATRIX_COLUMNS) or 0, body.unsigned(tags.MATRIX_ROWS) or 0
    frames = body.numbers(tags.FRAMES) if tags.FRAMES in body else [1.0]
    return DicomImage(
        path=path,
        header=header,
        instance=body.text(tags.SOP_INSTANCE),
        kind=image_kind(body.texts(tags.IMAGE_TYPE)),
        matrix=matrix,
        tile_size=tile_size,
        frames=int(frames[0]) if len(frames) == 1 else 0,
        part=_part(body),
        spacing_mm=_spacing(measures),
    )


def check_sizes(image: DicomImage) -> None:
    """Raise :class:`DamagedSlide` if the header states sizes or counts that no image has."""
    for what, (width, height) in (("an image", image.matrix), ("tiles", image.tile_size)):
        if not all(1 <= side <= LARGEST_SIDE_PX for side in (width, height)):
            raise image.damaged(f"states {what} of {width}x{height} px")
    if image.tile_size[0] * image.tile_size[1] > LARGEST_BLOCK_PX:
        raise image.damaged(f"states tiles of {image.tile_size[0]}x{image.tile_size[1]} px")
    if image.frames < 1:
        raise image.damaged(f"states {image.elements.text(tags.FRAMES) or 'no'} frames")


def tile_format(image: DicomImage) -> TileFormat:
    """How the frames of the image are stored. Raises :class:`UnsupportedSlide` for what is not read here."""
    body, syntax = image.elements, image.header.transfer_syntax
    photometric = body.text(tags.PHOTOMETRIC)
    stated = {
        "samples per pixel": (body.unsigned(tags.SAMPLES), 3),
        "bits allocated": (body.unsigned(tags.BITS_ALLOCATED), 8),
        "bits stored": (body.unsigned(tags.BITS_STORED), 8),
        "high bit": (body.unsigned(tags.HIGH_BIT), 7),
        "pixel representation": (body.unsigned(tags.PIXEL_REPRESENTATION), 0),
    }
    if image.is_native:
        stated["planar configuration"] = (body.unsigned(tags.PLANAR), 0)
    odd = [f"{name} {value}" for name, (value, plain) in stated.items() if value != plain]
    if syntax not in COLOURS:
        odd.append(tags.OTHER_SYNTAXES.get(syntax, f"transfer syntax {syntax or 'not stated'}"))
    elif photometric not in COLOURS[syntax]:
        odd.append(f"colours as {photometric or 'not stated'}")
    if odd:
        raise UnsupportedSlide(
            image.path, f"{image.path.name} is not 8-bit RGB as it is read here ({', '.join(odd)})"
        )
    size = image.tile_size
    if image.is_native:
        return PlainTiles(size=size, packing=Packing.NONE)
    if syntax in JPEG:
        return EncapsulatedTiles(JpegTiles(size=size, colours=JPEG_COLOURS[photometric]))
    return EncapsulatedTiles(RleTiles(size=size) if syntax == tags.RLE else Jpeg2000Tiles(size=size))


def _part(body: DataSet) -> Part | None:
    if not body.text(tags.CONCATENATION):
        return None
    return Part(
        body.text(tags.CONCATENATION),
        body.unsigned(tags.PART_NUMBER) or 0,
        body.unsigned(tags.PART_COUNT),
        body.unsigned(tags.PART_FRAME_OFFSET) or 0,
    )


def _spacing(measures: DataSet | None) -> tuple[float, float] | None:
    """The distance of pixels along (x, y).

    PixelSpacing states that of rows first (PS3.3, 10.7.1.3), which is along y.
    """
    spacing = [] if measures is None else measures.numbers(tags.PIXEL_SPACING)
    known = len(spacing) == 2 and min(spacing) > SMALLEST_SPACING and max(spacing) < LARGEST_SPACING
    return (spacing[1], spacing[0]) if known else None


def _first(holder: DataSet | None, sequence: int) -> DataSet | None:
    return None if holder is None else next(iter(holder.items(sequence)), None)


BLOCK = 64 << 10
"""How many bytes are read at once when items are walked."""

FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51")
"""First bytes of a JPEG (start of image) and of a JPEG 2000 codestream."""

_ITEM_HEAD = struct.Struct("<4sI")
MOST_TILES = 1 << 23
"""The most tiles of a level, enough for 740,000 pixels square in tiles of 256."""

FrameNumbers = NDArray[np.int64]
"""(rows * cols,) the frame of each tile, -1 if there is none."""


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where each frame of a file begins, and how many bytes it takes with the headers of its items.

    Both are (frames,).
    """

    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """The tiles of a level, and its files: one, or the parts of a concatenation in order."""

    tiles: TileLayout
    parts: tuple[DicomImage, ...]
    left_out: tuple[LeftOut, ...]

    def with_files(self, files: Sequence[Path]) -> TileLayout:
        """The tiles, with each tile's file as an index into ``files`` instead of into the parts."""
        places = np.array([files.index(part.path) for part in self.parts], np.int32)
        chosen = np.zeros(len(self.tiles.offsets), np.int32) if self.tiles.files is None else self.tiles.files
        return replace(self.tiles, files=places[chosen])


def stored_level(images: Sequence[DicomImage]) -> StoredLevel:
    """The level that these files hold, which are all files of one size.

    Raises :class:`UnsupportedSlide` for tiles that are not read here, and :class:`DamagedSlide` for files that
    contradict each other or themselves.
    """
    for image in images:
        check_sizes(image)
    parts, left_out = _parts(images)
    tile = tile_format(parts[0])
    first = parts[0]
    (width, height), (tile_width, tile_height) = first.matrix, first.tile_size
    cols, rows = -(-width // tile_width), -(-height // tile_height)
    if cols * rows > MOST_TILES:
        raise first.damaged(f"states {width}x{height} px in {cols * rows} tiles")
    offsets, byte_counts = np.zeros(cols * rows, np.int64), np.zeros(cols * rows, np.int64)
    files = np.zeros(cols * rows, np.int32)
    free = np.ones(cols * rows, np.bool_)
    is_full = True
    for place, part in enumerate(parts):
        _refuse_another_tile(part, first, tile)
        index = frame_index(part)
        numbers, full, unused = _frames_of_tiles(part, cols, rows)
        is_full &= full
        left_out += unused
        chosen = free & (numbers >= 0)  # if several parts have a tile, the first one counts
        offsets[chosen] = index.offsets[numbers[chosen]]
        byte_counts[chosen] = index.byte_counts[numbers[chosen]]
        files[chosen] = place
        free &= ~chosen
    if is_full and free.any():
        stated = sum(part.frames for part in parts)
        raise first.damaged(
            f"states {width}x{height} px, that is {cols * rows} tiles, all stored, and has {stated} frames"
        )
    layout = TileLayout(
        level_size=first.matrix,
        tile=tile,
        cols=cols,
        rows=rows,
        offsets=offsets,
        byte_counts=byte_counts,
        files=files,
    )
    return StoredLevel(layout, tuple(parts), tuple(left_out))


def _parts(images: Sequence[DicomImage]) -> tuple[list[DicomImage], list[LeftOut]]:
    """The files that make up one image, in order, and copies that are left out."""
    by_instance: dict[str, DicomImage] = {}
    left_out: list[LeftOut] = []
    for image in images:
        if image.instance and image.instance in by_instance:
            left_out.append(LeftOut(image.path.name, f"a copy of {by_instance[image.instance].path.name}"))
        else:
            by_instance[image.instance or str(image.path)] = image
    unique = list(by_instance.values())
    first = unique[0]
    if len(unique) > 1:
        strange = [image for image in unique if image.part is None or first.part is None or (
            image.part.concatenation != first.part.concatenation
        )]  # fmt: skip
        if strange:
            other = strange[0] if strange[0] is not first else unique[1]
            raise DamagedSlide(
                other.path,
                f"has the size of {first.path.name}, {first.matrix[0]}x{first.matrix[1]} px, "
                "and is no part of the same image",
                "take one of them out of the folder",
            )
    return _in_order(unique), left_out


def _in_order(parts: list[DicomImage]) -> list[DicomImage]:
    ordered = sorted(parts, key=lambda image: image.part.number if image.part else 1)
    numbers = [image.part.number if image.part else 1 for image in ordered]
    stated = {image.part.count for image in parts if image.part and image.part.count is not None}
    if numbers != list(range(1, len(numbers) + 1)) or stated - {len(numbers)}:
        wanted = max(stated, default=max(numbers))
        raise ordered[0].damaged(
            f"is one of {wanted} parts of an image, of which {', '.join(map(str, numbers))} are there",
            "copy the missing files into its folder",
        )
    return ordered


def _refuse_another_tile(part: DicomImage, first: DicomImage, tile: TileFormat) -> None:
    if part is not first and tile_format(part) != tile:
        raise part.damaged(f"its tiles are of another kind than those of {first.path.name}")


def _frames_of_tiles(image: DicomImage, cols: int, rows: int) -> tuple[FrameNumbers, bool, list[LeftOut]]:
    """The frame of each tile, whether the file says that all tiles are stored, and frames of no tile."""
    try:
        groups = image.elements.items(tags.PER_FRAME_GROUPS)
        if groups and groups[0].items(tags.PLANE_POSITION):
            return _by_position(image, groups, cols, rows)
    except BrokenHeader as error:
        raise image.damaged(f"the description of its frames is broken: {error}") from error
    if image.elements.text(tags.ORGANIZATION_TYPE) != "TILED_FULL" and cols * rows > 1:
        raise image.damaged("does not say where its tiles belong (neither TILED_FULL nor with positions)")
    numbers = np.arange(cols * rows, dtype=np.int64) - (image.part.first_frame if image.part else 0)
    numbers[(numbers < 0) | (numbers >= image.frames)] = -1
    # The frames of the first focal plane of the first optical path come first.
    unused = image.frames - int((numbers >= 0).sum())
    return numbers, True, _further(image, unused)


def _by_position(
    image: DicomImage, groups: Sequence[DataSet], cols: int, rows: int
) -> tuple[FrameNumbers, bool, list[LeftOut]]:
    if len(groups) != image.frames:
        raise image.damaged(f"states {image.frames} frames and places for {len(groups)}")
    tiles = np.array(list(_tile_numbers(image, groups, cols, rows)), np.int64)
    frames = np.arange(image.frames)
    several_paths = len(image.elements.items(tags.OPTICAL_PATHS)) > 1
    if several_paths or len(np.unique(tiles)) < len(tiles):
        frames = _lowest(image, groups)
    numbers = np.full(cols * rows, -1, np.int64)
    # Written in reverse, so that of several frames at one place the first one stays.
    numbers[tiles[frames][::-1]] = frames[::-1]
    is_full = image.elements.text(tags.ORGANIZATION_TYPE) == "TILED_FULL"
    return numbers, is_full, _further(image, image.frames - int((numbers >= 0).sum()))


def _tile_numbers(image: DicomImage, groups: Sequence[DataSet], cols: int, rows: int) -> Iterator[int]:
    """Which tile each frame is. Raises :class:`DamagedSlide` for a frame that is not on the grid."""
    width, height = image.tile_size
    for number, group in enumerate(groups):
        position = next(iter(group.items(tags.PLANE_POSITION)), None)
        x = position.signed(tags.COLUMN_POSITION) if position else None
        y = position.signed(tags.ROW_POSITION) if position else None
        col, off_x = divmod((x or 0) - 1, width)
        row, off_y = divmod((y or 0) - 1, height)
        if off_x or off_y or not (0 <= col < cols and 0 <= row < rows):
            raise image.damaged(
                f"frame {number} is placed at column {x}, row {y}, which is no place of its tiles of "
                f"{width}x{height} px"
            )
        yield row * cols + col


def _lowest(image: DicomImage, groups: Sequence[DataSet]) -> NDArray[np.int64]:
    """The frames of the first optical path, those of lower focal planes first."""
    order = {
        path.text(tags.OPTICAL_PATH_IDENTIFIER): number
        for number, path in enumerate(image.elements.items(tags.OPTICAL_PATHS))
    }
    paths, heights = [], []
    for group in groups:
        path = next(iter(group.items(tags.OPTICAL_PATH_OF_FRAME)), None)
        position = group.items(tags.PLANE_POSITION)[0]
        paths.append(order.get(path.text(tags.OPTICAL_PATH_IDENTIFIER), len(order)) if path else 0)
        heights.append(next(iter(position.numbers(tags.Z_OFFSET)), 0.0))
    first_path = np.flatnonzero(np.array(paths) == min(paths))
    return first_path[np.argsort(np.array(heights)[first_path], kind="stable")]


def _further(image: DicomImage, count: int) -> list[LeftOut]:
    if count <= 0:
        return []
    return [
        LeftOut(
            f"{count} of {image.frames} frames of {image.path.name}", "of other focal planes or optical paths"
        )
    ]


def frame_index(image: DicomImage) -> FrameIndex:
    """Find the frames of ``image`` in its file.

    Raises :class:`DamagedSlide` if they are not all there, and ``OSError``.
    """
    file = TileFile(image.path)
    start, length = _pixel_data(image, file)
    if image.is_native:
        return _native(image, file, start, length)
    if length != UNDEFINED:
        raise image.damaged("its compressed pixels are stated to have no items")
    if image.frames > file.size // ITEM_HEADER:
        raise image.damaged(f"states {image.frames} frames and has {file.size} bytes", TRUNCATED)
    items = _Items(image, file)
    table, first = items.basic_table(start)
    return _by_extended_table(image, file, first) or _by_basic_table(image, items, table, first) or (
        _by_walking(image, items, first)
    )  # fmt: skip


def _pixel_data(image: DicomImage, file: TileFile) -> tuple[int, int]:
    """Where the value of the pixels begins, and its stated length."""
    at = image.header.end
    head = file.read(at, 12)
    group, number, form, short = struct.unpack("<HH2sH", head[:8]) if len(head) >= 8 else (0, 0, b"", 0)
    if group << 16 | number != tags.PIXEL_DATA:
        raise image.damaged(f"has no pixels where they should begin, at byte {at} of {file.size}", TRUNCATED)
    if image.header.transfer_syntax == tags.IMPLICIT_LITTLE:
        return at + 8, int.from_bytes(head[4:8], "little")
    if form not in LONG_FORMS or len(head) < 12:
        raise image.damaged(f"its pixels are of the value representation {form!r}, {short} bytes")
    return at + 12, int.from_bytes(head[8:12], "little")


def _native(image: DicomImage, file: TileFile, start: int, length: int) -> FrameIndex:
    width, height = image.tile_size
    size = width * height * 3
    if image.frames * size > min(length, file.size - start):
        raise image.damaged(
            f"truncated: states {image.frames} frames of {size} bytes and has {file.size - start} bytes of pixels",
            TRUNCATED,
        )
    offsets = start + size * np.arange(image.frames, dtype=np.int64)
    return FrameIndex(offsets, np.full(image.frames, size, np.int64))


def _by_extended_table(image: DicomImage, file: TileFile, first: int) -> FrameIndex | None:
    """Frames by the Extended Offset Table of 64 bits (PS3.3, C.7.6.3.1.8), one item for each frame.

    None if there is none.
    """
    data = [image.elements.data(tag) for tag in (tags.OFFSET_TABLE, tags.OFFSET_TABLE_LENGTHS)]
    if not any(data):
        return None
    if any(len(table) != 8 * image.frames for table in data):
        raise image.damaged(f"states {image.frames} frames, and its extended offset table has another length")
    starts, lengths = (np.frombuffer(table, np.uint64) for table in data)
    room = np.uint64(max(0, file.size - first - ITEM_HEADER))
    if ((starts > room) | (lengths > room - np.minimum(starts, room))).any():
        raise image.damaged("truncated: its extended offset table points beyond the file's end", TRUNCATED)
    even = lengths.astype(np.int64) + (lengths % 2).astype(np.int64)  # items are padded to even lengths
    return FrameIndex(first + starts.astype(np.int64), ITEM_HEADER + even)


def _by_basic_table(image: DicomImage, items: "_Items", table: bytes, first: int) -> FrameIndex | None:
    """Frames by the Basic Offset Table of 32 bits.

    None for a table that cannot be right, since offsets wrap beyond 4 GiB.
    """
    starts = first + np.frombuffer(table, "<u4").astype(np.int64)
    if len(starts) != image.frames or starts[0] != first or not (np.diff(starts) > ITEM_HEADER).all():
        return None
    if starts[-1] + ITEM_HEADER > items.file_size:
        raise image.damaged("truncated: its offset table points beyond the file's end", TRUNCATED)
    last = items.walk(int(starts[-1]))
    if not last:
        raise image.damaged("its offset table points to no frame", TRUNCATED)
    ends = np.append(starts[1:], last[-1].end)
    return FrameIndex(starts, ends - starts)


def _by_walking(image: DicomImage, items: "_Items", first: int) -> FrameIndex:
    """Frames by the headers of the items.

    If there are more items than frames, a frame begins where an image's code does.
    """
    walked = items.walk(first)
    if image.frames > 1 and len(walked) > image.frames:
        begins = [number for number, item in enumerate(walked) if item.starts_frame]
    else:
        begins = list(range(len(walked))) if image.frames > 1 else [0] * bool(walked)
    if len(begins) != image.frames or begins[0] != 0:
        raise image.damaged(f"states {image.frames} frames and has {len(begins)}", TRUNCATED)
    offsets = np.array([walked[number].at for number in begins], np.int64)
    last = [*(number - 1 for number in begins[1:]), len(walked) - 1]
    ends = np.array([walked[number].end for number in last], np.int64)
    return FrameIndex(offsets, ends - offsets)


@dataclass(frozen=True, slots=True)
class _Item:
    """One item: from the first byte of its header to the byte after its last.

    ``starts_frame`` says whether the code of an image begins in it.
    """

    at: int
    end: int
    starts_frame: bool


class _Items:
    """The items of a file's encapsulated pixels, read in blocks."""

    def __init__(self, image: DicomImage, file: TileFile) -> None:
        self._image, self._file = image, file
        self.file_size = file.size
        self._block, self._at = b"", 0

    def basic_table(self, at: int) -> tuple[bytes, int]:
        """The first item, which is the Basic Offset Table and may be empty, and where the next item begins."""
        tag, length = self._item(at)
        if tag != ITEM:
            raise self._image.damaged(
                f"its compressed pixels do not begin with an offset table, at byte {at}"
            )
        if length != 4 * self._image.frames:  # empty, or not one for these frames
            return b"", at + ITEM_HEADER + length
        return self._file.read(at + ITEM_HEADER, length), at + ITEM_HEADER + length

    def walk(self, at: int) -> list["_Item"]:
        """All items from byte ``at`` to the end of the sequence."""
        found: list[_Item] = []
        while True:
            tag, length = self._item(at)
            if tag == SEQUENCE_END:
                return found
            if tag != ITEM:
                raise self._image.damaged(f"has something else than a frame at byte {at}")
            start = self._bytes(at + ITEM_HEADER, 4)
            at += ITEM_HEADER + length
            found.append(_Item(at - length - ITEM_HEADER, at, start.startswith(FRAME_STARTS)))

    def _item(self, at: int) -> tuple[bytes, int]:
        head = self._bytes(at, ITEM_HEADER)
        if len(head) < ITEM_HEADER:
            raise self._image.damaged(
                f"truncated: its frames break off at byte {at} of {self.file_size}", TRUNCATED
            )
        tag, length = _ITEM_HEAD.unpack(head)
        if tag == ITEM and length > self.file_size - at - ITEM_HEADER:
            raise self._image.damaged(
                f"truncated: the frame at byte {at} has {length} bytes and the file {self.file_size}",
                TRUNCATED,
            )
        return tag, length

    def _bytes(self, at: int, count: int) -> bytes:
        if not self._at <= at <= self._at + len(self._block) - count:
            self._block, self._at = self._file.read(at, BLOCK), at
        return self._block[at - self._at : at - self._at + count]
