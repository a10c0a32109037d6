"""Hamamatsu NDPI files, written for a test: JPEGs with restart markers in a TIFF with offsets of 64 bits."""

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.slides.tiff_files import Rgb, tissue_like

MPP = 0.25
ASCII, SHORT, LONG, RATIONAL, SIGNED, FLOAT = 2, 3, 4, 5, 9, 11
SUBSAMPLING = {"4:4:4": (0, 8, 8), "4:2:2": (1, 16, 8), "4:2:0": (2, 16, 16)}
"""For each: Pillow's number, and the size of its blocks."""


@dataclass
class NdpiLevel:
    """An image directory. ``starts``: what the tag McuStarts lists; None: no such tag. ``tags``: code to (type,
    values), instead of or besides those that are written by themselves."""

    jpeg: bytes
    size: tuple[int, int]
    lens: float = 40.0
    starts: list[int] | None = None
    plane: int = 0
    tags: dict[int, tuple[int, Sequence[float] | bytes]] = field(default_factory=dict)


def tiled_level(image: Rgb, *, cols: int = 1, subsampling: str = "4:4:4", lens: float = 40.0) -> NdpiLevel:
    """``image`` with ``cols`` restart intervals in each row of blocks."""
    _, block_width, _ = SUBSAMPLING[subsampling]
    blocks = -(-image.shape[1] // block_width)
    assert blocks % cols == 0
    jpeg = encoded(image, subsampling=subsampling, restart=blocks // cols)
    return NdpiLevel(jpeg, (image.shape[1], image.shape[0]), lens, restart_starts(jpeg))


def whole_level(image: Rgb, *, subsampling: str = "4:4:4", lens: float = 1.0) -> NdpiLevel:
    """``image`` without restart markers."""
    return NdpiLevel(encoded(image, subsampling=subsampling), (image.shape[1], image.shape[0]), lens)


def encoded(image: Rgb, *, subsampling: str = "4:4:4", restart: int = 0, quality: int = 85) -> bytes:
    """A JPEG with a restart marker after each ``restart`` blocks."""
    out = io.BytesIO()
    Image.fromarray(image).save(
        out, "JPEG", quality=quality, subsampling=SUBSAMPLING[subsampling][0], restart_marker_blocks=restart
    )
    return out.getvalue()


def decoded(jpeg: bytes) -> Rgb:
    """The JPEG decoded as a whole, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def restart_starts(jpeg: bytes) -> list[int]:
    """Where the intervals start: behind the header, and behind each restart marker."""
    scan = jpeg.index(b"\xff\xda")
    header = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return [
        header,
        *(match.end() for match in re.finditer(rb"\xff[\xd0-\xd7]", jpeg) if match.start() >= header),
    ]


def small_slide(
    *, cols: int = 1, subsampling: str = "4:4:4", size: tuple[int, int] = (1024, 640)
) -> list[NdpiLevel]:
    """A level, another one a quarter as wide that shows something else, so that it is seen which one is read, one
    without restart markers, and a macro picture."""
    width, height = size
    return [
        tiled_level(tissue_like(width, height, seed=1), cols=cols, subsampling=subsampling),
        tiled_level(
            tissue_like(width // 4, height // 4, seed=2), cols=cols, subsampling=subsampling, lens=10.0
        ),
        whole_level(tissue_like(width // 16, height // 16, seed=3), subsampling=subsampling),
        whole_level(tissue_like(150, 50, seed=4), lens=-1.0),
    ]


def write_ndpi(
    path: Path, levels: Sequence[NdpiLevel], *, first_strip_at: int = 16, directories_at: int | None = None
) -> None:
    """``first_strip_at``, ``directories_at``: bytes where the first JPEG and the directories lie; beyond what is
    written before, the file is sparse."""
    with path.open("wb") as file:
        file.write(b"II*\0" + bytes(8))
        file.seek(first_strip_at)
        strips = []
        for level in levels:
            strips.append(file.tell())
            file.write(level.jpeg)
        if directories_at is not None:
            file.seek(directories_at)
        next_at = 4
        for level, strip in zip(levels, strips, strict=True):
            tags = _tags(level, strip)
            values = {code: _packed(*tag) for code, tag in tags.items()}
            places = {}
            for code, (kind, _, data) in values.items():
                one_long = kind == LONG and len(tags[code][1]) == 1
                if kind == ASCII or (len(data) > 4 and not one_long):
                    places[code] = file.tell()
                    file.write(data)
            at = file.tell()
            file.seek(next_at)
            file.write(struct.pack("<Q", at))
            file.seek(at)
            file.write(struct.pack("<H", len(tags)))
            high = b""
            for code, (kind, count, data) in values.items():
                value = struct.pack("<Q", places[code]) if code in places else data.ljust(8, b"\0")
                file.write(struct.pack("<HHI", code, kind, count) + value[:4])
                high += value[4:]
            next_at = file.tell()
            file.write(bytes(8) + high)


def _tags(level: NdpiLevel, strip: int) -> dict[int, tuple[int, Sequence[float] | bytes]]:
    width, height = level.size
    resolution = (round(1e4 / MPP), 1)
    tags: dict[int, tuple[int, Sequence[float] | bytes]] = {
        254: (LONG, [0]), 256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8, 8, 8]), 259: (SHORT, [7]),
        262: (SHORT, [6]), 271: (ASCII, b"Hamamatsu\0"), 272: (ASCII, b"C9\0"), 273: (LONG, [strip]),
        277: (SHORT, [3]), 278: (LONG, [height]), 279: (LONG, [len(level.jpeg)]), 282: (RATIONAL, resolution),
        283: (RATIONAL, resolution), 296: (SHORT, [3]), 65420: (SHORT, [1]), 65421: (FLOAT, [level.lens]),
        65422: (SIGNED, [0]), 65423: (SIGNED, [0]), 65424: (SIGNED, [level.plane]),
    }  # fmt: skip
    if level.starts is not None:
        tags[65426] = (LONG, [start & 0xFFFFFFFF for start in level.starts])
        if max(level.starts) >= 1 << 32:
            tags[65432] = (LONG, [start >> 32 for start in level.starts])
    return dict(sorted((tags | level.tags).items()))


def _packed(kind: int, values: Sequence[float] | bytes) -> tuple[int, int, bytes]:
    """(type, count, bytes); one long number that needs more than four bytes has eight."""
    if isinstance(values, bytes):
        return kind, len(values), values
    letter = {SHORT: "H", LONG: "I", RATIONAL: "I", SIGNED: "i", FLOAT: "f"}[kind]
    if kind == LONG and len(values) == 1 and values[0] >= 1 << 32:
        letter = "Q"
    return (
        kind,
        len(values) // (2 if kind == RATIONAL else 1),
        struct.pack(f"<{len(values)}{letter}", *values),
    )
