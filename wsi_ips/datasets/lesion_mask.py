"""Lesions as pixels: drawn from outlines (:func:`lesion_mask`), or from mask files (:func:`read_mask`).

ASAP's rule (AnnotationToMask): a mask pixel is its corner at the whole level-0 point (x, y). It is inside an
outline if the outline's winding number there is not zero and it lies strictly within the outline's bounding box.
Each outline is filled by itself, tumour first, then what is cut out of it. A coarser level takes every 2nd, 4th,
... pixel of level 0.

Shape suffixes: N points, E edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import LinearRing

from wsi_ips.datasets.annotations import Region
from wsi_ips.errors import AnnotationError
from wsi_ips.slides.registry import open_slide
from wsi_ips.units import Size

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
