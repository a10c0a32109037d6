"""What a drawn outline encloses when it crosses itself: every place that it winds around, as ASAP fills it.

Winding number and not even-odd: an outline that goes around a place twice encloses it, where even-odd
(``shapely.make_valid``) would leave a hole; the two lobes of a figure eight are both inside.
"""

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import LinearRing, MultiPolygon, Polygon

from wsi_ips.tiling.contour_tissue import crosses_too_often

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
