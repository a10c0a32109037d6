"""Outlines of tissue as GeoJSON: written for QuPath and TRIDENT, and read where somebody else outlined the tissue.

Start with :func:`tissue_contours` and :func:`write_geojson`, or with :class:`ContourFolder` and
:func:`outlined_tissue`. :func:`write_features` and its neighbours are how all GeoJSON of this package is written.

What is written: QuPath 0.4 and later imports it. Coordinates are full-resolution pixels as QuPath counts them; for
a slide with OpenSlide bounds (MIRAX, some Leica files) they count from the bounds' corner, for QuPath shows
nothing else of the slide (its OpenslideImageServer adds ``openslide.bounds-x`` and ``-y`` to every read).

What is read: a FeatureCollection (or a bare list) of Features with a Polygon or MultiPolygon in level-0 pixels,
holes included, one file a slide, as TRIDENT writes them. No features mean no tissue. Properties and ``crs``
(TRIDENT's is a dummy) are ignored.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from wsi_ips.errors import AnnotationError, one_line
from wsi_ips.slides.base import SlideInfo
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.outlines import outlines
from wsi_ips.tiling.tissue import Mask, TissueMask, thumbnail_scale
from wsi_ips.units import LARGEST_COORDINATE, Mpp, Size

logger = logging.getLogger(__name__)

Feature = dict[str, Any]
"""A GeoJSON feature or geometry as JSON."""

LARGEST_FILE_BYTES = 2**26
"""The largest file of outlines that is read."""

OUTSIDE = 0.02
"""Share of the slide's side by which an outline may stick out: outlines are drawn on thumbnails."""

MOST_CROSSINGS = 1000
"""How often an outline may cross itself.

Tissue outlined by hand does so a few times; making a scribble valid takes minutes.
"""

NO_AREAS = ("no geometry", "Point", "MultiPoint", "LineString", "MultiLineString")
"""Kinds of GeoJSON geometry that have no area and are skipped."""

MOST_COLLECTIONS = 8
"""How deep geometry collections may lie within each other."""

_CROSSINGS_AT_ONCE = 1 << 22
"""Crossings of edges and rows of pixels that are worked on at once, to bound memory."""

_PAIRS_AT_ONCE = 1 << 20
"""Pairs of edges that are tested for a crossing at once, to bound memory."""


def tissue_contours(mask: TissueMask) -> list[Polygon]:
    """Outlines of the regions of tissue with their holes, in level-0 pixels, largest first.

    The outlines run along pixel edges and cut corners by half a mask pixel.
    """
    # A frame of background closes outlines at the border. Pixel (0, 0)'s centre lies at (0.5, 0.5).
    rings = [(outline[:, ::-1] - 0.5) * mask.l0_per_px for outline in outlines(np.pad(mask.mask_HW, 1))]
    if not rings:
        return []
    area = shapely.build_area(shapely.MultiLineString([ring for ring in rings if len(ring) >= 4]))
    polygons = area.geoms if isinstance(area, MultiPolygon) else [area]
    return sorted((polygon for polygon in polygons if polygon.area > 0), key=lambda each: -each.area)


def write_geojson(path: Path, polygons: Sequence[Polygon]) -> None:
    """Write outlines of tissue as a FeatureCollection in level-0 pixels.

    Each feature has TRIDENT's ``tissue_id``, QuPath's ``objectType``, and an id that depends on the file's name
    and the region's number only, so that writing again gives the same bytes.
    """
    features = [
        {
            "type": "Feature",
            "id": feature_id(f"{path.stem}/{number}"),
            "geometry": _as_geojson(shapely.set_precision(polygon, 0.01)),
            "properties": {
                "objectType": "annotation",
                "name": f"tissue {number}",
                "classification": {"name": "Tissue", "color": [0, 160, 0]},
                "tissue_id": number,
            },
        }
        for number, polygon in enumerate(polygons)
    ]
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _as_geojson(area: Any) -> Feature:
    """The geometry as GeoJSON. Points are taken out of a polygon all at once."""
    if not isinstance(area, Polygon) or area.has_z:
        geometry: Feature = shapely.geometry.mapping(area)
        return geometry
    return {
        "type": "Polygon",
        "coordinates": [shapely.get_coordinates(ring).tolist() for ring in _rings(area)],
    }


