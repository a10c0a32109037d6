"""GeoJSON as QuPath 0.4 and later imports it: where it counts from, ids, features one after the other.

Coordinates are full-resolution pixels as QuPath counts them: for a slide with OpenSlide bounds (MIRAX, some Leica
files) from the bounds' corner on, for QuPath shows nothing else of it (its OpenslideImageServer adds
``openslide.bounds-x`` and ``-y`` to every read).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from wsi_ips.files import whole_file
from wsi_ips.slides.base import SlideInfo

Feature = dict[str, Any]


def l0_origin(info: SlideInfo) -> tuple[int, int]:
    """The level-0 point that is QuPath's (0, 0)."""
    return (info.bounds.l0_x, info.bounds.l0_y) if info.bounds else (0, 0)


def feature_id(what: str) -> str:
    """A UUID that is the same whenever the same thing is written again."""
    return str(uuid5(NAMESPACE_URL, f"wsi_ips/{what}"))


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Feature:
    """A geometry."""
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def write_features(path: Path, features: Iterable[Feature]) -> None:
    """A FeatureCollection, a feature a line; they are written as they come: there may be a million."""
    # One for all: json.dumps would make one for each.
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            file.write(",\n" if number else "\n")
            file.write(encode(feature))
        file.write("\n]}\n")
