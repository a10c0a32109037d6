import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import MultiPolygon

from wsi_ips.evaluation.slide_level import attention_auc, lesion_share_of_patches, roc_auc

scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, bool]]) -> None:
    """Ties count half; checked against counting every pair."""
    positives = [score for score, positive in pairs if positive]
    negatives = [score for score, positive in pairs if not positive]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    assert roc_auc(scores.astype(float), labels) == pytest.approx(wins / (len(positives) * len(negatives)))


def test_one_class_or_no_number_has_no_curve() -> None:
    with pytest.raises(ValueError, match="0 negatives"):
        roc_auc(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(ValueError, match="needs both classes"):
        roc_auc(np.array([0.1, np.nan]), np.array([True, False]))


def test_a_patch_s_share_of_lesion_is_exact() -> None:
    lesions = MultiPolygon([shapely.box(0, 0, 15, 10), shapely.box(30, 0, 40, 40)])
    corners = np.array([[0, 0], [10, 0], [20, 0], [25, 35], [100, 100]])
    assert lesion_share_of_patches(corners, 10.0, lesions) == pytest.approx([1, 0.5, 0, 0.25, 0])


def test_patches_that_are_half_lesion_are_left_out() -> None:
    attention, share = np.array([0.5, 0.3, 0.9, 0.1]), np.array([1.0, 0.7, 0.2, 0.0])
    assert attention_auc(attention, share) == 1
    assert attention_auc(attention, share, negative_share=0.2) == 0.5
