"""The resolution of a slide in µm per pixel: which statements of a file can be believed, and what the user says.

:func:`believable_xy` and :func:`mpp_of_resolution` judge what a file states. :class:`SlideMpp` holds the
resolutions that the user has given, because they know better than the file, and :func:`read_mpp_table` reads them
from a CSV.
"""

import csv
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from wsi_ips.errors import ConfigError, ManifestError, one_line
from wsi_ips.registry import did_you_mean
from wsi_ips.slides.folder import SLIDE_SUFFIXES, slide_id
from wsi_ips.storage.files import check_cells, check_header, check_table_size
from wsi_ips.units import Mpp

SMALLEST = 0.01
"""No slide has as few µm per pixel as this."""

LARGEST = 100.0
"""No slide has as many µm per pixel as this. 72 dpi, which image editors write, would be 353."""

MICRONS_PER = {"centimeter": 10_000.0, "inch": 25_400.0}
"""µm per unit of TIFF's ResolutionUnit."""

PRINT_DPI = (72.0, 75.0, 96.0, 100.0, 120.0, 144.0, 150.0, 200.0, 240.0, 254.0, 300.0, 360.0, 400.0, 600.0, 720.0,
             1200.0, 1440.0, 2400.0)  # fmt: skip
"""Resolutions in dots per inch that image programs write by default or for print.

No slide scanner has one of them; 2,400 dpi is 10.6 µm.
"""

PRINT_TOLERANCE = 0.002
"""By how much, as a share, a resolution may differ from one for print and still be taken for it.

118.11 pixels per centimetre are 299.9994 dpi, and programs round that to 118.
"""

FILE_SUFFIXES = SLIDE_SUFFIXES | {".dcm", ".dicom", ".zarr", ".png", ".jpg", ".jpeg"}
"""Endings by which a name in a table is known to be the name of a file.

``S23.2`` is not one, but an id with a dot.
"""


def believable(mpp: float | None) -> Mpp | None:
    """``mpp`` if it can be the resolution of a slide in µm per pixel, else None."""
    if mpp is None or not math.isfinite(mpp) or not SMALLEST < mpp < LARGEST:
        return None
    return Mpp(mpp)


def believable_xy(x: float | None, y: float | None) -> tuple[Mpp, Mpp] | None:
    """µm per pixel along x and y, or None if one of them cannot be the resolution of a slide.

    If the file states one axis only (the other is None), both are taken to be alike.
    """
    mpp_x, mpp_y = (believable(y if axis is None else axis) for axis, y in ((x, y), (y, x)))
    return None if mpp_x is None or mpp_y is None else (mpp_x, mpp_y)


def mpp_of_resolution(pixels_per_unit: float | None, unit: str) -> float | None:
    """µm per pixel of TIFF's XResolution or YResolution and ResolutionUnit (TIFF 6.0, page 18).

    Returns None if there is no resolution or no unit of length. Returns NaN, which is never believable, for
    resolutions that image programs write for print: 300 dpi would be 85 µm.
    """
    if pixels_per_unit is None or not pixels_per_unit > 0 or unit not in MICRONS_PER:
        return None
    mpp = MICRONS_PER[unit] / pixels_per_unit
    dpi = MICRONS_PER["inch"] / mpp
    for_print = any(abs(dpi / print_dpi - 1) < PRINT_TOLERANCE for print_dpi in PRINT_DPI)
    return math.nan if for_print else mpp


