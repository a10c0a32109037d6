"""Faithfulness of a map, on a bag where it is known what decides."""

import pytest
import torch
from torch import Tensor

from wsi_ips.evaluation.faithfulness import faithfulness, flipping_curve, step_sizes

FEATURES = torch.zeros(40, 2)
FEATURES[[3, 17, 30]] = torch.tensor([5.0, 0.0])


def predict(x_nC: Tensor) -> Tensor:
    return (x_nC[:, 0].amax() - 2).sigmoid()


def test_the_map_that_tells_is_better_than_a_random_one_and_its_reverse_worse() -> None:
    right = faithfulness(predict, FEATURES, FEATURES[:, 0])
    wrong = faithfulness(predict, FEATURES, -FEATURES[:, 0])
    assert right.between > 0.6
    assert wrong.between == pytest.approx(-right.between)
    assert abs(right.random) < right.between / 2
    assert faithfulness(predict, FEATURES, FEATURES[:, 0]) == right


def test_a_curve_begins_with_the_whole_bag_and_ends_with_the_empty_one() -> None:
    curve = flipping_curve(predict, FEATURES, FEATURES[:, 0], steps=7)
    assert len(curve) == 8
    assert curve[0] == predict(FEATURES)
    assert curve[-1] == predict(torch.zeros(40, 2))
    added = flipping_curve(predict, FEATURES, FEATURES[:, 0], steps=7, mode="add")
    assert (added[0], added[-1]) == (curve[-1], curve[0])


def test_equal_scores_and_small_bags_still_take_even_steps() -> None:
    assert step_sizes(40, 10) == [4] * 10
    assert step_sizes(3, 100) == [1, 1, 1]
    assert sum(step_sizes(47, 10)) == 47
    assert set(step_sizes(47, 10)) == {4, 5}
    seen: list[int] = []
    flipping_curve(lambda bag: (seen.append(len(bag)), predict(bag))[1], FEATURES, torch.zeros(40), steps=4)
    assert seen == [40, 30, 20, 10, 40]  # the empty bag is as large as the whole one


def test_patches_keep_their_order() -> None:
    bags: list[Tensor] = []
    x = torch.arange(5.0)[:, None]

    def watch(bag: Tensor) -> Tensor:
        bags.append(bag[:, 0])
        return bag.sum()

    flipping_curve(watch, x, torch.tensor([2.0, 9.0, 4.0, 1.0, 3.0]), steps=5)
    assert [bag.tolist() for bag in bags[1:4]] == [[0, 2, 3, 4], [0, 3, 4], [0, 3]]
