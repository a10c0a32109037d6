"""Outlines and small regions are scikit-image's, point by point, and in its order."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure, morphology

from wsi_ips.tiling.outlines import Mask, outlines, without_small


def masks() -> list[Mask]:
    """Specks, checkers that touch at corners, and blobs with holes."""
    rng = np.random.default_rng(0)
    specks = [rng.random(size) > share for size in ((5, 5), (9, 7), (40, 61)) for share in (0.3, 0.5, 0.8)]
    blobs = [ndimage.gaussian_filter(rng.random((120, 90)), sigma) > 0.5 for sigma in (1, 4)]
    return [*specks, *blobs, np.ones((3, 4), bool), np.indices((6, 7)).sum(axis=0) % 2 == 0]


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_the_same_outlines(mask: Mask) -> None:
    framed = np.pad(mask, 1)
    found, expected = outlines(framed), measure.find_contours(framed.astype(float), 0.5)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_empty_mask_has_no_outlines() -> None:
    assert outlines(np.zeros((4, 5), bool)) == []


@pytest.mark.parametrize(("object_px", "hole_px"), [(0, 0), (1, 0), (3, 6), (40, 9), (10_000, 10_000)])
def test_the_same_without_small_regions_and_holes(object_px: int, hole_px: int) -> None:
    for mask in masks():
        before = mask.copy()
        expected = morphology.remove_small_objects(mask, max_size=object_px)
        expected = morphology.remove_small_holes(expected, max_size=hole_px)
        np.testing.assert_array_equal(without_small(mask, object_px=object_px, hole_px=hole_px), expected)
        np.testing.assert_array_equal(mask, before)
