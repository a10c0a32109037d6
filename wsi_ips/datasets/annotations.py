"""Lesions of a slide, as outlines and as pixels.

Outlines of lesions as ASAP XML, the format of CAMELYON's annotations.

Start with :func:`read_asap`, :func:`lesion_area` or :func:`write_asap`.

The format is that of ASAP's XmlRepository; groups are those of the README files of CAMELYON16 and 17. An outline
that crosses itself encloses every place that it winds around, as ASAP fills it (:func:`enclosed`): an outline that
goes around a place twice encloses it, where the even-odd rule (``shapely.make_valid``) would leave a hole, and
both lobes of a figure eight are inside.

Lesions as pixels: drawn from outlines (:func:`lesion_mask`), or from mask files (:func:`read_mask`).

ASAP's rule (AnnotationToMask): a mask pixel is its corner at the whole level-0 point (x, y). It is inside an
outline if the outline's winding number there is not zero and it lies strictly within the outline's bounding box.
Each outline is filled by itself, tumour first, then what is cut out of it. A coarser level takes every 2nd, 4th,
... pixel of level 0.

Shape suffixes: N points of an outline, P other points, N points, E edges.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import check_size, whole_file
from wsi_ips.tiling.contours import crosses_too_often
from wsi_ips.units import LARGEST_COORDINATE, Size

_PAIRS_AT_ONCE = 4_000_000
"""Points times edges that are compared at once: some hundred megabytes."""

MOST_CROSSINGS = 10_000
"""How often an outline may cross itself.

Lesions do so up to fifty times; a scribble of a thousand points takes minutes.
"""

LARGEST_BYTES = 64_000_000
"""The largest file that is read. Parsing takes some ten times as much; CAMELYON's largest are a tenth of it."""

OVERHANG = 0.02
"""Share of a slide's side by which an outline may stick out: hands slip over the edge, and scans were cropped."""

Kind = Literal["tumor", "hole"]
"""Whether an outline is tumour, or cut out of it."""

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
"""Types of annotations that have an area."""

WITHOUT_AREA = ("Dot", "PointSet", "Measurement", "None")
"""Types of annotations that have no area."""


@dataclass(frozen=True, slots=True)
class Region:
    """An outline in level-0 pixels that is tumour or cut out of it.

    ``outline`` is as it was drawn and may cross itself; ``area`` is what it encloses by ASAP's rule.
    """

    name: str
    group: str
    kind: Kind
    outline: LinearRing
    area: MultiPolygon


def read_asap(path: Path, *, groups: Mapping[str, Kind] = GROUPS) -> list[Region]:
    """Read the outlines of a file in document order; dots, point sets and rulers have no area and are left out.

    The file is read as ASAP reads it: points are ordered by their ``Order``, outlines are closed, the root element
    may be missing, and a group has to be defined in the file. A group that ``groups`` does not name counts as its
    parent.

    Raises :class:`AnnotationError` for a file that is missing or too large, broken or hostile XML, XML that is not
    ASAP's, a group that is undefined or neither tumour nor hole, coordinates that are no numbers, and an outline
    that crosses itself too often.
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


def outlines_in(folder: Path) -> dict[str, Path]:
    """The files ``<slide_id>.xml`` of a folder by the id in small letters, since older releases of CAMELYON write
    ``Tumor_001.xml`` for ``tumor_001.tif``.

    Raises :class:`AnnotationError` if the names of two files differ in capitals only: nobody knows which is meant.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".xml" and (first := found.setdefault(path.stem.lower(), path)) != path:
            raise AnnotationError(
                folder, f"holds {first.name} and {path.name}, outlines of the same slide", "keep one of them"
            )
    return found


def lesion_area(path: Path, *, l0_size: Size | None = None) -> MultiPolygon:
    """The area of tumour in a file of outlines, in level-0 pixels: one polygon per connected lesion.

    With ``l0_size``, outlines outside the slide are refused (:func:`check_inside`). Raises
    :class:`AnnotationError` for a file that :func:`read_asap` refuses, and for such outlines.
    """
    regions = read_asap(path)
    if l0_size is not None:
        check_inside(path, regions, l0_size)
    return area_of(regions)


def area_of(regions: Sequence[Region]) -> MultiPolygon:
    """Tumour minus what is cut out of it, in level-0 pixels: one polygon per connected lesion."""
    tumor = shapely.union_all([region.area for region in regions if region.kind == "tumor"])
    holes = shapely.union_all([region.area for region in regions if region.kind == "hole"])
    return polygons_of(tumor.difference(holes))


