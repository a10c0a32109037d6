"""What a drawn outline encloses when it crosses itself: every place that it winds around, as ASAP fills it.

Winding number and not even-odd: an outline that goes around a place twice encloses it, where even-odd
(``shapely.make_valid``) would leave a hole; the two lobes of a figure eight are both inside.

Lesion outlines as ASAP XML, the format of CAMELYON's annotations.

Format: ASAP's XmlRepository; groups as in the README files of CAMELYON16 and 17.

Whether one slide goes by two ids: by its place in the file system, and by its contents.
"""

import filecmp
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from xml.etree.ElementTree import Element
from xml.parsers.expat import errors as expat
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from numpy.typing import NDArray
from shapely import LinearRing, MultiPolygon, Polygon

from wsi_ips.errors import AnnotationError
from wsi_ips.storage.files import check_size, whole_file
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.tiling.contours import crosses_too_often
from wsi_ips.units import LARGEST_COORDINATE, Size

_PAIRS_AT_ONCE = 4_000_000
"""Points times edges whose sides are compared at once: some hundred megabytes."""


MOST_CROSSINGS = 10_000
"""Real lesions meet themselves up to fifty times; a scribble of a thousand random points would take minutes."""


def enclosed(outline: LinearRing) -> MultiPolygon:
    """The area whose winding number is not zero, valid; empty for an outline without area.

    Each part is connected, and holes are those places that the outline runs around without winding around.
    Raises ``ValueError`` for an outline that crosses itself more than ``MOST_CROSSINGS`` times.
    """
    simple = Polygon(outline)
    if simple.is_valid:
        return MultiPolygon([simple] if simple.area > 0 else [])
    if crosses_too_often([np.asarray(outline.coords)], most=MOST_CROSSINGS):
        raise ValueError(f"crosses itself more than {MOST_CROSSINGS} times")
    # The union of the line with itself cuts it where it crosses itself, and drops what is drawn twice.
    pieces = shapely.union_all([shapely.LineString(outline.coords)])
    parts = shapely.get_parts(shapely.polygonize(shapely.get_parts(pieces)))
    parts = parts[shapely.area(parts) > 0]
    if not len(parts):
        return MultiPolygon()
    inside = winding_numbers(
        shapely.get_coordinates(shapely.point_on_surface(parts)), np.asarray(outline.coords)
    )
    return polygons_of(shapely.union_all(parts[inside != 0]))


def polygons_of(area: shapely.Geometry) -> MultiPolygon:
    """The polygons in any geometry; lines and points, which have no area, are left out."""
    parts = shapely.get_parts(shapely.get_parts(area))  # twice: a collection may hold multipolygons
    return MultiPolygon([part for part in parts if isinstance(part, Polygon) and part.area > 0])


