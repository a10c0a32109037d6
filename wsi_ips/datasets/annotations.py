"""Lesion outlines as ASAP XML, the format of CAMELYON's annotations.

Format: ASAP's XmlRepository; groups as in the README files of CAMELYON16 and 17.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import shapely
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from shapely import MultiPolygon, Polygon

from wsi_ips.errors import AnnotationError
from wsi_ips.files import whole_file

LARGEST_BYTES = 200_000_000
OUTLINES = ("Polygon", "Spline", "Rectangle")
TUMOR_GROUPS = frozenset({"_0", "_1", "Tumor", "metastases", "None"})
HOLE_GROUPS = frozenset({"_2", "Exclusion", "normal"})


@dataclass(frozen=True, slots=True)
class Region:
    """An outline in level-0 pixels, and whether it is tumour or cut out of it."""

    name: str
    polygon: Polygon
    kind: Literal["tumor", "hole"]


def read_asap(path: Path) -> list[Region]:
    """The outlines in document order; dots, point sets and rulers have no area and are left out.

    Points are placed by their ``Order``. Raises :class:`AnnotationError` for a missing or oversized file,
    broken or hostile XML, a group that is neither tumour nor hole, coordinates that are no numbers.
    """
    if not path.is_file():
        raise AnnotationError(path, "no such annotation", "check the path")
    if path.stat().st_size > LARGEST_BYTES:
        raise AnnotationError(path, f"is larger than {LARGEST_BYTES} bytes", "is it an annotation?")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise AnnotationError(path, f"is not XML that can be read ({error})", "export it again") from None
    if root is None:
        raise AnnotationError(path, "is an empty XML file", "export it again")
    regions = []
    for element in root.iter("Annotation"):
        kind = element.get("Type", "")
        if kind in OUTLINES and (region := _region(path, element)) is not None:
            regions.append(region)
    return regions


def lesion_area(path: Path) -> MultiPolygon:
    """Tumour minus what is cut out of it, in level-0 pixels. Raises as :func:`read_asap`."""
    regions = read_asap(path)
    tumor = shapely.union_all([region.polygon for region in regions if region.kind == "tumor"])
    holes = shapely.union_all([region.polygon for region in regions if region.kind == "hole"])
    area = shapely.make_valid(tumor.difference(holes))
    parts = [part for part in getattr(area, "geoms", [area]) if isinstance(part, Polygon) and part.area > 0]
    return MultiPolygon(parts)


def write_asap(path: Path, polygons: Sequence[Polygon]) -> None:
    """Outer rings as group ``_0``, holes as group ``_2`` (CAMELYON16's names), level-0 pixels."""
    rings = [("_0", polygon.exterior) for polygon in polygons]
    rings += [("_2", hole) for polygon in polygons for hole in polygon.interiors]
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "  <Annotations>"]
    for number, (group, ring) in enumerate(rings):
        name = quoteattr(f"Annotation {number}")
        lines.append(f'    <Annotation Name={name} Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">')
        lines.append("      <Coordinates>")
        for order, (x, y) in enumerate(list(ring.coords)[:-1]):
            lines.append(f'        <Coordinate Order="{order}" X="{x:.2f}" Y="{y:.2f}" />')
        lines += ["      </Coordinates>", "    </Annotation>"]
    lines += ["  </Annotations>", "  <AnnotationGroups>"]
    for group, colour in (("_0", "#00FF00"), ("_2", "#FF0000")):
        lines.append(f'    <Group Name="{group}" PartOfGroup="None" Color="{colour}"><Attributes /></Group>')
    lines += ["  </AnnotationGroups>", "</ASAP_Annotations>", ""]
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _region(path: Path, element: Any) -> Region | None:
    name, group = element.get("Name", ""), element.get("PartOfGroup", "None")
    if group not in TUMOR_GROUPS | HOLE_GROUPS:
        known = ", ".join(sorted(TUMOR_GROUPS | HOLE_GROUPS))
        raise AnnotationError(
            path, f"annotation {name!r} is in the unknown group {group!r}", f"known: {known}"
        )
    try:
        points = sorted(
            (int(point.get("Order", "0")), float(point.get("X")), float(point.get("Y")))
            for point in element.iter("Coordinate")
        )
    except (TypeError, ValueError):
        points = [(0, math.nan, math.nan)]
    if not all(math.isfinite(x) and math.isfinite(y) for _, x, y in points):
        raise AnnotationError(
            path, f"annotation {name!r} has coordinates that are no numbers", "export it again"
        )
    if len(points) < 3:
        return None
    # Hand-drawn outlines cross themselves: ASAP fills where the winding number is not zero.
    outline = shapely.make_valid(Polygon([(x, y) for _, x, y in points]))
    parts = [part for part in getattr(outline, "geoms", [outline]) if isinstance(part, Polygon)]
    if not parts:
        return None
    whole = shapely.union_all(parts)
    polygon = whole if isinstance(whole, Polygon) else max(whole.geoms, key=lambda part: part.area)
    return Region(name, polygon, "hole" if group in HOLE_GROUPS else "tumor")