@dataclass(frozen=True, slots=True)
class ContourFolder:
    """A folder with one ``<slide_id>.geojson`` per slide, in it or in its ``contours_geojson``."""

    folder: Path

    def file_of(self, slide_id: str) -> Path:
        """The path of the slide's file, which may not exist."""
        places = (self.folder / below / f"{slide_id}.geojson" for below in ("", "contours_geojson"))
        return next((place for place in places if place.is_file()), self.folder / f"{slide_id}.geojson")

    def polygons(self, slide_id: str, *, l0_size: Size) -> list[Polygon]:
        """The slide's regions of tissue with their holes, in level-0 pixels; an empty list where it has no tissue.

        Features that are no areas (points, lines, no geometry at all) are skipped with a warning that counts them.
        Raises :class:`AnnotationError` for a file that is missing, broken, of another slide, or has nothing but
        such features, and for an outline that crosses itself more than ``MOST_CROSSINGS`` times.
        """
        path = self.file_of(slide_id)
        if not path.is_file():
            raise AnnotationError(
                path, "no such contours", "outline the slide's tissue, or leave the slide out"
            )
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise AnnotationError(
                path, f"is larger than {LARGEST_FILE_BYTES} bytes", "give a file of tissue outlines"
            )
        passed_over: Counter[str] = Counter()
        try:
            polygons = list(_polygons(json.loads(path.read_text(encoding="utf-8-sig")), passed_over))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = one_line(error, most=200)
            raise AnnotationError(path, f"is no GeoJSON of polygons ({reason})", "export it again") from None
        if passed_over:
            what = ", ".join(f"{kind} ({number})" for kind, number in sorted(passed_over.items()))
            logger.warning("%s: %d of its features are no areas and are passed over: %s",
                           path, passed_over.total(), what)  # fmt: skip
            if not polygons:
                raise AnnotationError(
                    path,
                    f"is no GeoJSON of polygons: it outlines no area, only {what}",
                    "outline the slide's tissue",
                )
        for polygon in polygons:
            _check_place(polygon, path, l0_size)
        return polygons


def _check_place(polygon: Polygon, path: Path, l0_size: Size) -> None:
    """Raise :class:`AnnotationError` if the polygon sticks out of the slide."""
    left, top, right, bottom = polygon.bounds
    x_slack, y_slack = (OUTSIDE * side for side in l0_size)
    if left < -x_slack or top < -y_slack or right > l0_size[0] + x_slack or bottom > l0_size[1] + y_slack:
        raise AnnotationError(
            path,
            f"outlines ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), the slide has "
            f"{l0_size[0]}x{l0_size[1]} px",
            "give this slide's outlines, in level-0 pixels",
        )


def _polygons(content: Any, passed_over: Counter[str]) -> Iterator[Polygon]:
    """The polygons of parsed GeoJSON. Features that are no areas are counted in ``passed_over``.

    Raises ``ValueError``, ``TypeError`` or ``KeyError`` for anything that is no such GeoJSON.
    """
    features = content["features"] if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise TypeError("no list of features")
    for feature in features:
        yield from _areas(feature["geometry"], passed_over)


def _areas(geometry: Any, passed_over: Counter[str], *, within: int = 0) -> Iterator[Polygon]:
    """The polygons of one geometry."""
    kind = "no geometry" if geometry is None else geometry["type"]
    if kind in ("Polygon", "MultiPolygon"):
        for rings in [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]:
            found = list(_polygon(rings)) if rings else []
            passed_over.update([] if found else ["an outline without area"])
            yield from found
    elif kind == "GeometryCollection":
        if within >= MOST_COLLECTIONS:
            raise ValueError(f"collections lie more than {MOST_COLLECTIONS} deep within each other")
        for inner in geometry["geometries"]:
            yield from _areas(inner, passed_over, within=within + 1)
    elif kind in NO_AREAS:
        passed_over[kind] += 1
    else:
        raise ValueError(f"{str(kind)[:40]!r} is no kind of geometry")


def _polygon(rings: Any) -> Iterator[Polygon]:
    """The polygon of these rings, or the valid parts of one that crosses itself."""
    outline, *holes = (np.array([point[:2] for point in ring], np.float64) for ring in rings)
    for ring in (outline, *holes):
        if ring.ndim != 2 or ring.shape[1:] != (2,) or len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError("a ring is no list of points")
        if np.abs(ring).max() > LARGEST_COORDINATE:
            raise ValueError(f"a coordinate is beyond {LARGEST_COORDINATE:.0f} pixels")
    polygon = Polygon(outline, holes)
    valid = polygon
    if not polygon.is_valid:
        if crosses_too_often([outline, *holes], most=MOST_CROSSINGS):
            raise ValueError(f"an outline crosses itself more than {MOST_CROSSINGS} times: a scribble")
        valid = shapely.make_valid(polygon)
    yield from (part for part in shapely.get_parts(valid) if isinstance(part, Polygon) and not part.is_empty)


