"""The two files that say what lies where in a MIRAX slide's data folder: Slidedat.ini and Index.dat.

See CONTAINERS.md, section 9. Every number is checked here against the files' sizes.
"""

import math
import zlib
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import DamagedSlide, UnsupportedSlide, one_line
from wsi_ips.slides.limits import LARGEST_BLOCK_PX, LARGEST_SIDE_PX, MOST_LEVELS
from wsi_ips.slides.stated_mpp import number
from wsi_ips.units import Size

SLIDEDAT = "Slidedat.ini"
MOST_INI_BYTES = 1 << 20
MOST_INDEX_BYTES = 1 << 28
MOST_FILES = 10_000
MOST_SECTIONS = 1000
INDEX_VERSION = b"01.02"
POSITION = np.dtype([("flag", "u1"), ("x", "<i4"), ("y", "<i4")])
BROKEN = "the file is damaged or incomplete; copy the slide's folder again"


@dataclass(frozen=True, slots=True)
class ZoomLevel:
    """One level. concat_exponent: two to the power of how many of the last level's images make one image."""

    concat_exponent: int
    overlap: tuple[float, float]
    mpp: tuple[float | None, float | None]
    image_size: Size
    image_format: str


class Slidedat:
    """The values of a Slidedat.ini. Raises :class:`UnsupportedSlide` where they cannot be understood."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SLIDEDAT
        with self.path.open("rb") as file:
            data = file.read(MOST_INI_BYTES + 1)
        if len(data) > MOST_INI_BYTES:
            raise UnsupportedSlide(self.path, "is larger than any scanner writes it")
        self._ini = ConfigParser(interpolation=None, strict=False, delimiters=("=",), allow_no_value=True)
        try:
            self._ini.read_string(data.decode("utf-8-sig", "replace"))
        except (IniError, ValueError) as error:
            raise UnsupportedSlide(self.path, f"cannot be understood: {one_line(error, most=200)}") from error
        except AttributeError as error:  # what configparser runs into there
            raise UnsupportedSlide(self.path, "goes on with the value of a key that has none") from error

    def text(self, section: str, key: str) -> str:
        value = self._ini.get(section, key, fallback=None)
        if value is None:
            raise UnsupportedSlide(self.path, f"has no {key} in [{section}]")
        return value.strip()

    def count(self, section: str, key: str, *, most: int, least: int = 1) -> int:
        """A whole number within these limits."""
        value = number(self.text(section, key))
        if value is None or not least <= value <= most or value != int(value):
            raise UnsupportedSlide(self.path, f"states {key} = {self.text(section, key)[:50]!r}")
        return int(value)

    def stated(self, section: str, key: str) -> float | None:
        """A number that may be absent."""
        return number(self._ini.get(section, key, fallback=None))

    def section_value(self, section: str, key: str) -> str:
        """A text that may be absent, then empty."""
        return (self._ini.get(section, key, fallback="") or "").strip()

    @property
    def divisions(self) -> int:
        """Into how many images along each side a camera's picture was cut."""
        key = "CameraImageDivisionsPerSide"
        has = self._ini.has_option("GENERAL", key)
        return self.count("GENERAL", key, most=LARGEST_SIDE_PX) if has else 1

    def zoom_levels(self) -> list[ZoomLevel]:
        """From fine to coarse."""
        if self.text("HIERARCHICAL", "HIER_0_NAME") != "Slide zoom level":
            raise UnsupportedSlide(self.path, "does not state zoom levels first")
        levels = []
        for level in range(self.count("HIERARCHICAL", "HIER_0_COUNT", most=MOST_LEVELS)):
            section = self.text("HIERARCHICAL", f"HIER_0_VAL_{level}_SECTION")
            overlaps = [self.stated(section, f"OVERLAP_{axis}") for axis in "XY"]
            width, height = (
                self.count(section, f"DIGITIZER_{side}", most=LARGEST_SIDE_PX) for side in ("WIDTH", "HEIGHT")
            )
            overlap_x, overlap_y = (math.nan if overlap is None else overlap for overlap in overlaps)
            fitting = 0 <= overlap_x < width * self.divisions and 0 <= overlap_y < height * self.divisions
            if width * height > LARGEST_BLOCK_PX or not fitting:
                overlap = f"{overlap_x:g}x{overlap_y:g}"
                raise UnsupportedSlide(
                    self.path, f"states images of {width}x{height} px that overlap by {overlap}"
                )
            levels.append(
                ZoomLevel(
                    self.count(section, "IMAGE_CONCAT_FACTOR", most=24, least=0),
                    (overlap_x, overlap_y),
                    (
                        self.stated(section, "MICROMETER_PER_PIXEL_X"),
                        self.stated(section, "MICROMETER_PER_PIXEL_Y"),
                    ),
                    (width, height),
                    self.text(section, "IMAGE_FORMAT"),
                )
            )
        return levels

    def other_hierarchies(self) -> dict[str, int]:
        """Names of what a level's images are divided by further, and into how many."""
        others = {}
        for place in range(1, self.count("HIERARCHICAL", "HIER_COUNT", most=MOST_SECTIONS)):
            name = self.text("HIERARCHICAL", f"HIER_{place}_NAME")
            others[name] = self.count("HIERARCHICAL", f"HIER_{place}_COUNT", most=MOST_SECTIONS, least=0)
        return others

    def data_files(self, folder: Path) -> list[Path]:
        """The files that hold images, by number."""
        files = range(self.count("DATAFILE", "FILE_COUNT", most=MOST_FILES))
        return [folder / self.file_name("DATAFILE", f"FILE_{number}") for number in files]

    def file_name(self, section: str, key: str) -> str:
        """The name of a file in the slide's own folder; nothing that leads out of it."""
        name = self.text(section, key)
        if name in {"", ".", ".."} or any(mark in name for mark in "/\\\0"):
            raise UnsupportedSlide(self.path, f"names the file {name[:100]!r}, which is not in its folder")
        return name

    def record(self, name: str, value: str | None = None) -> tuple[int, str] | None:
        """The number of a record that belongs to no level, and its section; None where there is none.

        value: of those under the name; None: the first.
        """
        start = 0
        for place in range(self.count("HIERARCHICAL", "NONHIER_COUNT", most=MOST_SECTIONS, least=0)):
            count = self.count("HIERARCHICAL", f"NONHIER_{place}_COUNT", most=MOST_SECTIONS, least=0)
            if self.text("HIERARCHICAL", f"NONHIER_{place}_NAME") == name:
                for entry in range(count):
                    key = f"NONHIER_{place}_VAL_{entry}"
                    if value is None or self.text("HIERARCHICAL", key) == value:
                        return start + entry, self.section_value("HIERARCHICAL", f"{key}_SECTION")
            start += count
        return None


