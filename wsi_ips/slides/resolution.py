"""What a file says of its resolution, where that can be believed.

Resolutions that the user knows better than the file.
"""

import csv
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.slides.folder import SLIDE_SUFFIXES, slide_id
from wsi_ips.storage.files import check_table_size
from wsi_ips.units import Mpp

SMALLEST, LARGEST = 0.01, 100.0
"""Exclusive limits, in µm per pixel. 72 dpi, what image editors write, is 353."""

MICRONS_PER = {"centimeter": 10_000.0, "inch": 25_400.0}

PRINT_DPI = (72.0, 75.0, 96.0, 100.0, 120.0, 144.0, 150.0, 200.0, 240.0, 254.0, 300.0, 360.0, 400.0, 600.0, 720.0,
             1200.0, 1440.0, 2400.0)  # fmt: skip
"""Dots per inch that image programs write by default or for print; no slide scanner's resolution is one of them
(2,400 dpi is 10.6 µm)."""

PRINT_TOLERANCE = 0.002
"""118.11 pixels per centimetre are 299.9994 dpi, and programs round to 118."""


def believable(mpp: float | None) -> Mpp | None:
    """``mpp`` where it may be the resolution of a slide, else None."""
    if mpp is None or not math.isfinite(mpp) or not SMALLEST < mpp < LARGEST:
        return None
    return Mpp(mpp)


def believable_xy(x: float | None, y: float | None) -> tuple[Mpp, Mpp] | None:
    """µm per pixel along x and y, or None where one of them is no resolution of a slide.

    An axis that is not stated (None) is taken to be like the other one.
    """
    mpp_x, mpp_y = (believable(y if axis is None else axis) for axis, y in ((x, y), (y, x)))
    return None if mpp_x is None or mpp_y is None else (mpp_x, mpp_y)


def mpp_of_resolution(pixels_per_unit: float | None, unit: str) -> float | None:
    """µm per pixel from TIFF's XResolution and ResolutionUnit (TIFF 6.0, page 18).

    None where there is no unit. NaN, which is not believable along the other axis either, for the resolutions that
    image programs write for print (300 dpi would be 85 µm).
    """
    if pixels_per_unit is None or not pixels_per_unit > 0 or unit not in MICRONS_PER:
        return None
    mpp = MICRONS_PER[unit] / pixels_per_unit
    dpi = MICRONS_PER["inch"] / mpp
    for_print = any(abs(dpi / print_dpi - 1) < PRINT_TOLERANCE for print_dpi in PRINT_DPI)
    return math.nan if for_print else mpp


def number(text: str | None) -> float | None:
    """``text`` as a number, a decimal comma allowed as OpenSlide does; None where it is none."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None


FILE_SUFFIXES = SLIDE_SUFFIXES | {".dcm", ".dicom", ".zarr", ".png", ".jpg", ".jpeg"}
"""Endings by which a name in a table is known to be a file's. ``S23.2`` is none: it is a slide id with a dot."""


class SlideMpp:
    """``slide_mpp(slide_id)``: the resolution to use, or None to believe the file.

    ``table`` maps slide ids, or names of slide files, to µm per pixel; a row of it wins over ``for_all``.
    """

    def __init__(self, for_all: float | None = None, table: Mapping[str, Mpp] | None = None) -> None:
        if for_all is not None and believable(for_all) is None:
            raise ConfigError(
                f"--slide-mpp {for_all} is no resolution of a slide; expected µm per pixel, e.g. 0.25"
            )
        self._for_all = None if for_all is None else Mpp(for_all)
        self._names = dict(table or {})
        self._by_file_name = {_id_of(name): mpp for name, mpp in self._names.items()}

    def __call__(self, slide_id: str) -> Mpp | None:
        by_name = self._by_file_name.get(slide_id, self._for_all)
        return self._names.get(slide_id, by_name)

    def unmatched(self, slide_ids: Collection[str]) -> list[str]:
        """The table's names that are none of these slides'."""
        return [name for name in self._names if name not in slide_ids and _id_of(name) not in slide_ids]


def read_mpp_table(path: Path) -> dict[str, Mpp]:
    """A CSV with the columns ``wsi,mpp`` (TRIDENT's names): slide file name or slide id, µm per pixel.

    Blanks around names and numbers are no part of them. Raises :class:`ManifestError` with the line for
    anything else, and for a slide that is given two resolutions.
    """
    if not path.is_file():
        raise ManifestError(path, "does not exist", "--mpp-csv wants a CSV with the columns wsi,mpp")
    table: dict[str, Mpp] = {}
    of_slide: dict[str, Mpp] = {}
    check_table_size(path, ManifestError)
    try:  # all of it, so that what is wrong is said before anything is done
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
        if not {"wsi", "mpp"} <= set(rows.fieldnames):
            raise ManifestError(path, "lacks the columns wsi,mpp", "name them in the first line")
        for row in rows:
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