def check_inside(path: Path, regions: Sequence[Region], l0_size: Size) -> None:
    """Raise :class:`AnnotationError` for an outline outside its slide, for it is another slide's.

    ``l0_size`` is the slide's (width, height). Sticking out by 2 % of the width or height (``OVERHANG``) is
    allowed, lying completely outside is not.
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
                "give this slide's annotation, in level-0 pixels",
            )


def write_asap(path: Path, polygons: Sequence[Polygon]) -> None:
    """Write polygons in level-0 pixels as ASAP XML.

    Outer rings are group ``_0``, holes group ``_2`` (CAMELYON16's names).
    """
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
    check_size(path, AnnotationError, most=LARGEST_BYTES, fix="give an ASAP annotation")
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
    """{group: the group that it is part of, or "None"} for every group that the file defines."""
    elements = root.iterfind("AnnotationGroups/Group")
    parents = {element.get("Name", ""): element.get("PartOfGroup", "None") for element in elements}
    for group, parent in parents.items():
        if parent != "None" and parent not in parents:
            raise AnnotationError(
                path, f"group {group!r} is part of {parent!r}, which is not defined", "export it again"
            )
    return parents


def _region(
    path: Path, element: Any, parents: Mapping[str, str], groups: Mapping[str, Kind]
) -> Region | None:
    name, group = element.get("Name", ""), element.get("PartOfGroup", "")
    form = element.get("Type", "")
    if form not in OUTLINES + WITHOUT_AREA:
        raise AnnotationError(
            path, f"annotation {name!r} has the unknown type {form!r}", "export it from ASAP"
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


def _points(path: Path, name: str, element: Any) -> NDArray[np.float64]:
    """Points (N, 2) in the order of their ``Order``, or in document order if the file has none at all."""
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


def enclosed(outline: LinearRing) -> MultiPolygon:
    """The valid area in which an outline's winding number is not zero; empty for an outline without area.

    Each part is connected; holes are places that the outline runs around without winding around them. Raises
    ``ValueError`` for an outline that crosses itself more than ``MOST_CROSSINGS`` times.
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
    """The polygons in any geometry. Lines and points, which have no area, are left out."""
    parts = shapely.get_parts(shapely.get_parts(area))  # twice: a collection may hold multipolygons
    return MultiPolygon([part for part in parts if isinstance(part, Polygon) and part.area > 0])


def winding_numbers(points_P2: NDArray[np.float64], ring_N2: NDArray[np.float64]) -> NDArray[np.int64]:
    """How often a closed ring winds around each point, (P,) int64.

    ``points_P2`` and ``ring_N2`` are (x, y); the ring's first point is repeated at its end. Upward edges with the
    point on their left count 1, downward edges with it on their right -1 (Sunday 2001); only its upper end belongs
    to an edge.
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


Mask = NDArray[np.bool_]
"""(height, width) bool."""

MOST_PIXELS = 1 << 27
"""The largest level of a mask that is read; it takes ten bytes a pixel.

CAMELYON's level 4 has up to 85 million.
"""
STORED_TILE_PX = 512
"""Side of a stored tile, to which slides are padded."""
TUMOR, EXCLUDED = 1, 2
"""Values of tumour and of excluded pixels in a mask file."""

_CELLS_AT_ONCE = 1 << 22
"""Cells that are filled at once, to bound memory."""


@dataclass(frozen=True, slots=True)
class StoredMask:
    """A level of a mask file. ``excluded`` is neither tumour nor known to be free of it."""

    tumor: Mask
    excluded: Mask


def lesion_mask(regions: Sequence[Region], *, downsample: float, size: Size) -> Mask:
    """Draw regions as a mask, (height, width) bool for ``size`` (width, height).

    Pixel (x, y) is the level-0 point (x * ``downsample``, y * ``downsample``); if that is a power of two, the
    result is ASAP's own mask at that level. Outlines may lie partly or completely outside.
    """
    mask = np.zeros((size[1], size[0]), np.bool_)
    for kind in ("tumor", "hole"):
        for region in regions:
            if region.kind == kind:
                _fill(mask, region.outline, downsample, value=kind == "tumor")
    return mask


def read_mask(path: Path, *, level: int, size: Size | None = None, tumor_value: int = TUMOR) -> StoredMask:
    """Read a level of a mask file: 0 nothing, 1 tumour, 2 excluded, as in the open-data bucket.

    ``tumor_value`` is 255 in the official evaluation's masks. ``size`` is the slide's (width, height) at this
    level. Slides are padded to whole tiles at every level and masks are not, so the mask is cut, or filled up with
    nothing, to that size.

    Raises :class:`AnnotationError` for a level that does not exist or is larger than ``MOST_PIXELS``, for a size
    that differs by more than 2 % and a tile, and for any other value; and the errors of :func:`open_slide` and of
    reading for a file that is no slide.
    """
    with open_slide(path) as file:
        levels = file.info.levels
        if not 0 <= level < len(levels):
            raise AnnotationError(path, f"has no level {level}", f"it has levels 0 to {len(levels) - 1}")
        width, height = levels[level].size
        if width * height > MOST_PIXELS:
            raise AnnotationError(path, f"level {level} has {width * height} pixels", "read a coarser level")
        if size is not None:
            _check_size(path, (width, height), size)
        # The whole level at once: a corner elsewhere would fall between pixels where levels are not exact halves.
        pixels = file.read((0, 0), level=level, size_px=(width, height))
    values = pixels[..., 0]
    known = np.zeros(256, np.bool_)
    known[[0, tumor_value, EXCLUDED]] = True
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    strange = [int(value) for value in present if not known[value]]
    if strange or (pixels[..., 1:] != values[..., None]).any():
        what = f"holds the value {strange[0]}" if strange else "has colours"
        raise AnnotationError(path, what, f"a mask has 0, {tumor_value} for tumour, {EXCLUDED} for excluded")
    tumor, excluded = values == tumor_value, values == EXCLUDED
    return StoredMask(_of_size(tumor, size), _of_size(excluded, size))


def _check_size(path: Path, found: Size, wanted: Size) -> None:
    for have, want in zip(found, wanted, strict=True):
        if abs(have - want) > max(0.02 * want, STORED_TILE_PX - 1):
            raise AnnotationError(
                path,
                f"is {found[0]}x{found[1]} px where its slide is {wanted[0]}x{wanted[1]}",
                "give this slide's mask",
            )


def _of_size(mask: Mask, size: Size | None) -> Mask:
    if size is None:
        return mask
    fitted = np.zeros((size[1], size[0]), np.bool_)
    part = mask[: size[1], : size[0]]
    fitted[: part.shape[0], : part.shape[1]] = part
    return fitted


def _fill(mask: Mask, outline: LinearRing, downsample: float, *, value: bool) -> None:
    """Set the pixels inside an outline, some rows at a time, so that memory does not grow with the lesion."""
    edges_E5 = _edges(outline)
    left, top, right, bottom = (bound / downsample for bound in outline.bounds)
    # Strictly within the bounding box.
    cols = range(max(0, int(np.floor(left)) + 1), min(mask.shape[1], int(np.ceil(right))))
    rows = range(max(0, int(np.floor(top)) + 1), min(mask.shape[0], int(np.ceil(bottom))))
    if not len(cols) or not len(edges_E5):
        return
    at_once = max(1, _CELLS_AT_ONCE // max(len(cols), len(edges_E5)))
    for start in range(rows.start, rows.stop, at_once):
        band = range(start, min(start + at_once, rows.stop))
        inside = _winding(edges_E5, band, cols, downsample) != 0
        mask[band.start : band.stop, cols.start : cols.stop][inside] = value


def _edges(outline: LinearRing) -> NDArray[np.float64]:
    """Edges of an outline, (E, 5): x, y of the upper end, x, y of the lower end, direction (1 where y grows along
    it).

    Level edges, which cross no row, are left out. Edges run from their upper end, so that an edge drawn back and
    forth is crossed at exactly the same point and cancels.
    """
    points_N2 = np.asarray(outline.coords, np.float64)
    start, end = points_N2[:-1], points_N2[1:]
    down = end[:, 1:] > start[:, 1:]
    upper, lower = np.where(down, start, end), np.where(down, end, start)
    edges_E5 = np.hstack([upper, lower, np.where(down, 1.0, -1.0)])
    return np.asarray(edges_E5[upper[:, 1] != lower[:, 1]])


def _winding(edges_E5: NDArray[np.float64], rows: range, cols: range, downsample: float) -> NDArray[np.int32]:
    """Winding number at each pixel of some rows and columns, (rows, cols) int32.

    An edge adds its direction to all pixels left of where it crosses their row; only its upper end belongs to it.
    """
    first, last = np.clip(np.ceil(edges_E5[:, [1, 3]] / downsample), rows.start, rows.stop).astype(np.int64).T
    crossings = last - first
    edge = np.repeat(np.arange(len(edges_E5)), crossings)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings) + first[edge]
    x0, y0, x1, y1, direction = edges_E5[edge].T
    crossed_at = x0 + (row * downsample - y0) * (x1 - x0) / (y1 - y0)
    end = np.clip(np.ceil(crossed_at / downsample), cols.start, cols.stop).astype(np.int64) - cols.start
    # Differences along the row, summed up at the end: one cell per crossing and not one per pixel.
    steps = np.zeros((len(rows), len(cols) + 1), np.int32)
    np.add.at(steps, (row - rows.start, np.zeros_like(end)), direction.astype(np.int32))
    np.subtract.at(steps, (row - rows.start, end), direction.astype(np.int32))
    return np.cumsum(steps, axis=1, dtype=np.int32)[:, :-1]
