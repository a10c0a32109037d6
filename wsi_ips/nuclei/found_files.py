"""Objects that were found in a slide, written as CSV and as GeoJSON that QuPath imports as detections."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import shapely
from shapely import Polygon

from wsi_ips.heatmaps.display_scale import CLASS_COLOURS
from wsi_ips.nuclei.detect import FoundObjects, box_polygons
from wsi_ips.nuclei.found_table import COLUMNS, OUTLINE
from wsi_ips.slides.base import SlideInfo
from wsi_ips.storage.files import whole_table
from wsi_ips.tiling.contours import Feature, feature_id, l0_origin, rectangle, write_features

DECIMALS = 2
"""Decimals of coordinates."""
Shape = Literal["box", "point", "outline"]
"""How an object is drawn in GeoJSON."""


def write_found_csv(path: Path, found: FoundObjects, *, classes: Sequence[str]) -> None:
    """Write one row per object: class, score, centre and box in level-0 pixels of the file.

    If the detector finds outlines, the last column has the outline in the same pixels as WKT.
    """
    outlined = found.l0_outlines_N is not None
    with whole_table(path) as writer:
        writer.writerow([*COLUMNS, OUTLINE] if outlined else COLUMNS)
        for name, score, box, outline in _rows(found, classes):
            left, top, right, bottom = box
            centre = (round((left + right) / 2, DECIMALS), round((top + bottom) / 2, DECIMALS))
            row = [name, round(score, 4), *centre, *(round(side, DECIMALS) for side in box)]
            writer.writerow([*row, shapely.to_wkt(outline, rounding_precision=DECIMALS)] if outlined else row)


def write_found_geojson(
    path: Path, found: FoundObjects, info: SlideInfo, *, slide_id: str, classes: Sequence[str], shape: Shape
) -> None:
    """Write QuPath detections with their score, as outlines, boxes or points.

    If the slide has OpenSlide bounds, coordinates count from their corner, as QuPath shows such slides.
    """
    write_features(path, _features(found, l0_origin(info), slide_id, classes, shape))


def _features(
    found: FoundObjects, origin: tuple[int, int], slide_id: str, classes: Sequence[str], shape: Shape
) -> Iterator[Feature]:
    colours = {name: list(CLASS_COLOURS[place % len(CLASS_COLOURS)]) for place, name in enumerate(classes)}
    for number, (name, score, box, outline) in enumerate(_rows(found, classes)):
        yield {
            "type": "Feature",
            "id": feature_id(f"{slide_id}/object/{number}"),
            "geometry": _geometry(box, outline, origin, shape),
            "properties": {
                "objectType": "detection",
                # QuPath refuses a file in which a class has a name and no colour.
                "classification": {"name": name, "color": colours[name]},
                "measurements": {"Detection score": round(score, 4)},
            },
        }


def _geometry(box: list[float], outline: Polygon, origin: tuple[int, int], shape: Shape) -> Feature:
    if shape == "outline":
        ring = (shapely.get_coordinates(outline) - origin).round(DECIMALS).tolist()
        return {"type": "Polygon", "coordinates": [ring]}
    x0, y0, x1, y1 = (round(side - start, DECIMALS) for side, start in zip(box, origin * 2, strict=True))
    if shape == "point":
        centre = [round((x0 + x1) / 2, DECIMALS), round((y0 + y1) / 2, DECIMALS)]
        return {"type": "Point", "coordinates": centre}
    return rectangle(x0, y0, x1, y1)


def _rows(found: FoundObjects, classes: Sequence[str]) -> Iterator[tuple[str, float, list[float], Polygon]]:
    outlines = box_polygons(found.l0_boxes_N4) if found.l0_outlines_N is None else found.l0_outlines_N
    columns = zip(
        found.classes_N.tolist(), found.scores_N.tolist(), found.l0_boxes_N4.tolist(), outlines, strict=True
    )
    for place, score, box, outline in columns:
        yield classes[place], score, box, outline
