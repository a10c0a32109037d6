"""The vectorised FROC against the plain one, digit for digit, and what the plain one cannot say."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from tests.evaluation import plain_froc
from wsi_ips.evaluation.froc import (
    LARGEST_MASK_PX,
    RATES,
    Detections,
    FrocRules,
    SlideHits,
    froc_curve,
    hit_lesions,
    lesion_mask,
    within,
)
from wsi_ips.units import Mpp

# Few values, so that ties within and between slides are the rule; 0.1 and 0.7 are not their float32.
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.25, 0.35, 0.7, 0.99, 1.0])


def blobs(*discs: tuple[int, int, int], shape: tuple[int, int] = (120, 100)) -> np.ndarray:
    """A mask of discs (row, column, radius)."""
    rows, columns = np.indices(shape)
    mask = np.zeros(shape, np.uint8)
    for row, column, radius in discs:
        mask[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 255
    return mask


disc = st.tuples(st.integers(0, 119), st.integers(0, 99), st.sampled_from([0, 2, 8, 16, 22, 30]))
point = st.tuples(PROBABILITIES, st.integers(0, 100 * 32 - 1), st.integers(0, 120 * 32 - 1))
slide = st.tuples(
    st.one_of(st.none(), st.lists(disc, max_size=4)),
    st.lists(point, max_size=8),
)


def as_rows(points: list[tuple[float, int, int]]) -> np.ndarray:
    return np.array(points, float).reshape(-1, 3)


def as_detections(rows: np.ndarray) -> Detections:
    return Detections(rows[:, 0], rows[:, 1:].astype(np.int64))


@given(st.lists(slide, min_size=1, max_size=4))
@example([([(60, 50, 30)], [])])  # no detections
@example([([(60, 50, 30)], []), (None, [(0.7, 5, 5), (0.7, 9, 9)])])  # false positives only
@example([([(60, 50, 30)], [(0.7, 1600, 1920), (0.25, 1600, 1920)])])  # no ITC, nothing missed
@example(
    [([(60, 50, 30)], [(0.1, 1600, 1920)]), (None, [(0.1, 5, 5), (0.05, 9, 9)])]
)  # a tie, but for float32
@example([([(60, 50, 30), (5, 5, 2)], [(0.7, 160, 160), (0.7, 1600, 1920)])])  # a hit on ITC
@example([([], [(0.7, 40, 40)]), ([(60, 50, 30)], [(0.7, 40, 40)])])  # a mask without tumour
def test_every_digit_is_that_of_the_plain_implementation(
    drawn: list[tuple[list[tuple[int, int, int]] | None, list[tuple[float, int, int]]]],
) -> None:
    plain, fast = [], []
    for discs, points in drawn:
        rows = as_rows(points)
        labels, itc, lesions = None, [], None
        if discs is not None:
            mask = blobs(*discs)
            labels, itc = plain_froc.number_lesions(mask)
            lesions = lesion_mask(mask)
            assert np.array_equal(lesions.label_HW, labels)
            assert sorted(lesions.itc) == itc
        plain.append(plain_froc.sort_detections(rows, labels, itc))
        fast.append(hit_lesions(as_detections(rows), lesions))
        assert fast[-1].false_positives_F.tolist() == plain[-1][0]
        assert fast[-1].lesion_scores_L.tolist() == [float(score) for score in plain[-1][1]]
        assert fast[-1].lesion_scores_L.dtype == np.float32
    if not sum(slide[2] for slide in plain):
        with pytest.raises(ValueError, match="no lesion larger than ITC"):
            froc_curve(fast)
        return
    fps_per_slide, sensitivity = plain_froc.curve(plain)
    curve = froc_curve(fast)
    assert np.array_equal(curve.fps_per_slide, fps_per_slide)
    assert np.array_equal(curve.sensitivity, sensitivity)
    assert curve.score == plain_froc.score(fps_per_slide, sensitivity)
    assert (len(curve.thresholds_T) + 1, curve.slides) == (len(curve.sensitivity), len(drawn))


@given(
    st.lists(
        st.tuples(st.lists(PROBABILITIES, max_size=30), st.lists(PROBABILITIES, max_size=10)),
        min_size=1,
        max_size=6,
    )
)
def test_the_curve_alone_too(drawn: list[tuple[list[float], list[float]]]) -> None:
    """Many more scores than the masks above would give."""
    assume(any(scores for _, scores in drawn))
    plain = [
        ([np.float64(p) for p in wrong], [np.float32(p) for p in right], len(right)) for wrong, right in drawn
    ]
    fast = [
        SlideHits(np.array(wrong), np.array(right, np.float32), lesions) for wrong, right, lesions in plain
    ]
    fps_per_slide, sensitivity = plain_froc.curve(plain)
    curve = froc_curve(fast)
    assert np.array_equal(curve.fps_per_slide, fps_per_slide)
    assert np.array_equal(curve.sensitivity, sensitivity)


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=25)),
    st.sampled_from([0.5, 1.0, 2.3, 4.8225, 9.7]),
)
def test_within_is_the_distance_map_s(mask: np.ndarray, radius: float) -> None:
    assume(mask.any())
    assert np.array_equal(within(mask, radius), ndimage.distance_transform_edt(~mask) < radius)


def test_touching_corners_and_filled_holes_make_one_lesion() -> None:
    corners = np.zeros((40, 40), np.uint8)
    corners[10, 10] = corners[17, 17] = 255
    assert lesion_mask(corners).numbers == 1, "dilated, the two meet in one corner of a pixel"
    corners[18, 18], corners[17, 17] = 255, 0
    assert lesion_mask(corners).numbers == 2
    ring = blobs((60, 50, 40)) - blobs((60, 50, 20))
    lesions = lesion_mask(ring)
    assert lesions.numbers == 1
    assert lesions.label_HW[60, 50] == 1
    hits = hit_lesions(as_detections(as_rows([(0.9, 50 * 32, 60 * 32)])), lesions)
    assert hits.lesion_scores_L == pytest.approx([0.9])


def test_extra_hits_are_neither_and_itc_is_ignored() -> None:
    lesions = lesion_mask(blobs((40, 40, 25), (100, 80, 2)))
    assert lesions.itc == {2}
    points = [(0.4, 40 * 32, 40 * 32), (0.9, 41 * 32, 40 * 32), (0.8, 80 * 32, 100 * 32), (0.3, 0, 0)]
    hits = hit_lesions(as_detections(as_rows(points)), lesions)
    assert hits.false_positives_F.tolist() == [0.3]
    assert hits.lesion_scores_L.tolist() == [np.float32(0.9), 0]
    assert hits.lesions == 1


def test_a_detection_beyond_the_mask_is_a_false_positive() -> None:
    """Padding makes a slide wider than its mask; a negative index would wrap round to the far lesion."""
    lesions = lesion_mask(blobs((119, 99, 30)))
    points = [(0.9, 100 * 32, 5), (0.8, 5, 120 * 32), (0.7, -40, -40), (0.6, 10**12, 0)]
    assert len(hit_lesions(as_detections(as_rows(points)), lesions).false_positives_F) == 4


def test_rules_scale_with_the_slide_s_resolution() -> None:
    official, coarse = FrocRules(), FrocRules(l0_mpp=Mpp(0.486), level=4)
    assert official.dilation_px == pytest.approx(4.8225, abs=1e-4)
    assert official.itc_px == pytest.approx(35.365, abs=1e-3)
    assert (coarse.dilation_px, coarse.itc_px) == pytest.approx((official.dilation_px, official.itc_px))
    assert coarse.mask_size((1000, 15)) == (63, 1)


def test_a_slide_like_the_challenge_s_is_judged_by_its_rules() -> None:
    for mpp in (0.226, 0.243, 0.25):
        assert FrocRules.for_slide(Mpp(mpp)) == FrocRules()
    assert FrocRules.for_slide(Mpp(0.5)) == FrocRules(l0_mpp=Mpp(0.5), level=4)
    assert FrocRules.for_slide(Mpp(9.0)).level == 0


def test_masks_that_are_too_large_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        FrocRules().mask_size((10**7, 10**7))
    with pytest.raises(ValueError, match="has two axes and at most"):
        lesion_mask(np.broadcast_to(np.uint8(0), (2, LARGEST_MASK_PX)))
    with pytest.raises(ValueError, match="has two axes and at most"):
        lesion_mask(np.zeros((4, 4, 3), np.uint8))


def test_a_perfect_reader_has_a_score_of_one_but_for_the_dropped_threshold() -> None:
    """With nothing missed and no ITC the only threshold is the smallest score, and is dropped: (0, 0) is left."""
    found = SlideHits(np.zeros(0), np.array([0.9], np.float32), 1)
    assert froc_curve([found]).sensitivity.tolist() == [0]
    missed_too = SlideHits(np.zeros(0), np.array([0.9, 0], np.float32), 1)
    curve = froc_curve([missed_too])
    assert (curve.sensitivity.tolist(), curve.score) == ([1, 0], 1)
    assert len(curve.sensitivity_at()) == len(RATES)
