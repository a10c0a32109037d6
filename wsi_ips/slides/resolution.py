"""Resolutions that the user knows better than the file."""

import csv
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.files import check_table_size
from wsi_ips.slides.folder import SLIDE_SUFFIXES, slide_id
from wsi_ips.slides.stated_mpp import believable
from wsi_ips.units import Mpp

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