def number(text: str | None) -> float | None:
    """``text`` as a number, or None if it is none. A decimal comma is allowed, as OpenSlide does."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None


class SlideMpp:
    """The resolutions that the user has given. Call it with a slide's id.

    ``for_all`` applies to every slide, in µm per pixel. ``table`` maps slide ids, or names of slide files, to µm
    per pixel, and takes precedence. Calling it returns µm per pixel, or None if the file is to be believed.

    Raises :class:`ConfigError` if ``for_all`` cannot be the resolution of a slide.
    """

    def __init__(self, for_all: float | None = None, table: Mapping[str, Mpp] | None = None) -> None:
        if for_all is not None and believable(for_all) is None:
            raise ConfigError(
                f"--slide-mpp {for_all} (in Python: slide_mpp=) is no resolution of a slide; expected µm per "
                "pixel, e.g. 0.25"
            )
        self._for_all = None if for_all is None else Mpp(for_all)
        self._names = dict(table or {})
        self._by_file_name = {_id_of(name): mpp for name, mpp in self._names.items()}

    def __call__(self, slide_id: str) -> Mpp | None:
        by_name = self._by_file_name.get(slide_id, self._for_all)
        return self._names.get(slide_id, by_name)

    def unmatched(self, slide_ids: Collection[str]) -> list[str]:
        """The names in the table that belong to none of these slides."""
        return [name for name in self._names if name not in slide_ids and _id_of(name) not in slide_ids]


CALLED_INSTEAD = ("slide", "slide_id", "slide_name", "filename", "file", "name", "image", "path")
"""What tables of others call the column ``wsi``."""


def read_mpp_table(path: Path) -> dict[str, Mpp]:
    """Read resolutions from a CSV with the columns ``wsi,mpp`` (the names that TRIDENT uses).

    ``wsi`` is the name of a slide file or a slide id, ``mpp`` is in µm per pixel. Blanks around them are ignored.
    Returns ``{name: mpp}``.

    Raises :class:`ManifestError` with the line if the table is something else, or gives a slide two resolutions.
    """
    if not path.is_file():
        raise ManifestError(path, "does not exist", "--mpp-csv wants a CSV with the columns wsi,mpp")
    table: dict[str, Mpp] = {}
    of_slide: dict[str, Mpp] = {}
    check_table_size(path, ManifestError)
    try:  # read all of it first, so that an error is reported before anything is done
        with path.open(newline="", encoding="utf-8-sig") as file:
            for _ in csv.reader(file):
                pass
    except UnicodeDecodeError:
        raise ManifestError(path, "is not text in UTF-8", "save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ManifestError(path, f"is not a CSV ({error})", "save it as CSV in UTF-8") from None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        missing = [name for name in ("wsi", "mpp") if name not in rows.fieldnames]
        if missing:
            others = [name for name in rows.fieldnames if name not in ("wsi", "mpp")]
            alike = did_you_mean(missing[0], others)
            if not alike and missing == ["wsi"]:
                named = [name for name in others if name.lower() in CALLED_INSTEAD] or others[:1]
                alike = f"; did you mean {one_line(named[0], most=80)}?" if named else ""
            raise ManifestError(
                path, f"lacks the column {missing[0]}", f"its first line must name wsi,mpp{alike}"
            )
        check_header(path, rows.fieldnames, ("wsi", "mpp"), ManifestError)
        for row in rows:
            check_cells(path, rows.line_num, row, ManifestError)
            name, stated = (row["wsi"] or "").strip(), (row["mpp"] or "").strip()
            if not name:
                raise ManifestError(
                    path, f"line {rows.line_num}: names no slide", "give a file name or an id"
                )
            mpp = believable(_number(stated))
            if mpp is None:
                raise ManifestError(path, f"line {rows.line_num}: mpp {stated!r} is no resolution",
                                    "give µm per pixel, e.g. 0.25")  # fmt: skip
            if of_slide.setdefault(_id_of(name), mpp) != mpp:
                raise ManifestError(
                    path,
                    f"line {rows.line_num}: slide {_id_of(name)} has another mpp above",
                    "keep one row",
                )
            table[name] = mpp
    return table


def _id_of(name: str) -> str:
    """The slide id of a name in a table, which is a file's name or an id already."""
    return slide_id(Path(name)) if Path(name).suffix.lower() in FILE_SUFFIXES else name


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


STATED_IN: Mapping[str, str] = MappingProxyType(
    {
        "aperio": "MPP in the image's description, or else the TIFF resolution tags",
        "argos": "the TIFF resolution tags",
        "generic-tiff": "the TIFF resolution tags",
        "hamamatsu": "the TIFF resolution tags",
        "huron": "the TIFF resolution tags",
        "leica": "the TIFF resolution tags, or else the sizes in its XML",
        "ome-tiff": "PhysicalSizeX and PhysicalSizeY in its OME-XML, or else the TIFF resolution tags",
        "philips": "DICOM_PIXEL_SPACING in its XML, or else the TIFF resolution tags",
        "trestle": "the TIFF tags XResolution and YResolution, which hold µm",
        "ventana": "ScanRes in its XML",
        "dicom": "PixelSpacing",
        "mirax": "MICROMETER_PER_PIXEL in Slidedat.ini",
        "ome-zarr": "the scale in its metadata",
    }
)
"""Where the built-in readers of stored tiles find the resolution, by container."""

STATED_TO: Mapping[str, str] = MappingProxyType(
    {
        "openslide": "OpenSlide's mpp-x and mpp-y, or else the TIFF resolution tags",
        "image": "its dots per inch, or the TIFF resolution tags",
        "tiffslide": "what tiffslide reports",
    }
)
"""The same by reader, for readers that open several kinds of file."""


def stated_in(reader: str, container: str) -> str:
    """Where a slide's resolution is stated, in words.

    ``reader`` and ``container`` are those of :class:`wsi_ips.slides.base.SlideInfo`.
    """
    return STATED_TO.get(reader) or STATED_IN.get(container) or f"as reader {reader} says"


def mpp_in_words(given: float | None) -> str:
    """Where a slide's resolution is from, for a message: its file, or a user, who gave it as µm per pixel."""
    return "the file's own" if given is None else f"given as {given:g} µm"
