"""Objects that were found in a slide, as files: CSV, and GeoJSON that QuPath imports as detections."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from wsi_ips.files import whole_file
from wsi_ips.inference.detect import FoundObjects
from wsi_ips.slides.base import SlideInfo

COLUMNS = ("class", "score", "l0_x", "l0_y", "l0_left", "l0_top", "l0_right", "l0_bottom")
DECIMALS = 2
Shape = Literal["box", "point"]


def write_found_csv(path: Path, found: FoundObjects, *, classes: Sequence[str]) -> None:
    """A row an object: its class, score, centre and box in level-0 pixels of the file."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, score, box in _rows(found, classes):
            left, top, right, bottom = box
            centre = (round((left + right) / 2, DECIMALS), round((top + bottom) / 2, DECIMALS))
            writer.writerow([name, round(score, 4), *centre, *(round(side, DECIMALS) for side in box)])


def write_found_geojson(
    path: Path, found: FoundObjects, info: SlideInfo, *, slide_id: str, classes: Sequence[str], shape: Shape
) -> None:
    """QuPath detections with their score, as boxes or as points.

    Counted from the corner of OpenSlide's bounds, where the slide has any, as QuPath shows such slides.
    """
    l0_x, l0_y = (info.bounds.l0_x, info.bounds.l0_y) if info.bounds else (0, 0)
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (name, score, box) in enumerate(_rows(found, classes)):
            x0, y0, x1, y1 = (
                round(side - start, DECIMALS) for side, start in zip(box, (l0_x, l0_y) * 2, strict=True)
            )
            feature = {
                "type": "Feature",
                "id": str(uuid5(NAMESPACE_URL, f"wsi_ips/{slide_id}/object/{number}")),
                "geometry": _geometry(x0, y0, x1, y1, shape),
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": name},
                    "measurements": {"Detection score": round(score, 4)},
                },
            }
            file.write(",\n" if number else "\n")
            file.write(encode(feature))
        file.write("\n]}\n")


def _geometry(x0: float, y0: float, x1: float, y1: float, shape: Shape) -> dict[str, Any]:
    if shape == "point":
        centre = [round((x0 + x1) / 2, DECIMALS), round((y0 + y1) / 2, DECIMALS)]
        return {"type": "Point", "coordinates": centre}
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def _rows(found: FoundObjects, classes: Sequence[str]) -> Iterator[tuple[str, float, list[float]]]:
    columns = zip(found.classes_N.tolist(), found.scores_N.tolist(), found.l0_boxes_N4.tolist(), strict=True)
    for place, score, box in columns:
        yield classes[place], score, box
