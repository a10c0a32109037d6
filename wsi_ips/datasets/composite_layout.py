"""Where the parts of a composite slide lie: tissue, and regions with real lesions' outlines. No pixels.

Laid out on a map that is :data:`COARSE_PX` times coarser than level 0.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from shapely import Polygon
from shapely.affinity import rotate, scale, translate

from wsi_ips.errors import AnnotationError, ConfigError
from wsi_ips.units import Size

COARSE_PX = 16
LARGEST_BYTES = 100_000_000
LEAST_POINTS = 20
LEAST_FILL = 0.35
"""Share of its tightest box that an outline fills: threads would not hold a patch."""
PLACEMENTS = 400

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """present_HW: tissue on the coarse map, 0..255 with a soft edge; tissue is where it is 128 or more.

    lesions, decoys: outlines in level-0 pixels, inside the tissue, apart from each other.
    """

    present_HW: NDArray[np.uint8]
    lesions: tuple[Polygon, ...]
    decoys: tuple[Polygon, ...]


def read_outlines(folder: Path) -> list[Polygon]:
    """The outlines of NCRF's JSON files (``{"positive": [{"vertices": [[x, y], ...]}], "negative": [...]}``).

    Holes are cut out. Each is moved to the origin and scaled to an area of 1. Threads and outlines of few
    points are left out. Raises :class:`AnnotationError` for a broken file, or a folder without outlines.
    """
    found: list[Polygon] = []
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size > LARGEST_BYTES:
            raise AnnotationError(path, f"is larger than {LARGEST_BYTES} bytes", "is it an annotation?")
        try:
            held: Any = json.loads(path.read_text(encoding="utf-8"))
            holes = shapely.union_all([_polygon(ring) for ring in held["negative"]])
            outlines = [_polygon(ring).difference(holes) for ring in held["positive"]]
        except (ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
            raise AnnotationError(path, f"is no outline file ({error})", "see NCRF's JSON format") from None
        found += [_unit(part) for outline in outlines for part in _parts(outline) if _is_lesion_like(part)]
    if not found:
        raise AnnotationError(folder, "holds no outlines", "name a folder of NCRF's JSON files")
    return found


def lay_out(
    size_px: Size, outlines: Sequence[Polygon], *, share: tuple[float, float], rng: np.random.Generator
) -> Layout:
    """Tissue, one to three lesions and as many decoys.

    Lesions together cover a share of the tissue drawn between the two of ``share`` (log-uniform), decoys another
    of the same range. Both are drawn alike, so that shape, size and place tell nothing.
    """
    coarse = (-(-size_px[0] // COARSE_PX), -(-size_px[1] // COARSE_PX))
    present_HW = _tissue(coarse, rng=rng)
    free = present_HW >= 128
    tissue_area = float(free.sum())
    placed: list[tuple[Polygon, ...]] = []
    for _ in ("lesions", "decoys"):
        total = tissue_area * np.exp(rng.uniform(*np.log(share)))
        parts = rng.dirichlet(np.full(rng.integers(1, 4), 4.0))
        placed.append(tuple(_place(free, outlines, area=total * part, rng=rng) for part in parts))
    lesions, decoys = (
        tuple(scale(each, COARSE_PX, COARSE_PX, origin=(0, 0)) for each in kind) for kind in placed
    )
    return Layout(present_HW, lesions, decoys)


def filled(size_px: Size, outline: Polygon) -> Mask:
    """True inside the outline, its holes left out."""
    image = Image.new("L", size_px)
    draw = ImageDraw.Draw(image)
    for ring, value in ((outline.exterior, 1), *((hole, 0) for hole in outline.interiors)):
        draw.polygon([(x - 0.5, y - 0.5) for x, y in ring.coords], fill=value)
    return np.asarray(image).astype(bool)


def _tissue(coarse: Size, *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth noise, higher in the middle, cut at the height that leaves half to two thirds of the slide."""
    width, height = coarse
    noise = Image.fromarray(rng.uniform(0, 255, (9, 9)).astype(np.uint8)).resize(
        coarse, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.uniform(0, 255, (60, 60)).astype(np.uint8)).resize(
        coarse, Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    field = np.asarray(noise) + 0.15 * np.asarray(fine) - 500 * np.maximum(abs(x), abs(y)) ** 8
    cut = np.quantile(field, 1 - rng.uniform(0.5, 0.66))
    present = Image.fromarray(np.where(field > cut, 255, 0).astype(np.uint8))
    return np.asarray(present.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1.5)))


def _place(free: Mask, outlines: Sequence[Polygon], *, area: float, rng: np.random.Generator) -> Polygon:
    """An outline of this area, turned at random, where the map is free; the place is then taken, with a margin.

    Raises :class:`ConfigError` where none fits.
    """
    height, width = free.shape
    rows, columns = np.nonzero(free)
    for _ in range(PLACEMENTS):
        outline = rotate(outlines[int(rng.integers(len(outlines)))], rng.uniform(0, 360), origin=(0, 0))
        mirrored = -1 if rng.integers(2) else 1
        outline = scale(outline, mirrored * area**0.5, area**0.5, origin=(0, 0))
        at = rng.integers(len(rows))
        outline = translate(outline, columns[at] + rng.uniform(), rows[at] + rng.uniform())
        covered = filled((width, height), Polygon(outline.buffer(2).exterior))
        left, top, right, bottom = outline.bounds
        inside = left > 1 and top > 1 and right < width - 1 and bottom < height - 1
        if inside and not (covered & ~free).any():
            free &= ~covered
            return outline
    raise ConfigError(f"no room for a lesion of {area * COARSE_PX**2:.0f} px; give a lower lesion_share")


def _polygon(ring: Any) -> Polygon:
    points = np.asarray(ring["vertices"], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("coordinates that are no numbers")
    return shapely.make_valid(Polygon(points)) if len(points) >= 3 else Polygon()


def _parts(shape: Any) -> list[Polygon]:
    return [part for part in getattr(shape, "geoms", [shape]) if isinstance(part, Polygon) and part.area > 0]


def _is_lesion_like(outline: Polygon) -> bool:
    box = shapely.minimum_rotated_rectangle(outline)
    return len(outline.exterior.coords) >= LEAST_POINTS and outline.area >= LEAST_FILL * box.area


def _unit(outline: Polygon) -> Polygon:
    centred = translate(outline, -outline.centroid.x, -outline.centroid.y)
    factor = centred.area**-0.5
    return scale(centred, factor, factor, origin=(0, 0)).simplify(0.002)