def winding_numbers(points_P2: NDArray[np.float64], ring_N2: NDArray[np.float64]) -> NDArray[np.int64]:
    """How often a closed ring (first point repeated at the end) winds around each point, (P,).

    Upward edges with the point on their left count 1, downward edges with it on their right -1 (Sunday 2001); an
    edge owns its upper end only.
    """
    (x0, y0), (x1, y1) = ring_N2[:-1].T, ring_N2[1:].T
    winding = np.zeros(len(points_P2), np.int64)
    at_once = max(1, _PAIRS_AT_ONCE // len(x0))
    for start in range(0, len(points_P2), at_once):
        x, y = points_P2[start : start + at_once].T[..., None]
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        up = (y0 <= y) & (y1 > y) & (side > 0)
        down = (y0 > y) & (y1 <= y) & (side < 0)
        winding[start : start + at_once] = up.sum(axis=1) - down.sum(axis=1)
    return winding


LARGEST_BYTES = 64_000_000
"""Parsed it takes some ten times that; CAMELYON's largest are a tenth of it."""
OVERHANG = 0.02
"""Share of a slide's side by which an outline may stick out: hands slip over the edge, and scans were cropped."""

Kind = Literal["tumor", "hole"]
GROUPS: Mapping[str, Kind] = MappingProxyType(
    {
        "_0": "tumor",
        "_1": "tumor",
        "Tumor": "tumor",
        "metastases": "tumor",
        "None": "tumor",
        "_2": "hole",
        "Exclusion": "hole",
        "normal": "hole",
    }
)
"""What an outline of a group is: names of CAMELYON16, of CAMELYON17, and of other pipelines' CAMELYON16."""

OUTLINES = ("Polygon", "Spline", "Rectangle")
WITHOUT_AREA = ("Dot", "PointSet", "Measurement", "None")


@dataclass(frozen=True, slots=True)
class Region:
    """An outline in level-0 pixels, and whether it is tumour or cut out of it.

    ``outline`` is as drawn and may cross itself; ``area`` is what it encloses by ASAP's rule.
    """

    name: str
    group: str
    kind: Kind
    outline: LinearRing
    area: MultiPolygon


def read_asap(path: Path, *, groups: Mapping[str, Kind] = GROUPS) -> list[Region]:
    """The outlines in document order; dots, point sets and rulers have no area and are left out.

    As ASAP reads it: points are placed by their ``Order``, outlines are closed, the root element may be absent,
    and a group has to be defined in the file. A group that ``groups`` does not name counts as its parent.
    Raises :class:`AnnotationError` for a missing or oversized file, broken or hostile XML, XML that is not
    ASAP's, an undefined group or one that is neither tumour nor hole, coordinates that are no numbers,
    a scribble.
    """
    root = _parse(path)
    annotations = root.find("Annotations")
    if annotations is None:
        raise AnnotationError(path, "is no ASAP annotation: it has no <Annotations>", "export it from ASAP")
    parents = _parents(path, root)
    regions = []
    for element in annotations.iterfind("Annotation"):
        region = _region(path, element, parents, groups)
        if region is not None:
            regions.append(region)
    return regions


def area_of(regions: Sequence[Region]) -> MultiPolygon:
    """Tumour minus what is cut out of it, in level-0 pixels: a polygon per connected lesion."""
    tumor = shapely.union_all([region.area for region in regions if region.kind == "tumor"])
    holes = shapely.union_all([region.area for region in regions if region.kind == "hole"])
    return polygons_of(tumor.difference(holes))


def lesion_area(path: Path, *, l0_size: Size | None = None) -> MultiPolygon:
    """:func:`area_of` a file; with ``l0_size``, :func:`check_inside` too. Raises as :func:`read_asap`."""
    regions = read_asap(path)
    if l0_size is not None:
        check_inside(path, regions, l0_size)
    return area_of(regions)


def check_inside(path: Path, regions: Sequence[Region], l0_size: Size) -> None:
    """Raise :class:`AnnotationError` for an outline that lies outside its slide: it is another slide's.

    Sticking out by 2 % of the slide's width or height (``OVERHANG``) is let pass, being wholly outside is not.
    """
    width, height = l0_size
    for region in regions:
        left, top, right, bottom = region.outline.bounds
        beyond = max(-left / width, -top / height, (right - width) / width, (bottom - height) / height)
        wholly = right <= 0 or bottom <= 0 or left >= width or top >= height
        if wholly or beyond > OVERHANG:
            raise AnnotationError(
                path,
                f"annotation {region.name!r} spans ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), "
                f"outside its slide of {width}x{height} px",
                "is it another slide's, or drawn on another level?",
            )


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


def _parse(path: Path) -> Any:
    """The element that has Annotations and AnnotationGroups as children."""
    if not path.is_file():
        raise AnnotationError(path, "no such annotation", "check the path")
    check_size(path, AnnotationError, most=LARGEST_BYTES, mend="is it an annotation?")
    text = path.read_bytes()
    try:
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            if error.code != expat.codes[expat.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]:
                raise
            # Without its root element the file is two trees one after the other.
            root = ElementTree.fromstring(b"<ASAP_Annotations>" + _body(text) + b"</ASAP_Annotations>")
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(path, f"is not XML that can be read ({error})", "export it again") from None
    if root.tag == "Annotations":
        document = Element("ASAP_Annotations")
        document.append(root)
        return document
    return root


def _body(text: bytes) -> bytes:
    return re.sub(rb"\A(\xef\xbb\xbf)?\s*<\?xml[^>]*\?>", b"", text)


def _parents(path: Path, root: Any) -> dict[str, str]:
    """{group: the group that it is part of, or "None"}, for every group that the file defines."""
    elements = root.iterfind("AnnotationGroups/Group")
    parents = {element.get("Name", ""): element.get("PartOfGroup", "None") for element in elements}
    for group, parent in parents.items():
        if parent != "None" and parent not in parents:
            raise AnnotationError(
                path, f"group {group!r} is part of {parent!r}, which is not defined", "export it again"
            )
    return parents


def _kind(path: Path, name: str, group: str, parents: Mapping[str, str], groups: Mapping[str, Kind]) -> Kind:
    if group != "None" and group not in parents:
        raise AnnotationError(
            path,
            f"annotation {name!r} is in the group {group!r}, which is not defined",
            "ASAP refuses such a file too; add the group to <AnnotationGroups>",
        )
    at, passed = group, set[str]()
    while at not in groups and at not in passed:
        passed.add(at)
        at = parents.get(at, "None")
        if at == "None":  # the table's None is for outlines in no group, not for groups in no group
            break
    if at not in groups or (at == "None" and group != "None"):
        known = ", ".join(groups)
        raise AnnotationError(
            path, f"annotation {name!r} is in the unknown group {group!r}", f"known: {known}"
        )
    return groups[at]


def _region(
    path: Path, element: Any, parents: Mapping[str, str], groups: Mapping[str, Kind]
) -> Region | None:
    name, group = element.get("Name", ""), element.get("PartOfGroup", "")
    form = element.get("Type", "")
    if form not in OUTLINES + WITHOUT_AREA:
        raise AnnotationError(
            path, f"annotation {name!r} has the unknown type {form!r}", "is it an ASAP annotation?"
        )
    if form in WITHOUT_AREA:
        return None
    kind = _kind(path, name, group, parents, groups)
    points_N2 = _points(path, name, element)
    if len(points_N2) > 1 and (points_N2[0] == points_N2[-1]).all():
        points_N2 = points_N2[:-1]  # outlines are closed anyway
    if len(points_N2) < 3:
        return None
    outline = LinearRing(points_N2)
    try:
        area = enclosed(outline)
    except ValueError as error:
        raise AnnotationError(path, f"annotation {name!r} {error}", "draw it again") from None
    return None if area.is_empty else Region(name, group, kind, outline, area)


def _points(path: Path, name: str, element: Any) -> NDArray[np.float64]:
    """(N, 2) in the order of ``Order``; a file that has none at all means the document's."""
    coordinates = element.findall("Coordinates/Coordinate")
    numbered = any(point.get("Order") is not None for point in coordinates)
    try:
        points = [
            (int(point.get("Order")) if numbered else place, float(point.get("X")), float(point.get("Y")))
            for place, point in enumerate(coordinates)
        ]
    except (TypeError, ValueError):
        points = [(0, np.nan, np.nan)]
    points_N2 = np.array([(x, y) for _, x, y in sorted(points)], np.float64).reshape(-1, 2)
    if not (np.abs(points_N2) < LARGEST_COORDINATE).all():
        raise AnnotationError(
            path, f"annotation {name!r} has coordinates that are no numbers of pixels", "export it again"
        )
    if len({order for order, _, _ in points}) != len(points):
        raise AnnotationError(
            path, f"annotation {name!r} has two points in one place of its order", "export it again"
        )
    return points_N2


def same_slides(slides: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """(id, id, how that is known) of slides that are the same, in the order of ``slides``.

    Links are followed. Of files of the same length the samples of a fingerprint are compared, and where these are
    the same, all bytes. Of folders (Zarr, DICOM) the place alone is compared: their files' names and headers say
    too little.
    """
    first_at: dict[Path, str] = {}
    by_length: dict[int, list[str]] = {}
    for slide_id, path in slides.items():
        place = path.resolve()
        if place in first_at:
            yield first_at[place], slide_id, f"both are {place}"
            continue
        first_at[place] = slide_id
        if place.is_file() and (length := place.stat().st_size):
            by_length.setdefault(length, []).append(slide_id)
    for ids in by_length.values():
        known = {slide_id: files_fingerprint([slides[slide_id]]) for slide_id in ids} if len(ids) > 1 else {}
        for one, other in combinations(known, 2):
            if known[one] == known[other] and filecmp.cmp(slides[one], slides[other], shallow=False):
                yield one, other, f"{slides[one]} and {slides[other]} have the same contents"
