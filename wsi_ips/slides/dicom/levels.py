"""The levels of a DICOM slide: which frame of which file is each tile (PS3.3, C.8.12.4, C.7.6.17.3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.codecs.base import TileFormat
from wsi_ips.slides.dicom import tags
from wsi_ips.slides.dicom.elements import BrokenHeader, DataSet
from wsi_ips.slides.dicom.frames import frame_index
from wsi_ips.slides.dicom.image import DicomImage, check_sizes, tile_format
from wsi_ips.slides.tile_layout import TileLayout

MOST_TILES = 1 << 23
"""Of a level: 740,000 pixels square in tiles of 256."""

FrameNumbers = NDArray[np.int64]
"""(rows * cols,) the frame of each tile, -1 where there is none."""


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level's tiles, and its files: one, or the parts of a concatenation in order."""

    tiles: TileLayout
    parts: tuple[DicomImage, ...]
    left_out: tuple[LeftOut, ...]

    def with_files(self, files: Sequence[Path]) -> TileLayout:
        """The tiles, with the files' places in ``files`` instead of those among the parts."""
        places = np.array([files.index(part.path) for part in self.parts], np.int32)
        chosen = np.zeros(len(self.tiles.offsets), np.int32) if self.tiles.files is None else self.tiles.files
        return replace(self.tiles, files=places[chosen])


def stored_level(images: Sequence[DicomImage]) -> StoredLevel:
    """The level that these files hold: all files of one size.

    Raises :class:`UnsupportedSlide` for tiles that are not read here, :class:`DamagedSlide` for files that
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
        chosen = free & (numbers >= 0)  # of parts that both have a tile, the first counts
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
    """The files that make up one image, in order."""
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
    """The frame of each tile, whether the file says that all tiles are stored, and the frames that are none's."""
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
    # Tiles of the first focal plane of the first optical path come first.
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
    numbers[tiles[frames][::-1]] = frames[
        ::-1
    ]  # of several at one place the first is written last, and stays
    is_full = image.elements.text(tags.ORGANIZATION_TYPE) == "TILED_FULL"
    return numbers, is_full, _further(image, image.frames - int((numbers >= 0).sum()))


def _tile_numbers(image: DicomImage, groups: Sequence[DataSet], cols: int, rows: int) -> Iterator[int]:
    """Which tile each frame is. Raises :class:`DamagedSlide` for one that is not on the grid."""
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
