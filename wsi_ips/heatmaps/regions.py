"""Two exports of places: :class:`AsapRegions` for ASAP and :class:`QuPathGeoJson` for QuPath.

ASAP's regions can be viewed and corrected in ASAP, and :mod:`wsi_ips.datasets.annotations` reads them as training
data. Outer rings and holes are CAMELYON16's groups (``_0``, ``_2``); coordinates are level-0 pixels. QuPath's
GeoJSON holds tile objects with attention and contributions as measurements; coordinates are pixels as QuPath
counts them (:mod:`wsi_ips.tiling.contours`).

Shape suffixes: N patches, M kept patches, R, C rows and columns of cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

from wsi_ips.datasets.annotations import polygons_of, write_asap
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import CLASS_COLOURS, DisplayScale
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.heatmaps.raster import mean_cells
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.contours import Feature, feature_id, l0_origin, rectangle, write_features
from wsi_ips.tiling.grid import PatchCoords

DEFAULT_PERCENTILE = 95.0
"""The percentile of the patches' values that is the threshold if none is given."""

DECIMALS = 3
"""Decimals of coordinates: a thousandth of a pixel."""


@dataclass(frozen=True, slots=True)
class AsapRegions:
    """Regions where the mean value of the patches is at least a threshold, as ASAP's XML.

    ``threshold`` is a raw value; ``percentile`` instead is one of the slide's patches (``np.percentile``), 95 if
    neither is given. For contributions and gradients, the percentile is that of the kept patches, since all
    others add exactly 0, and a place that adds nothing is in no region.
    """

    threshold: float | None = None
    percentile: float | None = None

    @property
    def suffix(self) -> str:
        """``.xml``"""
        return ".xml"

    @property
    def needs_slide(self) -> bool:
        """False: coordinates are level-0 pixels, which the result knows."""
        return False

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write the regions of one map, as :class:`wsi_ips.heatmaps.export.Exporter` describes."""
        if slide is not None:
            check_same_slide(slide, heat.result)
        least = self.least(heat)
        write_asap(path, list(regions_from(heat.coords, heat.values_N, least=least).geoms))

    def least(self, heat: Heat) -> float:
        """The raw value from which on a place belongs to a region.

        Raises :class:`ConfigError` for a threshold that is not finite, a percentile out of range, or both of them.
        """
        if self.threshold is not None and self.percentile is not None:
            raise ConfigError("threshold and percentile say the same thing: give one of them")
        if self.threshold is not None:
            if not np.isfinite(self.threshold):
                raise ConfigError(f"threshold must be a number, not {self.threshold:g}")
            return self.threshold
        percentile = DEFAULT_PERCENTILE if self.percentile is None else self.percentile
        if not 0 <= percentile <= 100:
            raise ConfigError(f"percentile must be 0 to 100, not {percentile:g}")
        if heat.kind == "attention":
            return float(np.percentile(heat.values_N, percentile)) if len(heat.coords) else 0.0
        kept_M = heat.values_N[np.isin(heat.coords.ids_N, heat.result.kept_ids_M)]
        least = float(np.percentile(kept_M, percentile)) if len(kept_M) else 0.0
        return max(least, float(np.finfo(np.float32).tiny))


def regions_from(coords: PatchCoords, values_N: NDArray[np.float32], *, least: float) -> MultiPolygon:
    """The places with a mean value of at least ``least``, in level-0 pixels, inside the slide.

    Places that touch only at a corner are separate polygons.
    """
    l0_starts_N2 = coords.l0_exact_corners()
    cells = mean_cells(l0_starts_N2, l0_starts_N2 + coords.l0_patch, values_N, size=coords.l0_size)
    # NaN, where no patch is, is not over anything. In float32, as the values are: 0.1 is at least 0.1.
    over_RC = cells.values_RC >= np.float32(least)
    edges = np.diff(np.pad(over_RC, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(edges == 1)
    _, past = np.nonzero(edges == -1)
    x, y = cells.x_edges, cells.y_edges
    return polygons_of(shapely.union_all(shapely.box(x[first], y[rows], x[past], y[rows + 1])))


@dataclass(frozen=True, slots=True)
class QuPathGeoJson:
    """Patches as QuPath's tile objects, with the slide's maps as measurements.

    ``top`` writes only that many patches, those with the largest values of the map; by default all are written.
    """

    top: int | None = None

    @property
    def suffix(self) -> str:
        """``.geojson``"""
        return ".geojson"

    @property
    def needs_slide(self) -> bool:
        """True: the slide's bounds say where QuPath begins to count."""
        return True

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """Write the patches of one map, as :class:`wsi_ips.heatmaps.export.Exporter` describes.

        Raises :class:`ConfigError` without the slide.
        """
        if slide is None:
            raise ConfigError("geojson needs the slide, whose bounds say where QuPath begins to count")
        check_same_slide(slide, heat.result)
        write_features(path, _features(heat, slide, self.top))


def _features(heat: Heat, slide: SlideReader, top: int | None) -> Iterator[Feature]:
    """The patches as GeoJSON features, in grid order."""
    coords, origin = heat.coords, l0_origin(slide.info)
    l0_starts_N2 = coords.l0_exact_corners().clip(0, coords.l0_size)
    l0_ends_N2 = (coords.l0_exact_corners() + coords.l0_patch).clip(0, coords.l0_size)
    places = np.round(np.concatenate([l0_starts_N2 - origin, l0_ends_N2 - origin], axis=1), DECIMALS)
    percentile_N = DisplayScale(heat.values_N, scale="rank")(heat.values_N) * 100
    percentile = f"{heat.kind.capitalize()} percentile"
    maps = {heat.shown: heat.values_N, percentile: percentile_N, **heat.others}
    classified = _classification(heat)
    for row in _rows(heat.values_N, top).tolist():
        yield {
            "type": "Feature",
            "id": feature_id(f"{coords.slide_id}/patch/{coords.ids_N[row]}"),
            "geometry": rectangle(*places[row].tolist()),
            "properties": {
                "objectType": "tile",
                **classified,
                # The fewest digits that read back as the same float32.
                "measurements": {name: float(str(values_N[row])) for name, values_N in maps.items()},
            },
        }


def _rows(values_N: NDArray[np.float32], top: int | None) -> NDArray[np.intp]:
    """Rows of the ``top`` largest values, in grid order; of equal values, those that come first in the grid."""
    if top is None:
        return np.arange(len(values_N))
    return np.sort(np.argsort(-values_N, kind="stable")[:top])


def _classification(heat: Heat) -> dict[str, Any]:
    """The class that the slide was predicted to have: each of its patches is shown as evidence for it."""
    name = heat.likeliest
    if name is None:
        return {}
    place = list(heat.result.probabilities[heat.task or ""]).index(name)
    return {"classification": {"name": name, "color": list(CLASS_COLOURS[place % len(CLASS_COLOURS)])}}
