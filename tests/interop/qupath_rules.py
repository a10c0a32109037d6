"""What QuPath's importer demands of GeoJSON, in our own words, from reading its source (qupath/qupath at e7662d8).

A file that breaks one of these rules is refused as a whole, or loses what the rule is about without a word. Of
``qupath-core``: ``GsonTools.addPathObjects`` and ``PathClassTypeAdapter``, ``QuPathTypeAdapters`` (objects, their
measurements), ``ROITypeAdapters`` (geometries), ``PathClass`` (names).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import shapely

OBJECT_TYPES = ("annotation", "detection", "tile", "cell", "tmaCore", "root")
"""All others become annotations, with a warning in QuPath's log."""

ALLOWED_PLANE = {"c", "z", "t"}


@dataclass(frozen=True)
class QuPathObject:
    """An object as QuPath has it once it is imported."""

    uuid: UUID
    kind: str
    roi: Any
    name: str | None
    class_name: str | None
    class_colour: tuple[int, ...] | None
    measurements: dict[str, float]


def imported(path: Path) -> list[QuPathObject]:
    """The objects of a file, which fails an assertion where QuPath would stumble."""
    text = path.read_bytes().decode("utf-8")
    assert not text.startswith("\ufeff")
    content = json.loads(text, parse_constant=lambda name: _refuse(f"{name} is no JSON"))
    objects = [_object(feature) for feature in _features(content)]
    assert len({each.uuid for each in objects}) == len(objects), "an id is given twice"
    return objects


def _refuse(why: str) -> None:
    raise AssertionError(why)


def _features(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    assert content["type"] == "FeatureCollection", "QuPath passes over anything else"
    assert isinstance(content["features"], list)
    return list(content["features"])


def _object(feature: Any) -> QuPathObject:
    assert feature["type"] == "Feature"
    properties = feature["properties"]
    kind = properties["objectType"]
    assert kind in OBJECT_TYPES, f"{kind} would become an annotation"
    named, colour = _classification(properties.get("classification"))
    uuid = UUID(feature["id"])
    assert str(uuid) == feature["id"], "Java writes a UUID in lower case with hyphens; others get a new id"
    return QuPathObject(
        uuid=uuid,
        kind=kind,
        roi=_geometry(feature["geometry"]),
        name=properties.get("name"),
        class_name=named,
        class_colour=colour,
        measurements=_measurements(properties.get("measurements", {})),
    )


def _classification(said: Any) -> tuple[str | None, tuple[int, ...] | None]:
    """A text, or an object with a name and a colour: one without a colour ends the import of the whole file."""
    if said is None or said == {}:
        return None, None
    if isinstance(said, str):
        return _class_name(said), None
    if "colorRGB" in said:
        assert isinstance(said["colorRGB"], int)
        assert -(2**31) <= said["colorRGB"] < 2**31, "a packed Java int"
        return _class_name(said["name"]), tuple(said["colorRGB"] >> shift & 255 for shift in (16, 8, 0))
    assert {"name", "color"} <= said.keys() or {"names", "color"} <= said.keys()
    colour = said["color"]
    assert len(colour) in (3, 4)
    assert all(type(part) is int and 0 <= part <= 255 for part in colour)
    return _class_name(said.get("name") or ": ".join(said["names"])), tuple(colour)


def _class_name(name: str) -> str:
    for part in name.split(":"):
        assert part.strip(), "a class without a name"
        assert "\n" not in part
    assert name == name.strip()
    return name


def _measurements(said: Any) -> dict[str, float]:
    """An object of numbers, or of the words NaN, Infinity, -Infinity; a list of pairs before 0.4."""
    assert isinstance(said, dict)
    for name, value in said.items():
        assert name == name.strip() != ""
        assert isinstance(value, int | float)
        assert math.isfinite(value)
        assert not isinstance(value, bool)
    return {name: float(value) for name, value in said.items()}


def _geometry(said: Any) -> Any:
    """Rings are closed and have four points, or JTS throws; in QuPath's precision they are still valid."""
    assert set(said.get("plane", {})) <= ALLOWED_PLANE
    assert said["type"] in ("Point", "Polygon", "MultiPolygon")
    if said["type"] != "Point":
        polygons = [said["coordinates"]] if said["type"] == "Polygon" else said["coordinates"]
        for ring in (ring for polygon in polygons for ring in polygon):
            points = np.array(ring, np.float64)
            assert points.shape[1:] == (2,)
            assert len(points) >= 4
            assert np.isfinite(points).all()
            assert ring[0] == ring[-1], "a ring that is not closed"
    shape = shapely.geometry.shape(said)
    assert shape.is_valid, shapely.is_valid_reason(shape)
    reduced = shapely.set_precision(shape, 0.01)
    assert not reduced.is_empty, "smaller than QuPath's precision"
    return reduced
