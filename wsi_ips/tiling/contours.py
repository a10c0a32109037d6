"""The tissue's outlines as GeoJSON that QuPath and TRIDENT's readers open."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from shapely import MultiPolygon, Polygon
from skimage import measure

from wsi_ips.files import whole_file
from wsi_ips.qupath import feature_id
from wsi_ips.tiling.tissue import TissueMask


def tissue_contours(mask: TissueMask) -> list[Polygon]:
    """Regions of tissue with their holes, in level-0 pixels, largest first.

    The outline runs along pixel edges and cuts corners by half a mask pixel.
    """
    # A frame of background closes outlines at the border. Pixel (0, 0)'s centre lies at (0.5, 0.5).
    framed = np.pad(mask.mask_HW, 1).astype(np.float32)
    rings = [(contour[:, ::-1] - 0.5) * mask.l0_per_px for contour in measure.find_contours(framed, 0.5)]
    if not rings:
        return []
    area = shapely.build_area(shapely.MultiLineString([ring for ring in rings if len(ring) >= 4]))
    polygons = area.geoms if isinstance(area, MultiPolygon) else [area]
    return sorted((polygon for polygon in polygons if polygon.area > 0), key=lambda each: -each.area)


def write_geojson(path: Path, polygons: Sequence[Polygon]) -> None:
    """A FeatureCollection in level-0 pixels: TRIDENT's ``tissue_id``, QuPath's ``objectType`` and UUIDs.

    Ids depend on the file's name and the region's number, so that writing again gives the same bytes.
    """
    features = [
        {
            "type": "Feature",
            "id": feature_id(f"{path.stem}/{number}"),
            "geometry": shapely.geometry.mapping(shapely.set_precision(polygon, 0.01)),
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
