"""Writes a Hamamatsu NDPI (CONTAINERS.md, section 5): each level one JPEG in intervals that decode alone.

The level is encoded in stacks: a column of intervals, 64 of them one below the other. Their entropy-coded bytes
are then woven into the level's one JPEG. A stack decodes alone, so what was woven is also what a decoder can give
at most.
"""

import re
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from benchmarks.container_files import UM_PER_CM, StoredLevel
from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Mpp, Size

MCU_WIDTH, MCU_HEIGHT = 16, 8  # chroma at half resolution across
MOST_INTERVALS = 64
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
ASCII, SHORT, LONG, RATIONAL, SIGNED_LONG, FLOAT = 2, 3, 4, 5, 9, 11


@dataclass(frozen=True, slots=True)
class _OneJpeg:
    """A level's strip. starts: where each interval begins in it; none where it is a plain JPEG."""

    size: Size
    data: bytes
    starts: list[int]


def write_ndpi(
    path: Path, levels: list[RgbImage], *, interval_px: int, mpp: Mpp, pool: ThreadPoolExecutor
) -> StoredLevel:
    """The first level, then every second, the last of them without intervals, as scanners do; and a macro.

    OpenSlide derives those between. ``levels`` halve; their sides are multiples of 16. Returns the first level's
    stacks, (interval_px, 512) px each, JPEGs that decode alone.
    """
    stored = levels[::2]
    stacks = [encoded_stacks(level, interval_px=interval_px, pool=pool) for level in stored[:-1]]
    images = [(_woven(level), 40 / 4**number) for number, level in enumerate(stacks)]
    images += [(_plain_jpeg(stored[-1]), 40 / 4 ** len(stacks)), (_plain_jpeg(levels[-1]), -1.0)]
    with path.open("wb") as file:
        _write_images(file, images, mpp=mpp)
    return stacks[0]


def encoded_stacks(level: RgbImage, *, interval_px: int, pool: ThreadPoolExecutor) -> StoredLevel:
    """The level in stacks of intervals, ``interval_px`` wide (or the level's width) and 8 px high."""
    height, width = level.shape[:2]
    across, down = min(interval_px, width), min(MOST_INTERVALS * MCU_HEIGHT, height)

    def encode(at: tuple[int, int]) -> bytes:
        y, x = at
        stack, out = Image.fromarray(level[y : y + down, x : x + across]), BytesIO()
        stack.save(out, "JPEG", quality=80, subsampling="4:2:2", restart_marker_blocks=across // MCU_WIDTH)
        return out.getvalue()

    places = [(y, x) for y in range(0, height, down) for x in range(0, width, across)]
    return StoredLevel(width // across, (across, down), list(pool.map(encode, places)))


def _woven(stacks: StoredLevel) -> _OneJpeg:
    """One JPEG of all stacks: their intervals row by row, with the restart markers counted anew."""
    header, _ = _cut_at_scan(stacks.tiles[0])
    width, height = stacks.size
    frame = header.index(b"\xff\xc0") + 5
    parts = [header[:frame] + struct.pack(">HH", height, width) + header[frame + 4 :]]
    columns = [RESTART.split(_cut_at_scan(jpeg)[1]) for jpeg in stacks.tiles]
    for row in range(stacks.rows):
        for line in zip(*columns[row * stacks.cols : (row + 1) * stacks.cols], strict=True):
            parts += line
    starts = np.cumsum([0, *(len(part) + 2 for part in parts[1:])])[:-1] + len(parts[0])
    intervals = [part + b"\xff" + bytes([0xD0 + n % 8]) for n, part in enumerate(parts[1:])]
    data = parts[0] + b"".join(intervals)[:-2] + b"\xff\xd9"
    return _OneJpeg((width, height), data, starts.tolist())


def _cut_at_scan(jpeg: bytes) -> tuple[bytes, bytes]:
    """Everything up to the scan's header, and the scan itself without the end of the image."""
    scan = jpeg.index(b"\xff\xda")
    begin = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return jpeg[:begin], jpeg[begin:-2]


def _plain_jpeg(pixels: RgbImage) -> _OneJpeg:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80, subsampling="4:2:2")
    return _OneJpeg((pixels.shape[1], pixels.shape[0]), out.getvalue(), [])


def _write_images(file: BinaryIO, images: list[tuple[_OneJpeg, float]], *, mpp: Mpp) -> None:
    """Little-endian, with 8-byte offsets of directories in a classic TIFF; the high words of all values are 0."""
    file.write(b"II*\0" + bytes(8))
    link = 4
    for jpeg, lens in images:
        strip = file.tell()
        file.write(jpeg.data)
        tags = _tags(jpeg, strip, lens=lens, mpp=mpp)
        entries = []
        for code, kind, count, value in tags:
            held = value
            if len(value) > 4 or kind == ASCII:
                file.write(bytes(file.tell() % 2))
                held = struct.pack("<I", file.tell())
                file.write(value)
            entries.append(struct.pack("<HHI", code, kind, count) + held.ljust(4, b"\0"))
        file.write(bytes(file.tell() % 2))
        directory = file.tell()
        file.write(struct.pack("<H", len(entries)) + b"".join(entries) + bytes(8 + 4 * len(entries)))
        end, next_link = file.tell(), directory + 2 + 12 * len(entries)
        file.seek(link)
        file.write(struct.pack("<Q", directory))
        file.seek(end)
        link = next_link


def _tags(jpeg: _OneJpeg, strip: int, *, lens: float, mpp: Mpp) -> list[tuple[int, int, int, bytes]]:
    """(code, type, count, value) in ascending order."""
    per_cm = struct.pack("<II", round(UM_PER_CM / mpp * max(lens, 1) / 40), 1)
    model = b"NanoZoomer\0"
    tags = [
        (254, LONG, 1, struct.pack("<I", 0)),
        (256, LONG, 1, struct.pack("<I", jpeg.size[0])),
        (257, LONG, 1, struct.pack("<I", jpeg.size[1])),
        (258, SHORT, 3, struct.pack("<3H", 8, 8, 8)),
        (259, SHORT, 1, struct.pack("<H", 7)),
        (262, SHORT, 1, struct.pack("<H", 6)),
        (271, ASCII, 10, b"Hamamatsu\0"),
        (272, ASCII, len(model), model),
        (273, LONG, 1, struct.pack("<I", strip)),
        (277, SHORT, 1, struct.pack("<H", 3)),
        (278, LONG, 1, struct.pack("<I", jpeg.size[1])),
        (279, LONG, 1, struct.pack("<I", len(jpeg.data))),
        (282, RATIONAL, 1, per_cm),
        (283, RATIONAL, 1, per_cm),
        (296, SHORT, 1, struct.pack("<H", 3)),
        (65420, LONG, 1, struct.pack("<I", 1)),
        (65421, FLOAT, 1, struct.pack("<f", lens)),
        (65422, SIGNED_LONG, 1, bytes(4)),
        (65423, SIGNED_LONG, 1, bytes(4)),
        (65424, SIGNED_LONG, 1, bytes(4)),
    ]
    if jpeg.starts:
        tags.append((65426, LONG, len(jpeg.starts), np.array(jpeg.starts, "<u4").tobytes()))
    return tags
