"""Real lesions: the labels of the vectorised FROC against the plain one's, at the challenge's level."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely import MultiPolygon, Polygon
from shapely.affinity import translate

from tests.evaluation import plain_froc
from wsi_ips.datasets.annotations import lesion_mask as rasterise
from wsi_ips.datasets.annotations import read_asap, write_asap
from wsi_ips.evaluation.froc import TUMOR, lesion_mask


def real_lesions(real_data: Path, name: str) -> MultiPolygon:
    """A CAMELYON16 slide's lesions, moved to the top left."""
    outlines = json.loads((real_data / "camelyon" / "lesion_polygons" / f"{name}.json").read_text())
    shapes = [Polygon(one["vertices"]) for one in outlines["positive"] if len(one["vertices"]) > 3]
    united = shapely.union_all([shapely.make_valid(shape) for shape in shapes])
    moved = translate(united, 900 - united.bounds[0], 300 - united.bounds[1])
    return MultiPolygon([part for part in shapely.get_parts(moved) if isinstance(part, Polygon)])


@pytest.mark.parametrize("name", ["Tumor_008", "Tumor_065", "Tumor_105"])
def test_real_lesions_have_the_plain_implementation_s_numbers(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    lesions = real_lesions(real_data, name)
    write_asap(tmp_path / "lesions.xml", list(lesions.geoms))
    width, height = (int(edge / 32) + 9 for edge in lesions.bounds[2:])
    tumor = rasterise(read_asap(tmp_path / "lesions.xml"), downsample=32, size=(width, height))
    mask = tumor * np.uint8(TUMOR)
    labels, itc = plain_froc.number_lesions(mask)
    ours = lesion_mask(mask)
    assert np.array_equal(ours.label_HW, labels)
    assert sorted(ours.itc) == itc
    assert ours.numbers > len(itc) > 0
