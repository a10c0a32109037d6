"""OME-Zarr by others' judgement: ours is valid, and what NGFF's own suite calls bad is refused or harmless.

The cases are those of ome/ngff-spec (branches 0.4 and 0.5: tests/image_suite.json; main:
tests/attributes/spec/invalid/image), each rebuilt as a change of a small good file. ``ome-zarr-models`` is asked
too, so that a case is bad by somebody else's word.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.heatmaps.maps_of_slides import drawn
from tests.slides.one_line import assert_one_line
from tests.slides.tiff_files import tissue_like
from tests.slides.zarr_files import change, write_zarr
from wsi_ips.errors import UnsupportedSlide
from wsi_ips.heatmaps.export import make_exporter
from wsi_ips.slides.registry import open_slide

Edit = Callable[[dict[str, Any]], Any]


def image(ome: dict[str, Any]) -> Any:
    return ome["multiscales"][0]


def steps(ome: dict[str, Any], *transformations: Any) -> None:
    for dataset in image(ome)["datasets"]:
        dataset["coordinateTransformations"] = list(transformations)


SCALE = {"type": "scale", "scale": [1.0, 0.5, 0.5]}

REFUSED: dict[str, Edit] = {
    "duplicate_axes": lambda ome: image(ome)["axes"][1].update(name="x"),
    "duplicate_scale": lambda ome: steps(ome, SCALE, SCALE),
    "empty_datasets": lambda ome: image(ome).update(datasets=[]),
    "empty_multiscales": lambda ome: ome.update(multiscales=[]),
    "invalid_axes_count": lambda ome: image(ome)["axes"].pop(),
    "invalid_path": lambda ome: image(ome)["datasets"][0].update(path=0),
    "invalid_transformation_type": lambda ome: steps(ome, {"type": "rotation", "rotation": [1.0, 0.5, 0.5]}),
    "missing_axes": lambda ome: image(ome).pop("axes"),
    "missing_axes_name": lambda ome: image(ome)["axes"][0].pop("name"),
    "missing_datasets": lambda ome: image(ome).pop("datasets"),
    "missing_path": lambda ome: image(ome)["datasets"][0].pop("path"),
    "missing_space_axes": lambda ome: image(ome).update(axes=image(ome)["axes"][:1]),
    "no_multiscales": lambda ome: ome.pop("multiscales"),
    "one_space_axes": lambda ome: image(ome).update(axes=image(ome)["axes"][:2]),
    "scale_of_text": lambda ome: steps(ome, {"type": "scale", "scale": ["1", "half", "half"]}),
    "scale_too_long": lambda ome: steps(ome, {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.5]}),
    "too_many_axes": lambda ome: image(ome).update(axes=image(ome)["axes"] * 2),
    "transformation_without_type": lambda ome: steps(ome, {"scale": [1.0, 0.5, 0.5]}),
}

UNKNOWN_RESOLUTION: dict[str, Edit] = {
    "empty_transformations": lambda ome: steps(ome),
    "missing_scale": lambda ome: steps(ome, {"type": "translation", "translation": [0.0, 0.0, 0.0]}),
    "missing_transformations": lambda ome: [
        dataset.pop("coordinateTransformations") for dataset in image(ome)["datasets"]
    ],
    "scale_of_the_whole_alone": lambda ome: (
        steps(ome), image(ome).update(coordinateTransformations=[{"type": "scale", "scale": [1.0, 10.0, 10.0]}])
    ),
    "scale_in_a_file": lambda ome: steps(ome, {"type": "scale", "path": "scales"}),
    "no_unit": lambda ome: [axis.pop("unit", None) for axis in image(ome)["axes"]],
}  # fmt: skip
"""Bad, or without a length: the pixels can be read, but nothing is guessed of how large they are."""

HARMLESS: dict[str, Edit] = {
    "invalid_axis_type": lambda ome: image(ome)["axes"][0].update(type="invalid"),
    "invalid_channels_window": lambda ome: ome.update(omero={"channels": [{"window": {"start": "a"}}] * 3}),
    "an_identity_beside_the_scale": lambda ome: steps(ome, {"type": "identity"}, SCALE),
}
"""About things that are not used: pixels and µm are those of the good file."""


@pytest.fixture(params=["0.4", "0.5"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, version: str) -> Path:
    write_zarr(tmp_path / "slide.ome.zarr", tissue_like(60, 40), version=version, levels=1, chunk=64)
    return tmp_path / "slide.ome.zarr"


def valid(folder: Path) -> bool:
    """What ``ome-zarr-models`` says of OME-Zarr 0.5."""
    from ome_zarr_models.v05 import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.from_zarr(zarr.open_group(folder, mode="r"))
        except (ValueError, KeyError, TypeError):  # pydantic's ValidationError is a ValueError
            return False
    return True


def test_the_good_file_is_good(folder: Path, version: str) -> None:
    assert version == "0.4" or valid(folder)
    with open_slide(folder) as slide:
        assert slide.info.mpp == 0.5


@pytest.mark.parametrize("case", REFUSED)
def test_bad_metadata_is_refused_in_one_line(folder: Path, version: str, case: str) -> None:
    change(folder, REFUSED[case])
    assert version == "0.4" or not valid(folder)
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(folder)
    assert_one_line(caught.value, folder)


@pytest.mark.parametrize("case", UNKNOWN_RESOLUTION)
def test_no_resolution_is_made_up(folder: Path, case: str) -> None:
    change(folder, UNKNOWN_RESOLUTION[case])
    with open_slide(folder) as slide:
        assert slide.info.mpp is None
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(60, 40)), tissue_like(60, 40))


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_not_used_does_no_harm(folder: Path, case: str) -> None:
    change(folder, HARMLESS[case])
    with open_slide(folder) as slide:
        assert slide.info.mpp == 0.5
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(60, 40)), tissue_like(60, 40))


def test_the_scale_of_the_whole_image_counts(folder: Path) -> None:
    """It is applied after that of a level, as NGFF says."""
    whole = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    change(folder, lambda ome: image(ome).update(coordinateTransformations=whole))
    with open_slide(folder) as slide:
        assert slide.info.mpp == 0.25


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("um_per_px", [None, 0.4, 3.0])
def test_our_maps_are_valid(tmp_path: Path, queries: int, um_per_px: float | None) -> None:
    options = {} if um_per_px is None else {"um_per_px": um_per_px}
    make_exporter("ome-zarr", options).write(tmp_path / "a.ome.zarr", drawn(queries=queries).heat)
    assert valid(tmp_path / "a.ome.zarr")
