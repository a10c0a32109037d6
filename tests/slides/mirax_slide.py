"""A MIRAX slide, written for a test: the file X.mrxs and its folder."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from tests.slides.tiff_files import Rgb, halved, tissue_like

SLIDE_ID = "0123456789ABCDEF0123456789ABCDEF"
PAGE = 5
"""Images on one page of the index, so that there are several."""


@dataclass
class MiraxSlide:
    """``grid`` (across, down) images at level 0; ``divisions`` x ``divisions`` of them are one picture.

    positions: vimslide (plain), stitching (packed) or None. jitter: how far a picture may lie from its nominal
    place. whole: jitters are multiples of
    this. absent: pictures (column, row) that were not taken. levels: how many; concat: by which power of two a
    level's images join the last one's.
    """

    grid: tuple[int, int] = (6, 4)
    divisions: int = 2
    image_size: tuple[int, int] = (64, 48)
    overlap: tuple[float, float] = (16, 8)
    positions: str | None = "vimslide"
    jitter: int = 3
    whole: int = 1
    absent: Sequence[tuple[int, int]] = ()
    levels: int = 3
    mpp: float = 0.5
    picture: Rgb | None = None
    smooth: bool = False
    ini_edit: tuple[str, str] = ("", "")
    image_format: str = "JPEG"
    filters: int = 1
    truth: dict[tuple[int, int], Rgb] = field(default_factory=dict)
    """Level 0's images as they are decoded, by column and row."""
    origins: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(np.full((30, 40, 3), 200, np.uint8), 85, "RGB", "444"))
        data = bytearray(b"\0" * 7)
        entries = []
        images = self._images()
        for level in range(self.levels):
            concat = 1 << level
            listed = []
            for (x, y), image in sorted(images.items(), key=lambda item: (item[0][1], item[0][0])):
                jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image), 92, "RGB", "444")
                if level == 0:
                    self.truth[x, y] = simplejpeg.decode_jpeg(jpeg, "RGB")
                listed.append((y * self.grid[0] + x, len(data), len(jpeg), 0))
                data += jpeg
            entries.append(listed)
            images = self._joined(images, concat)
        records = self._records()
        places = []
        for record in records.values():
            places.append((len(data), len(record)))
            data += record
        (folder / "Data0000.dat").write_bytes(data)
        (folder / "Index.dat").write_bytes(_index(entries, places))
        ini = self._ini(list(records)).replace(*self.ini_edit)
        (folder / "Slidedat.ini").write_text(ini, encoding="utf-8-sig")

    def _images(self) -> dict[tuple[int, int], Rgb]:
        (across, down), (width, height), d = self.grid, self.image_size, self.divisions
        picture = self.picture
        if picture is None:
            picture = tissue_like(across * width, down * height, seed=8)
        if self.smooth:
            wave = np.add.outer(np.linspace(0, 4, down * height), np.linspace(0, 5, across * width))
            picture = np.repeat((128 + 90 * np.sin(wave))[..., None], 3, axis=2).astype(np.uint8)
        return {
            (x, y): picture[y * height : (y + 1) * height, x * width : (x + 1) * width]
            for y in range(down)
            for x in range(across)
            if (x // d, y // d) not in self.absent
        }

    def _joined(self, images: Mapping[tuple[int, int], Rgb], concat: int) -> dict[tuple[int, int], Rgb]:
        """The next level: two by two images become one of the same size."""
        width, height = self.image_size
        nothing = np.full((height, width, 3), 50, np.uint8)
        corners = {(x // (2 * concat) * 2 * concat, y // (2 * concat) * 2 * concat) for x, y in images}
        return {
            (x, y): halved(
                np.concatenate(
                    [
                        np.concatenate(
                            [images.get((x + a * concat, y + b * concat), nothing) for a in (0, 1)], axis=1
                        )
                        for b in (0, 1)
                    ]
                )
            )
            for x, y in corners
        }

    def _records(self) -> dict[str, bytes]:
        label = simplejpeg.encode_jpeg(np.full((20, 36, 3), 120, np.uint8), 90, "RGB", "444")
        records = {"label": label}
        (across, down), (width, height), d = self.grid, self.image_size, self.divisions
        rng = np.random.default_rng(2)
        table = b""
        for y in range(down // d):
            for x in range(across // d):
                at = [
                    int(place * (side * d - overlap))
                    + (self.whole * int(rng.integers(0, self.jitter + 1)) if x or y else 0)
                    for place, side, overlap in zip((x, y), (width, height), self.overlap, strict=True)
                ]
                if (x, y) in self.absent:
                    at = [0, 0]
                self.origins[x, y] = (at[0], at[1])
                table += struct.pack("<Bii", int((x, y) not in self.absent), *at)
        if self.positions:
            records[self.positions] = zlib.compress(table) if self.positions == "stitching" else table
        return records

    def _ini(self, records: Sequence[str]) -> str:
        width, height = self.image_size
        lines = ["[GENERAL]", f"SLIDE_ID = {SLIDE_ID}", f"IMAGENUMBER_X = {self.grid[0]}",
                 f"IMAGENUMBER_Y = {self.grid[1]}", "OBJECTIVE_MAGNIFICATION = 20x",
                 f"CameraImageDivisionsPerSide = {self.divisions}", "[HIERARCHICAL]", "INDEXFILE = Index.dat",
                 "HIER_COUNT = 2", f"NONHIER_COUNT = {len(records)}", "HIER_0_NAME = Slide zoom level",
                 f"HIER_0_COUNT = {self.levels}", "HIER_1_NAME = Slide filter level",
                 f"HIER_1_COUNT = {self.filters}"]  # fmt: skip
        lines += [f"HIER_0_VAL_{level}_SECTION = LEVEL_{level}" for level in range(self.levels)]
        names = {"label": "Scan data layer", "vimslide": "VIMSLIDE_POSITION_BUFFER",
                 "stitching": "StitchingIntensityLayer"}  # fmt: skip
        for place, record in enumerate(records):
            value = "ScanDataLayer_SlideBarcode" if record == "label" else "default"
            lines += [f"NONHIER_{place}_NAME = {names[record]}", f"NONHIER_{place}_COUNT = 1",
                      f"NONHIER_{place}_VAL_0 = {value}",
                      f"NONHIER_{place}_VAL_0_SECTION = RECORD_{place}"]  # fmt: skip
        lines += [
            "[RECORD_0]",
            "BARCODE_IMAGE_TYPE = JPEG",
            "[DATAFILE]",
            "FILE_COUNT = 1",
            "FILE_0 = Data0000.dat",
        ]
        for level in range(self.levels):
            factor = 2**level
            lines += [f"[LEVEL_{level}]", f"OVERLAP_X = {self.overlap[0] / factor}",
                      f"OVERLAP_Y = {self.overlap[1] / factor}", f"MICROMETER_PER_PIXEL_X = {self.mpp * factor}",
                      f"MICROMETER_PER_PIXEL_Y = {self.mpp * factor}", f"IMAGE_FORMAT = {self.image_format}",
                      "IMAGE_FILL_COLOR_BGR = 15132390", f"DIGITIZER_WIDTH = {width}",
                      f"DIGITIZER_HEIGHT = {height}",
                      f"IMAGE_CONCAT_FACTOR = {int(level > 0)}"]  # fmt: skip
        return "\n".join(lines) + "\n"


def _index(
    levels: Sequence[Sequence[tuple[int, int, int, int]]], records: Sequence[tuple[int, int]]
) -> bytes:
    """Images of each level on pages of a few, and one page for each record."""
    blob = bytearray(b"01.02" + SLIDE_ID.encode() + bytes(8))
    root = len(blob) - 8

    def word(value: int) -> int:
        blob.extend(struct.pack("<i", value))
        return len(blob) - 4

    def point(at: int) -> None:
        blob[at : at + 4] = struct.pack("<i", len(blob))

    def heads(at: int, count: int) -> list[int]:
        point(at)
        return [word(0) for _ in range(count)]

    for head, images in zip(heads(root, len(levels)), levels, strict=True):
        point(head)
        word(0)
        link = word(0)
        for start in range(0, max(1, len(images)), PAGE):
            page = images[start : start + PAGE]
            point(link)
            word(len(page))
            link = word(0)
            for image in page:
                for value in image:
                    word(value)
    for head, (offset, count) in zip(heads(root + 4, len(records)), records, strict=True):
        point(head)
        word(0)
        link = word(0)
        point(link)
        for value in (1, 0, 0, 0, offset, count, 0):
            word(value)
    return bytes(blob)
