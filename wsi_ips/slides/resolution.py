"""Resolutions that the user knows better than the file."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.slides.folder import slide_id
from wsi_ips.slides.stated_mpp import believable
from wsi_ips.units import Mpp


class SlideMpp:
    """``slide_mpp(slide_id)``: the resolution to use, or None to believe the file.

    A row of the table wins over the value for all slides.
    """

    def __init__(self, for_all: float | None = None, table: Mapping[str, Mpp] | None = None) -> None:
        if for_all is not None and believable(for_all) is None:
            raise ConfigError(
                f"--slide-mpp {for_all} is no resolution of a slide; expected µm per pixel, e.g. 0.25"
            )
        self._for_all = None if for_all is None else Mpp(for_all)
        self._table = dict(table or {})

    def __call__(self, slide_id: str) -> Mpp | None:
        return self._table.get(slide_id, self._for_all)


def read_mpp_table(path: Path) -> dict[str, Mpp]:
    """A CSV with the columns ``wsi,mpp`` (TRIDENT's names): slide file name or slide id, µm per pixel.

    Returns names and slide ids to mpp. Raises :class:`ManifestError` with the line for anything else.
    """
    if not path.is_file():
        raise ManifestError(path, "does not exist", "--mpp-csv wants a CSV with the columns wsi,mpp")
    table: dict[str, Mpp] = {}
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ManifestError(path, "is not text in UTF-8", "save it as CSV in UTF-8") from None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"wsi", "mpp"} <= set(rows.fieldnames or ()):
            raise ManifestError(path, "lacks the columns wsi,mpp", "name them in the first line")
        for row in rows:
            try:
                mpp = float(row["mpp"])
            except (TypeError, ValueError):
                mpp = math.nan
            if believable(mpp) is None:
                raise ManifestError(path, f"line {rows.line_num}: mpp {row['mpp']!r} is no resolution",
                                    "give µm per pixel, e.g. 0.25")  # fmt: skip
            # A name with dots may be a file's or an id's: it is found by both.
            table[row["wsi"]] = table[slide_id(Path(row["wsi"]))] = Mpp(mpp)
    return table
