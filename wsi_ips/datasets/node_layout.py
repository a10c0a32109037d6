"""Where tissue and metastases lie on the grid of a composite lymph node. No pixels and no patches.

Everything is counted in cells of the grid: a cell holds one patch, or glass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely import MultiPolygon, Polygon
from shapely.affinity import rotate, scale, translate

from wsi_ips.datasets.composite_layout import filled
from wsi_ips.datasets.outlines import polygons_of
from wsi_ips.errors import ConfigError

MARGIN = 2
"""Cells of glass around the tissue, and between two pieces of it."""
SUB = 8
"""An outline's share of a cell is counted on so many points each way."""
PLACEMENTS = 60
"""Places and outlines that are tried for one piece of metastasis."""
LARGEST_GROWTH = 3.0
"""An outline may grow to so many times the area of its cells, until enough cells are half covered."""
MOST_CLIPPED = 0.3
"""Share of an outline that may lie outside the tissue, where it is cut off: metastases reach the node's edge."""

Cells = NDArray[np.bool_]
"""(rows, columns) bool."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """tissue_RC, lesion_RC: which cells hold a patch, and which of them metastasis, (rows, columns) bool."""

    tissue_RC: Cells
    lesion_RC: Cells


def lay_out_node(
    tissue: int, lesion: int, outlines: Sequence[Polygon], *, rng: np.random.Generator
) -> NodeLayout:
    """One or two node-shaped pieces of exactly ``tissue`` cells, exactly ``lesion`` of them metastasis.

    Metastasis comes in one to three pieces, each in one of the ``outlines`` (area 1, about the origin), turned,
    perhaps mirrored, and scaled until it covers as many cells as it should; pieces lie apart. Raises
    :class:`ConfigError` where there is no room.
    """
    tissue_RC = node_tissue(tissue, rng)
    if lesion == 0:
        return NodeLayout(tissue_RC, np.zeros_like(tissue_RC))
    most = 3 if lesion >= 12 else 2 if lesion >= 4 else 1
    for pieces in range(int(rng.integers(1, most + 1)), 0, -1):
        counts = 1 + rng.multinomial(lesion - pieces, rng.dirichlet(np.full(pieces, 2.0)))
        lesion_RC = _lesion(tissue_RC, sorted(counts.tolist(), reverse=True), outlines, rng)
        if lesion_RC is not None:
            return NodeLayout(tissue_RC, lesion_RC)
    raise ConfigError(f"no room for a metastasis of {lesion} of {tissue} patches; give a lower lesion_share")


def outlines_of(cells_RC: Cells, *, side_px: int) -> MultiPolygon:
    """The outlines of the cells in level-0 pixels: a polygon per connected region, on the cells' borders."""
    rows, columns = np.nonzero(cells_RC)
    boxes = shapely.box(columns * side_px, rows * side_px, (columns + 1) * side_px, (rows + 1) * side_px)
    return polygons_of(shapely.union_all(boxes).simplify(0))


def node_tissue(cells: int, rng: np.random.Generator) -> Cells:
    """Exactly so many cells in one or two smooth blobs, apart, with glass around them."""
    if rng.integers(2) or cells < 20:
        return np.pad(_blob(cells, rng), MARGIN)
    first = round(cells * rng.uniform(0.55, 0.75))
    parts = [_blob(first, rng), _blob(cells - first, rng)]
    if rng.integers(2):
        parts.reverse()
    # Side by side; the shorter one somewhere along the taller one. Then perhaps one above the other.
    tall = max(len(part) for part in parts)
    placed = []
    for part in parts:
        above = int(rng.integers(tall - len(part) + 1))
        placed.append(np.pad(part, ((above, tall - len(part) - above), (0, 0))))
    gap = np.zeros((tall, MARGIN), np.bool_)
    tissue_RC = np.pad(np.hstack([placed[0], gap, placed[1]]), MARGIN)
    return np.ascontiguousarray(tissue_RC.T) if rng.integers(2) else tissue_RC


def _blob(cells: int, rng: np.random.Generator) -> Cells:
    """Exactly so many connected cells: an ellipse with a wavy edge and a dent (the hilum), in its bounding box."""
    side = 4 * int(np.ceil(np.sqrt(cells))) + 5
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    while True:
        angle = np.arctan2(y, x) - rng.uniform(0, 2 * np.pi)
        aspect = rng.uniform(1.05, 1.35)
        radius = 1 / np.hypot(np.cos(angle) / aspect, np.sin(angle) * aspect)
        for waves in (2, 3, 4, 5):
            radius *= 1 + rng.uniform(0, 0.25 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
        dent = np.angle(np.exp(1j * (angle - rng.choice([-1, 1]) * np.pi / 2)))
        radius *= 1 - rng.uniform(0, 0.4) * np.exp(-((dent / 0.5) ** 2))
        nearest = np.argsort((np.hypot(x, y) / radius).ravel(), kind="stable")[:cells]
        blob = np.zeros(side * side, np.bool_)
        blob[nearest] = True
        blob_RC = blob.reshape(side, side)
        if ndimage.label(blob_RC)[1] == 1:
            rows, columns = np.nonzero(blob_RC)
            return blob_RC[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _lesion(
    tissue_RC: Cells, counts: Sequence[int], outlines: Sequence[Polygon], rng: np.random.Generator
) -> Cells | None:
    """Pieces of so many cells each, a cell or more apart; None where one of them finds no room."""
    lesion_RC, free_RC = np.zeros_like(tissue_RC), tissue_RC.copy()
    for count in counts:
        piece_RC = _piece(free_RC, count, outlines, rng)
        if piece_RC is None:
            return None
        lesion_RC |= piece_RC
        free_RC &= ~ndimage.binary_dilation(piece_RC, np.ones((3, 3)))
    return lesion_RC


def _piece(free_RC: Cells, count: int, outlines: Sequence[Polygon], rng: np.random.Generator) -> Cells | None:
    """The ``count`` free cells that an outline covers most, each by half at least."""
    rows, columns = np.nonzero(free_RC)
    if len(rows) < count:
        return None
    for _ in range(PLACEMENTS):
        outline = rotate(outlines[int(rng.integers(len(outlines)))], rng.uniform(0, 360), origin=(0, 0))
        mirrored = -1 if rng.integers(2) else 1
        at = int(rng.integers(len(rows)))
        x, y = columns[at] + rng.uniform(), rows[at] + rng.uniform()
        area = float(count)
        while area <= LARGEST_GROWTH * count + 1:
            placed = translate(scale(outline, mirrored * area**0.5, area**0.5, origin=(0, 0)), x, y)
            covered_RC = np.where(free_RC, _coverage(placed, free_RC.shape), 0)
            if (covered_RC >= 0.5).sum() >= count:
                if covered_RC.sum() < (1 - MOST_CLIPPED) * area and count > 1:
                    break  # too much of it lies outside
                most = np.argsort(-covered_RC.ravel(), kind="stable")[:count]
                piece = np.zeros(covered_RC.size, np.bool_)
                piece[most] = True
                return piece.reshape(free_RC.shape)
            area *= 1.08
    return None


def _coverage(outline: Polygon, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Which share of each cell lies inside the outline, (rows, columns)."""
    rows, columns = shape
    inside = filled((columns * SUB, rows * SUB), scale(outline, SUB, SUB, origin=(0, 0)))
    return np.asarray(inside.reshape(rows, SUB, columns, SUB).mean(axis=(1, 3)))
