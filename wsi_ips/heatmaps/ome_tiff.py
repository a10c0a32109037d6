"""The map as a pyramidal OME-TIFF of raw values, which QuPath, OMERO, napari and Fiji open in its place.

Format: OME-TIFF 2016-06, float32, 256-px tiles, reduced levels as SubIFDs of the one plane, NaN where no patch
is. PhysicalSizeX and -Y are µm per pixel; the first pixel begins at the slide's corner, which a MapAnnotation
(namespace ``wsi_ips``) tells in level-0 pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffWriter

from wsi_ips.files import whole_file
from wsi_ips.heatmaps.heat_pyramid import TILE_PX, HeatPyramid, registration
from wsi_ips.heatmaps.maps import Heat, check_same_slide
from wsi_ips.slides.base import SlideReader

CLASSIC_BYTES = 2**31
"""Up to here a file has 32-bit offsets, which more programs read."""


@dataclass(frozen=True, slots=True)
class OmeTiff:
    """um_per_px: µm a pixel of the finest level; None: a pixel a patch, or as fine as overlaps need it."""

    um_per_px: float | None = None

    @property
    def suffix(self) -> str:
        return ".ome.tif"

    @property
    def needs_slide(self) -> bool:
        return False

    def write(self, path: Path, heat: Heat, slide: SlideReader | None = None) -> None:
        """See :meth:`wsi_ips.heatmaps.export.Exporter.write`."""
        coords = heat.coords
        if slide is not None:
            check_same_slide(slide, coords)
        pyramid = HeatPyramid(coords, heat.values_N, um_per_px=self.um_per_px)
        width, height = pyramid.sizes[0]
        tiled: dict[str, Any] = {
            "dtype": np.float32,
            "tile": (TILE_PX, TILE_PX),
            "photometric": "minisblack",
            "compression": "zlib",
            "resolutionunit": "CENTIMETER",
        }
        facts = {**registration(coords, pyramid), "shown": heat.shown}
        metadata = {
            "axes": "YX",
            # Not a random one: writing again gives the same bytes.
            "UUID": str(uuid5(NAMESPACE_URL, f"wsi_ips/{coords.slide_id}/{heat.shown}")),
            "Name": coords.slide_id,
            "PhysicalSizeX": pyramid.um_per_px,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pyramid.um_per_px,
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": [heat.shown]},
            "MapAnnotation": {"Namespace": "wsi_ips", **facts},
        }
        with (
            whole_file(path) as partial,
            TiffWriter(partial, ome=True, bigtiff=4 * width * height > CLASSIC_BYTES) as tiff,
        ):
            tiff.write(
                (tile for band in pyramid.bands() for tile in _tiles(band)),
                shape=(height, width),
                subifds=len(pyramid.sizes) - 1,
                resolution=(1e4 / pyramid.um_per_px, 1e4 / pyramid.um_per_px),
                metadata=metadata,
                **tiled,
            )
            for number, level in enumerate(pyramid.coarser(), start=1):
                per_cm = 1e4 / (pyramid.um_per_px * 2**number)
                tiff.write(
                    _tiles(level), shape=level.shape, subfiletype=1, resolution=(per_cm, per_cm), **tiled
                )


def _tiles(values_HW: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Along rows, filled up with NaN to whole tiles."""
    height, width = values_HW.shape
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = np.full((TILE_PX, TILE_PX), np.nan, np.float32)
            part = values_HW[top : top + TILE_PX, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