def crosses_too_often(rings: Sequence[NDArray[np.float64]], *, most: int) -> bool:
    """Whether rings cross themselves or each other more than ``most`` times.

    Each ring is an (n, 2) array of points, closed or not. Crossings are counted edge by edge in little memory,
    before anything is allocated for each of them.
    """
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    moved = (starts != ends).any(axis=1)
    edges = shapely.linestrings(np.stack([starts[moved], ends[moved]], axis=1))
    tree = shapely.STRtree(edges)
    at_once = max(1, _PAIRS_AT_ONCE // max(1, len(edges)))
    crossings = 0
    for first in range(0, len(edges), at_once):
        some = edges[first : first + at_once]
        # Each edge meets itself and its two neighbours; each crossing is met from both sides.
        crossings += tree.query(some, predicate="intersects").shape[1] - 3 * len(some)
        if crossings > 2 * most:
            return True
    return False


def outlined_tissue(
    polygons: Sequence[Polygon], *, l0_size: Size, slide_mpp: Mpp, thumbnail_mpp: float
) -> TissueMask:
    """A mask of ``thumbnail_mpp`` µm per pixel that is True where a pixel's centre lies in one of the polygons.

    The polygons are in level-0 pixels, ``l0_size`` is the slide's (width, height), ``slide_mpp`` its µm per pixel.
    """
    l0_per_px = thumbnail_scale(l0_size, slide_mpp=slide_mpp, thumbnail_mpp=thumbnail_mpp)
    mask = np.zeros((ceil(l0_size[1] / l0_per_px), ceil(l0_size[0] / l0_per_px)), np.bool_)
    for polygon in polygons:
        _fill(mask, [np.asarray(ring.coords)[:, :2] / l0_per_px for ring in _rings(polygon)])
    return TissueMask(mask, (l0_per_px, l0_per_px))


def _fill(mask: Mask, rings: Sequence[NDArray[np.float64]]) -> None:
    """Set the pixels whose centres lie within the rings by the even-odd rule, so that a hole's ring is left out.

    Each edge crosses a row of pixel centres at most once; what is right of an odd number of crossings is inside.
    """
    height, width = mask.shape
    everything = np.concatenate(rings)
    left = int(np.clip(math.floor(everything[:, 0].min()), 0, width))
    right = int(np.clip(math.ceil(everything[:, 0].max()) + 1, left, width))
    top = int(np.clip(math.floor(everything[:, 1].min()), 0, height))
    bottom = int(np.clip(math.ceil(everything[:, 1].max()) + 1, top, height))
    crossed = np.zeros((bottom - top, right - left + 1), np.bool_)
    for ring in rings:
        # Two arrays of edges' ends, in parts: each edge may cross every row.
        ends, at_once = np.roll(ring, -1, axis=0), max(1, _CROSSINGS_AT_ONCE // height)
        for part in range(0, len(ring), at_once):
            rows = slice(part, part + at_once)
            _cross(crossed, ring[rows] - (left, top), ends[rows] - (left, top))
    np.logical_xor.accumulate(crossed, axis=1, out=crossed)
    mask[top:bottom, left:right] |= crossed[:, :-1]


def _cross(crossed: Mask, start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    """Toggle, in each row that an edge crosses, the first pixel whose centre is right of the crossing."""
    upper = np.where((start[:, 1] <= end[:, 1])[:, None], start, end)
    lower = np.where((start[:, 1] <= end[:, 1])[:, None], end, start)
    # The rows whose centres (j + 0.5) lie in [upper, lower): an edge's end belongs to its neighbour.
    first, past = (
        np.clip(np.ceil(y - 0.5), 0, len(crossed)).astype(np.int64) for y in (upper[:, 1], lower[:, 1])
    )
    counts = past - first
    edges = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(len(edges)) - np.repeat(counts.cumsum() - counts, counts) + first[edges]
    drop = lower[edges] - upper[edges]
    x = upper[edges, 0] + (rows + 0.5 - upper[edges, 1]) / drop[:, 1] * drop[:, 0]
    columns = np.clip(np.ceil(x - 0.5), 0, crossed.shape[1] - 1).astype(np.int64)
    np.logical_xor.at(crossed, (rows, columns), True)


def _rings(polygon: Polygon) -> Iterable[Any]:
    return (polygon.exterior, *polygon.interiors)


def l0_origin(info: SlideInfo) -> tuple[int, int]:
    """The level-0 point (x, y) that is QuPath's (0, 0)."""
    return (info.bounds.l0_x, info.bounds.l0_y) if info.bounds else (0, 0)


def feature_id(what: str) -> str:
    """A UUID for ``what``, always the same for the same text, so that writing again gives the same bytes."""
    return str(uuid5(NAMESPACE_URL, f"wsi_ips/{what}"))


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Feature:
    """A rectangle as a GeoJSON Polygon geometry."""
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def write_features(path: Path, features: Iterable[Feature]) -> None:
    """Write a FeatureCollection, one feature per line.

    Features are written as they come, for there may be a million.
    """
    # One for all: json.dumps would make one for each.
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            file.write(",\n" if number else "\n")
            file.write(encode(feature))
        file.write("\n]}\n")