@dataclass(frozen=True, slots=True)
class Record:
    """Some bytes of a data file."""

    offset: int
    count: int
    file: int


class IndexFile:
    """An Index.dat: where images and records lie. Raises :class:`DamagedSlide` for one that cannot be followed."""

    def __init__(self, path: Path, slide_id: str) -> None:
        self.path = path
        with path.open("rb") as file:
            self._data = file.read(MOST_INDEX_BYTES + 1)
        start = INDEX_VERSION + slide_id.encode()
        if len(self._data) > MOST_INDEX_BYTES or not self._data.startswith(start):
            raise DamagedSlide(path, "is not the index of its slide", BROKEN)
        self._root = len(start)

    def images(self, level: int) -> NDArray[np.int64]:
        """(images, 4): place in the grid of level 0, offset, bytes, number of the data file."""
        at = self._first_page(self._integer(self._root) + 4 * level)
        pages: list[NDArray[np.int64]] = []
        seen: set[int] = set()
        left = len(self._data) // 16  # no more entries than the file has room for, whatever its pages link to
        while True:
            count, following = self._integer(at), self._integer(at + 4)
            left -= count
            if at in seen or count < 0 or left < 0 or at + 8 + 16 * count > len(self._data):
                raise self._broken(at)
            seen.add(at)
            page = np.frombuffer(self._data, "<i4", 4 * count, at + 8)
            pages.append(page.reshape(-1, 4).astype(np.int64))
            if following == 0:
                return np.concatenate(pages)
            at = following

    def record(self, number: int) -> Record:
        """Where a record that belongs to no level lies."""
        at = self._first_page(self._integer(self._root + 4) + 4 * number)
        if self._integer(at) < 1 or self._integer(at + 8) or self._integer(at + 12):
            raise self._broken(at)
        return Record(self._integer(at + 16), self._integer(at + 20), self._integer(at + 24))

    def _first_page(self, at: int) -> int:
        pointer = self._integer(at)
        if self._integer(pointer) != 0:
            raise self._broken(pointer)
        return self._integer(pointer + 4)

    def _integer(self, at: int) -> int:
        if not 0 <= at <= len(self._data) - 4:
            raise self._broken(at)
        return int.from_bytes(self._data[at : at + 4], "little", signed=True)

    def _broken(self, at: int) -> DamagedSlide:
        return DamagedSlide(self.path, f"breaks off or contradicts itself at byte {at}", BROKEN)


def camera_positions(path: Path, data: bytes, *, count: int, packed: bool) -> NDArray[np.int64]:
    """(count, 2) x, y of each picture of the camera in level-0 pixels. packed: by zlib.

    Raises :class:`DamagedSlide` for bytes that hold something else.
    """
    wanted = count * POSITION.itemsize
    if packed:
        try:
            data = zlib.decompressobj().decompress(data, wanted + 1)
        except zlib.error as error:
            raise DamagedSlide(path, f"its camera positions do not unpack: {error}", BROKEN) from error
    if len(data) != wanted:
        raise DamagedSlide(
            path, f"has {len(data)} bytes of camera positions where {wanted} are needed", BROKEN
        )
    table = np.frombuffer(data, POSITION)
    if (table["flag"] > 1).any():
        raise DamagedSlide(path, "its camera positions cannot be understood", BROKEN)
    return np.stack([table["x"], table["y"]], axis=1).astype(np.int64)
