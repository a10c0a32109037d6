"""The reader of MIRAX slides (3DHISTECH): a JPEG named ``X.mrxs``, and a folder ``X`` that holds the slide.

Source: CONTAINERS.md, section 9. Start with :class:`MiraxReader`. ``Slidedat.ini`` (:class:`Slidedat`) describes
the slide, and ``Index.dat`` (:class:`IndexFile`) says where in the data files its images lie. Every number is
checked against the sizes of the files.

The pictures that the camera took have places of their own and overlap. Each was cut into images. Images of coarser
levels join those of several pictures, and are cut apart again here, as OpenSlide does. Where images overlap, the
lower one is seen, and in a row the one to the right. Level 0 equals OpenSlide. Above it, places often fall between
pixels, which OpenSlide interpolates and this reader rounds. Slides with images that are not JPEGs, or with missing
data files, are left to OpenSlide.

Suffixes of array names give the shape: ``I`` images, ``P`` pieces of images.
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
from wsi_ips.slides.base import Bounds, LeftOut
from wsi_ips.slides.codecs.base import TileError
from wsi_ips.slides.codecs.jpeg import Colours, JpegInFile, JpegTiles
from wsi_ips.slides.resolution import believable_xy, number
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.slides.tile_layout import AssociatedImage, SlideLayout, TileLayout
from wsi_ips.slides.tile_places import (
    LARGEST_BLOCK_PX,
    LARGEST_SIDE_PX,
    MOST_LEVELS,
    MOST_PIECES,
    PlacedTiles,
    counted,
    parts_of_tiles,
)
from wsi_ips.units import Size

SLIDEDAT = "Slidedat.ini"
"""Name of the file that describes a slide."""

MOST_INI_BYTES = 1 << 20
"""The largest Slidedat.ini."""

MOST_INDEX_BYTES = 1 << 28
"""The largest Index.dat."""

MOST_FILES = 10_000
"""The most data files."""

MOST_SECTIONS = 1000
"""The most hierarchies, and the most entries in each."""

INDEX_VERSION = b"01.02"
"""First bytes of an Index.dat."""

POSITION = np.dtype([("flag", "u1"), ("x", "<i4"), ("y", "<i4")])
"""A camera position as it is stored."""

BROKEN = "the file is damaged or incomplete; copy the slide's folder again"
"""The fix for files that contradict each other."""

SUFFIX = ".mrxs"
"""Suffix of MIRAX slides."""

MOST_IMAGES_ACROSS = 1 << 20
"""The most images along one side of level 0."""

PICTURES = {
    "label": ("ScanDataLayer_SlideBarcode", "BARCODE_IMAGE_TYPE"),
    "macro": ("ScanDataLayer_SlideThumbnail", "THUMBNAIL_IMAGE_TYPE"),
    "thumbnail": ("ScanDataLayer_SlidePreview", "PREVIEW_IMAGE_TYPE"),
}
"""The associated images by OpenSlide's names: what MIRAX calls each, and the key of its format."""

NOT_TOLD_APART = {"Slide filter level", "Microscope focus level"}
"""Hierarchies whose members are not told apart here."""


@dataclass(frozen=True, slots=True)
class ZoomLevel:
    """One level as Slidedat.ini describes it.

    Two to the power of ``concat_exponent`` images of the next finer level, along each side, are joined into one
    image. ``overlap`` is in pixels and ``mpp`` in µm per pixel, both along x and y.
    """

    concat_exponent: int
    overlap: tuple[float, float]
    mpp: tuple[float | None, float | None]
    image_size: Size
    image_format: str


