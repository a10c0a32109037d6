"""Every ``froc_*.npz`` of the golden folder, digit for digit: outputs of the challenge's own four functions.

Both the plain implementation of the tests and the vectorised one of the library are held against them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.evaluation import plain_froc
from wsi_ips.evaluation.froc import Detections, SlideHits, froc_curve, hit_lesions, lesion_mask

FOLDER = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
FILES = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("froc_*.npz"))] or [
    pytest.param(
        None,
        marks=pytest.mark.skip(reason=f"no golden arrays at {FOLDER}; name their folder with WSI_IPS_GOLDEN"),
    )
]
Case = Mapping[str, np.ndarray]


@pytest.fixture(params=FILES)
def case(request: pytest.FixtureRequest) -> Case:
    with np.load(request.param) as arrays:
        return dict(arrays)


def slides(case: Case) -> list[str]:
    """The slides that count: those with detections, be the list empty."""
    found = (re.fullmatch(r"det(\w+)_p_x_y", name) for name in case)
    return [match[1] for match in found if match]


def test_the_library_gives_the_official_digits(case: Case) -> None:
    hits: list[SlideHits] = []
    for slide in slides(case):
        rows = case[f"det{slide}_p_x_y"].reshape(-1, 3)
        detections = Detections(rows[:, 0].astype(np.float64), rows[:, 1:].astype(np.int64))
        lesions = None
        if f"mask{slide}" in case:
            lesions = lesion_mask(case[f"mask{slide}"])
            assert np.array_equal(lesions.label_HW, case[f"label{slide}"])
            assert sorted(lesions.itc) == case[f"itc{slide}"].tolist()
        hits.append(hit_lesions(detections, lesions))
    if np.isnan(case["score"]):  # the script divides by no lesions
        with pytest.raises(ValueError, match="no lesion"):
            froc_curve(hits)
        return
    curve = froc_curve(hits)
    assert np.array_equal(curve.fps_per_slide, case["fps_per_image"])
    assert np.array_equal(curve.sensitivity, case["sensitivity"])
    assert np.array_equal(curve.sensitivity_at(), case["sens_at_0p25_0p5_1_2_4_8"])
    assert curve.score == case["score"]


def test_the_plain_implementation_gives_the_official_digits(case: Case) -> None:
    sorted_out = []
    for slide in slides(case):
        labels, itc = None, []
        if f"mask{slide}" in case:
            labels, itc = plain_froc.number_lesions(case[f"mask{slide}"])
            assert np.array_equal(labels, case[f"label{slide}"])
            assert itc == case[f"itc{slide}"].tolist()
        sorted_out.append(plain_froc.sort_detections(case[f"det{slide}_p_x_y"].reshape(-1, 3), labels, itc))
    with np.errstate(invalid="ignore", divide="ignore"):
        fps_per_slide, sensitivity = plain_froc.curve(sorted_out)
    assert np.array_equal(fps_per_slide, case["fps_per_image"])
    assert np.array_equal(sensitivity, case["sensitivity"], equal_nan=True)
    assert np.array_equal(plain_froc.score(fps_per_slide, sensitivity), case["score"], equal_nan=True)
