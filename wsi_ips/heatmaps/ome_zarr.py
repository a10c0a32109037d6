"""The map as OME-Zarr 0.5: float32, axes c, y, x; NaN where no patch is.

Channel 0 is the map that was asked for, the others are the slide's other maps: of attention, one a query, and of
contributions, one a class, where the head tells them. ``scale`` is µm per pixel.
``translation`` is where the first pixel's centre lies when that of the slide's first level-0 pixel is at 0: so
viewers that place pixels by their centres lay it exactly over the slide.

Format: OME-NGFF 0.5 (Zarr v3), see https://ngff.openmicroscopy.org/0.5/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from wsi_ips.files import whole_folder
from wsi_ips.heatmaps.heat_pyramid import TILE_PX, HeatPyramid, registration
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.slides.base import SlideReader

AXES = [
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]
CHANNEL_COLOUR = "FFFF00"


@dataclass(frozen=True, slots=True)
class OmeZarr:
    """um_per_px: see :class:`wsi_ips.heatmaps.ome_tiff.OmeTiff`."""

    um_per_px: float | None = None

    @property
    def suffix(self) -> str:
        return ".ome.zarr"

    @property
    def needs_slide(self) -> bool:
        return False

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """See :meth:`wsi_ips.heatmaps.export.Exporter.write`."""
        coords = heat.coords
        if slide is not None:
            check_same_slide(slide, coords)
        maps = {heat.shown: heat.values_N, **heat.others}
        pyramids = [HeatPyramid(coords, values_N, um_per_px=self.um_per_px) for values_N in maps.values()]
        with whole_folder(path) as partial:
            group = zarr.open_group(partial, mode="w", zarr_format=3)
            levels = [_array(group, number, pyramids) for number in range(len(pyramids[0].sizes))]
            for channel, pyramid in enumerate(pyramids):
                for number, band in enumerate(pyramid.bands()):
                    top = number * TILE_PX
                    levels[0][channel, top : top + len(band)] = band
                for level, values_HW in zip(levels[1:], pyramid.coarser(), strict=True):
                    level[channel] = values_HW
            group.attrs["ome"] = {
                "version": "0.5",
                "multiscales": [_multiscale(coords.slide_id, pyramids[0], float(coords.slide_mpp))],
                "omero": {"channels": [_channel(name, values_N) for name, values_N in maps.items()]},
            }
            group.attrs["wsi_ips"] = {**registration(coords, pyramids[0]), "shown": heat.shown}


def _array(group: Any, number: int, pyramids: list[HeatPyramid]) -> Any:
    width, height = pyramids[0].sizes[number]
    return group.create_array(
        str(number),
        shape=(len(pyramids), height, width),
        chunks=(1, TILE_PX, TILE_PX),
        dtype="float32",
        fill_value=float("nan"),
        dimension_names=[axis["name"] for axis in AXES],
    )


def _multiscale(name: str, pyramid: HeatPyramid, slide_mpp: float) -> dict[str, Any]:
    datasets = []
    for number in range(len(pyramid.sizes)):
        um = pyramid.um_per_px * 2**number
        centre = (um - slide_mpp) / 2
        transforms = [
            {"type": "scale", "scale": [1.0, um, um]},
            {"type": "translation", "translation": [0.0, centre, centre]},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    return {"name": name, "axes": AXES, "datasets": datasets, "type": "mean"}


def _channel(name: str, values_N: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
    low, high = (float(values_N.min()), float(values_N.max())) if len(values_N) else (0.0, 1.0)
    window = {"start": low, "end": high, "min": low, "max": high}
    return {"label": name, "color": CHANNEL_COLOUR, "active": True, "window": window}
