"""Patches as QuPath's tile objects with their attention and contributions as measurements, in GeoJSON.

Coordinates are full-resolution pixels as QuPath counts them, see :mod:`wsi_ips.qupath`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.colours import CLASS_COLOURS
from wsi_ips.heatmaps.display_scale import DisplayScale
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.qupath import Feature, feature_id, l0_origin, rectangle, write_features
from wsi_ips.slides.base import SlideReader

DECIMALS = 3
"""Of coordinates: a thousandth of a pixel."""


@dataclass(frozen=True, slots=True)
class QuPathGeoJson:
    """top: write only so many patches, those with the largest values of the map; None: all."""

    top: int | None = None

    @property
    def suffix(self) -> str:
        return ".geojson"

    @property
    def needs_slide(self) -> bool:
        return True

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """See :meth:`wsi_ips.heatmaps.export.Exporter.write`."""
        if slide is None:
            raise ConfigError("geojson needs the slide, whose bounds say where QuPath begins to count")
        check_same_slide(slide, heat.coords)
        write_features(path, _features(heat, slide, self.top))


def _features(heat: Heat, slide: SlideReader, top: int | None) -> Iterator[Feature]:
    """In grid order."""
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
    """Of equals, those that come first in the grid."""
    if top is None:
        return np.arange(len(values_N))
    return np.sort(np.argsort(-values_N, kind="stable")[:top])


def _classification(heat: Heat) -> dict[str, Any]:
    """What the slide was predicted to be: every patch of it is shown as evidence for that."""
    name = heat.likeliest
    if name is None:
        return {}
    place = list(heat.result.probabilities[heat.task or ""]).index(name)
    return {"classification": {"name": name, "color": list(CLASS_COLOURS[place % len(CLASS_COLOURS)])}}