class MiraxReader(StoredTileReader):
    """A reader of the MIRAX slide ``X.mrxs``, whose folder ``X`` lies beside it."""

    name = "mirax"

    def read_layout(self) -> SlideLayout:
        """Read Slidedat.ini and Index.dat.

        Raises :class:`UnsupportedSlide` for what is left to OpenSlide, and :class:`DamagedSlide` if the folder is
        missing or the files contradict themselves.
        """
        path = self._path
        if path.suffix.lower() != SUFFIX or path.is_dir():
            raise UnsupportedSlide(path, f"not a MIRAX slide, whose name ends in {SUFFIX}")
        folder = path.with_suffix("")
        if not (folder / SLIDEDAT).is_file():
            what = f"its {SLIDEDAT} is missing in {folder.name}/" if folder.is_dir() else (
                f"its data folder {folder.name}/ is missing"
            )  # fmt: skip
            raise DamagedSlide(path, what, "copy the folder of the same name beside it")
        return _Slide(path, folder).layout()


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How the images of one level lie."""

    concat: int
    """How many images of level 0 one image joins along each side."""
    parts: int
    """How many pieces with places of their own an image has along each side."""
    step: int
    """How many images of level 0 lie between a row of pieces and the next, which gives the order of painting."""


class _Slide:
    """The opened folder of a slide."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._ini = ini = Slidedat(folder)
        self._across, self._down = (
            ini.count("GENERAL", f"IMAGENUMBER_{axis}", most=MOST_IMAGES_ACROSS) for axis in "XY"
        )
        self._divisions = ini.divisions
        self._levels = ini.zoom_levels()
        self._files = ini.data_files(folder)
        self._index = IndexFile(
            folder / ini.file_name("HIERARCHICAL", "INDEXFILE"), ini.text("GENERAL", "SLIDE_ID")
        )
        missing = [file.name for file in self._files if not file.is_file()]
        if missing:
            raise UnsupportedSlide(path, f"its data files {', '.join(missing[:5])} are missing", BROKEN)
        self._sizes = np.array([file.stat().st_size for file in self._files], np.int64)
        self._refuse_odd()
        self._stored_positions = self._read_positions()
        self._has_places = self._stored_positions is not None or any(self._levels[0].overlap)

    def layout(self) -> SlideLayout:
        """Where the tiles of all levels lie."""
        concats = np.cumsum([level.concat_exponent for level in self._levels]).tolist()
        levels = []
        active = np.zeros(0, np.int64)
        for level, exponent in enumerate(concats):
            tiles, cameras = self._level(level, 1 << exponent, active)
            active = cameras if level == 0 else active
            levels.append(tiles)
        pictures, left_out = self._pictures()
        others = self._ini.other_hierarchies()
        left_out += [
            LeftOut(f"{count} of {name!r}", "they are not told apart: what the images hold is shown")
            for name, count in others.items()
            if name in NOT_TOLD_APART and count > 1
        ]
        return SlideLayout(
            vendor="mirax",
            files=tuple(self._files),
            levels=tuple(levels),
            downsamples=tuple(float(1 << exponent) for exponent in concats),
            mpp_xy=believable_xy(*self._levels[0].mpp),
            bounds=_bounds(levels[0]),
            associated=pictures,
            left_out=tuple(left_out),
        )

    def _refuse_odd(self) -> None:
        kinds = {level.image_format for level in self._levels}
        exponents = [level.concat_exponent for level in self._levels]
        if kinds != {"JPEG"}:
            raise UnsupportedSlide(self._path, f"its images are {', '.join(sorted(kinds))}, not JPEG")
        if exponents[0] != 0 or 0 in exponents[1:] or sum(exponents) > 24:
            raise UnsupportedSlide(self._path, f"its levels join images by powers of two {exponents}")
        if self._across % self._divisions:
            raise UnsupportedSlide(self._path, "its camera's pictures do not fill a row of images")

    def _read_positions(self) -> NDArray[np.int64] | None:
        """(pictures, 2) where each picture of the camera begins in level-0 pixels.

        None if the slide does not store it.
        """
        found = self._ini.record("VIMSLIDE_POSITION_BUFFER")
        packed = found is None
        found = found or self._ini.record("StitchingIntensityLayer")
        if found is None:
            return None
        record = self._index.record(found[0])
        count = (self._across // self._divisions) * (self._down // self._divisions)
        if not (
            0 <= record.file < len(self._files)
            and record.offset >= 0
            and 0 < record.count <= self._sizes[record.file] - record.offset
        ):
            raise DamagedSlide(self._path, "its camera positions lie beyond its data files", BROKEN)
        with self._files[record.file].open("rb") as file:
            file.seek(record.offset)
            # Positions that are not packed take nine bytes each, packed ones less.
            data = file.read(min(record.count, 9 * count + 1024))
        return camera_positions(self._path, data, count=count, packed=packed)

    def _level(
        self, number: int, concat: int, active: NDArray[np.int64]
    ) -> tuple[TileLayout, NDArray[np.int64]]:
        """A level, and the pictures of the camera that it shows. ``active`` are those that level 0 shows."""
        zoom, divisions = self._levels[number], self._divisions
        images_I4 = self._index.images(number)
        self._check_images(number, images_I4, concat)
        parts = max(1, concat // divisions) if self._has_places else 1
        tiling = _Tiling(concat, parts, min(concat, divisions) if self._has_places else concat)
        image_P, part_P2, at_P2 = self._pieces(images_I4, tiling)
        xy_P2 = at_P2 + part_P2 * divisions
        camera_P = self._camera(xy_P2)
        origin_P2 = self._origins(camera_P)
        if number == 0:
            shown = origin_P2.any(axis=1) | (camera_P == 0)
        elif self._has_places:
            shown = np.isin(camera_P, active)
        else:
            shown = self._any_active(xy_P2, max(1, concat // divisions), active)
        image0 = np.array(self._levels[0].image_size)
        l0_xy_P2 = origin_P2 + image0 * (xy_P2 % divisions)
        order_P2 = at_P2 // tiling.step + part_P2
        chosen = _in_painting_order(order_P2, shown)
        layout = self._placed(
            zoom, images_I4, concat, (image_P[chosen], part_P2[chosen], l0_xy_P2[chosen]), parts
        )
        return layout, np.unique(camera_P[shown])

    def _check_images(self, number: int, images_I4: NDArray[np.int64], concat: int) -> None:
        place_I, offset_I, count_I, file_I = images_I4.T
        rows_I, cols_I = np.divmod(place_I, self._across)
        if (images_I4 < 0).any() or (rows_I >= self._down).any() or (file_I >= len(self._files)).any():
            raise DamagedSlide(self._path, f"its index lists images of level {number} that cannot be", BROKEN)
        if (rows_I % concat).any() or (cols_I % concat).any():
            raise DamagedSlide(self._path, f"images of level {number} lie off its grid", BROKEN)
        beyond = int((offset_I + count_I > self._sizes[file_I]).sum())
        if beyond:
            raise DamagedSlide(
                self._path,
                f"truncated: {beyond} images of level {number} lie beyond the ends of its data files",
                BROKEN,
            )

    def _pieces(
        self, images_I4: NDArray[np.int64], tiling: _Tiling
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The pieces of the images of a level.

        Returns, for each piece, its image, which part of the image it is (x, y), and where the image lies (x, y)
        in the grid of the images of level 0.
        """
        rows_I, cols_I = np.divmod(images_I4[:, 0], self._across)
        at_I2 = np.stack([cols_I, rows_I], axis=1)
        room_I2 = -(-(np.array([self._across, self._down]) - at_I2) // self._divisions)
        held_I2 = np.minimum(room_I2, tiling.parts)
        if int(held_I2.prod(axis=1).sum()) > MOST_PIECES:
            raise DamagedSlide(self._path, "its index lists more images than any slide has", BROKEN)
        image_P, place_P = counted(held_I2.prod(axis=1))
        row_P, col_P = np.divmod(place_P, held_I2[image_P, 0])
        return image_P, np.stack([col_P, row_P], axis=1), at_I2[image_P]

    def _camera(self, xy_P2: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the camera's picture to which images at these places in the grid of level 0 belong."""
        camera_P2 = xy_P2 // self._divisions
        return camera_P2[:, 1] * (self._across // self._divisions) + camera_P2[:, 0]

    def _origins(self, camera_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """(P, 2) where these pictures of the camera begin, in level-0 pixels."""
        if self._stored_positions is not None:
            if (camera_P >= len(self._stored_positions)).any():
                raise DamagedSlide(self._path, "its index lists images that the camera has not taken", BROKEN)
            return self._stored_positions[camera_P]
        row_P, col_P = np.divmod(camera_P, self._across // self._divisions)
        zoom = self._levels[0]
        advance = np.array(zoom.image_size) * self._divisions - zoom.overlap
        return (np.stack([col_P, row_P], axis=1) * advance).astype(np.int64)

    def _any_active(
        self, xy_P2: NDArray[np.int64], pictures: int, active: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether an image that joins several pictures of the camera shows at least one that level 0 has."""
        wide = self._across // self._divisions
        have_P2 = np.stack([active % wide, active // wide], axis=1) // pictures
        wanted_P2 = xy_P2 // self._divisions // pictures
        return np.isin(wanted_P2[:, 1] * wide + wanted_P2[:, 0], have_P2[:, 1] * wide + have_P2[:, 0])

    def _placed(
        self,
        zoom: ZoomLevel,
        images_I4: NDArray[np.int64],
        concat: int,
        pieces: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
        parts: int,
    ) -> TileLayout:
        """A level out of its pieces.

        ``pieces`` holds the image of each piece, which part of the image it is, and its place in level-0 pixels,
        in the order of painting.
        """
        image_P, part_P2, l0_xy_P2 = pieces
        xy_P2, sources_P4 = parts_of_tiles(l0_xy_P2 / concat, part_P2, zoom.image_size, parts)
        width, height = self._l0_size()
        level_size = width // concat, height // concat
        missing = images_I4[:, 2] == 0
        return TileLayout(
            level_size=level_size,
            tile=JpegTiles(size=zoom.image_size, colours=Colours.AS_STATED),
            cols=len(images_I4),
            rows=1,
            offsets=images_I4[:, 1],
            byte_counts=images_I4[:, 2],
            files=images_I4[:, 3].astype(np.int32),
            placed=PlacedTiles.place(
                self._path,
                level_size=level_size,
                tile_size=zoom.image_size,
                missing=missing,
                numbers_P=image_P,
                xy_P2=xy_P2,
                sources_P4=sources_P4,
                disjoint=not self._has_places,
            ),
        )

    def _l0_size(self) -> Size:
        """The size of level 0: the sum of the sides of the images, less the overlap after every camera picture."""
        zoom = self._levels[0]
        sides = []
        for count, side, overlap in zip(
            (self._across, self._down), zoom.image_size, zoom.overlap, strict=True
        ):
            total = 0
            for image in range(count):
                ends = image % self._divisions == self._divisions - 1 and image != count - 1
                total = int(total + side - overlap) if ends else total + side
            sides.append(total)
        return sides[0], sides[1]

    def _pictures(self) -> tuple[dict[str, AssociatedImage], list[LeftOut]]:
        pictures: dict[str, AssociatedImage] = {}
        left_out = []
        for name, (value, kind) in PICTURES.items():
            found = self._ini.record("Scan data layer", value)
            if found is None or self._ini.section_value(found[1], kind) != "JPEG":
                continue
            record = self._index.record(found[0])
            try:
                if not 0 <= record.file < len(self._files):
                    raise TileError(f"it is in file {record.file} of {len(self._files)}")
                file = self._files[record.file]
                pictures[name] = JpegInFile.of(file, offset=record.offset, count=record.count)
            except TileError as error:
                left_out.append(LeftOut(f"the picture {value}", str(error)))
        return pictures, left_out


def _in_painting_order(order_P2: NDArray[np.int64], shown_P: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The pieces that are shown, row by row of their grid.

    Of two pieces at one place, the later one in the index counts.
    """
    pieces = np.flatnonzero(shown_P)
    keys = order_P2[pieces, 1] << 32 | order_P2[pieces, 0]
    _, last = np.unique(keys[::-1], return_index=True)
    return pieces[::-1][last]


def _bounds(finest: TileLayout) -> Bounds | None:
    """The rectangle around all images of level 0, or None if it is the whole level."""
    assert finest.placed is not None
    boxes_P4 = finest.placed.boxes_P4
    if not len(boxes_P4):
        return None
    left, top = boxes_P4[:, :2].min(axis=0).tolist()
    right, bottom = (boxes_P4[:, :2] + boxes_P4[:, 2:]).max(axis=0).tolist()
    if (left, top, right, bottom) == (0, 0, *finest.level_size):
        return None
    return Bounds(left, top, right - left, bottom - top)


class Slidedat:
    """The values of a Slidedat.ini.

    Every method raises :class:`UnsupportedSlide` if a value that it needs is missing or cannot be understood.
    """

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
        """A value that has to be there, as text."""
        value = self._ini.get(section, key, fallback=None)
        if value is None:
            raise UnsupportedSlide(self.path, f"has no {key} in [{section}]")
        return value.strip()

    def count(self, section: str, key: str, *, most: int, least: int = 1) -> int:
        """A whole number from ``least`` to ``most`` that has to be there."""
        value = number(self.text(section, key))
        if value is None or not least <= value <= most or value != int(value):
            raise UnsupportedSlide(self.path, f"states {key} = {self.text(section, key)[:50]!r}")
        return int(value)

    def stated(self, section: str, key: str) -> float | None:
        """A number that may be missing."""
        return number(self._ini.get(section, key, fallback=None))

    def section_value(self, section: str, key: str) -> str:
        """A text that may be missing, and is then empty."""
        return (self._ini.get(section, key, fallback="") or "").strip()

    @property
    def divisions(self) -> int:
        """Into how many images along each side a picture of the camera was cut."""
        key = "CameraImageDivisionsPerSide"
        has = self._ini.has_option("GENERAL", key)
        return self.count("GENERAL", key, most=LARGEST_SIDE_PX) if has else 1

    def zoom_levels(self) -> list[ZoomLevel]:
        """The levels, from fine to coarse."""
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
        """The names of what the images of a level are divided by further, and the number of members of each."""
        others = {}
        for place in range(1, self.count("HIERARCHICAL", "HIER_COUNT", most=MOST_SECTIONS)):
            name = self.text("HIERARCHICAL", f"HIER_{place}_NAME")
            others[name] = self.count("HIERARCHICAL", f"HIER_{place}_COUNT", most=MOST_SECTIONS, least=0)
        return others

    def data_files(self, folder: Path) -> list[Path]:
        """The files that hold the images, in the order of their numbers."""
        files = range(self.count("DATAFILE", "FILE_COUNT", most=MOST_FILES))
        return [folder / self.file_name("DATAFILE", f"FILE_{number}") for number in files]

    def file_name(self, section: str, key: str) -> str:
        """The name of a file in the slide's own folder. A name that leads out of the folder is refused."""
        name = self.text(section, key)
        if name in {"", ".", ".."} or any(mark in name for mark in "/\\\0"):
            raise UnsupportedSlide(self.path, f"names the file {name[:100]!r}, which is not in its folder")
        return name

    def record(self, name: str, value: str | None = None) -> tuple[int, str] | None:
        """Find a record that belongs to no level.

        ``value`` is the entry to find under ``name``; None means the first one. Returns the number of the record
        and the name of its section, or None if there is none.
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
    """A piece of a data file: where it begins, its length in bytes, and the number of the file."""

    offset: int
    count: int
    file: int


class IndexFile:
    """An Index.dat, which says where images and records lie.

    Every method raises :class:`DamagedSlide` if the index breaks off or contradicts itself.
    """

    def __init__(self, path: Path, slide_id: str) -> None:
        self.path = path
        with path.open("rb") as file:
            self._data = file.read(MOST_INDEX_BYTES + 1)
        start = INDEX_VERSION + slide_id.encode()
        if len(self._data) > MOST_INDEX_BYTES or not self._data.startswith(start):
            raise DamagedSlide(path, "is not the index of its slide", BROKEN)
        self._root = len(start)

    def images(self, level: int) -> NDArray[np.int64]:
        """The images of a level.

        Returns (images, 4) int64: place in the grid of level 0, offset, bytes, number of the data file.
        """
        at = self._first_page(self._integer(self._root) + 4 * level)
        pages: list[NDArray[np.int64]] = []
        seen: set[int] = set()
        left = len(self._data) // 16  # a file has room for no more entries, whatever its pages link to
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
        """Where the record of this number lies, which belongs to no level."""
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
    """Decode the positions of the camera's pictures.

    Returns (count, 2) int64: x, y of each picture in level-0 pixels. ``packed`` says that the bytes are compressed
    with zlib. Raises :class:`DamagedSlide` if they hold something else.
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
