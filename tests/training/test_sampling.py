from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError
from wsi_ips.training.sampling import order_of_epoch

Labels = list[int]


def bags(labels: Labels) -> list[dict[str, Target]]:
    return [{"label": label} for label in labels]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(), st.integers(0, 5))
def test_a_shuffled_epoch_shows_every_bag_once(labels: Labels, seed: int, epoch: int) -> None:
    order = order_of_epoch(bags(labels), seed=seed, epoch=epoch, balanced=False)
    assert sorted(order) == list(range(len(labels)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(), st.integers(0, 5))
def test_a_balanced_epoch_shows_every_class_equally_often(labels: Labels, seed: int, epoch: int) -> None:
    order = order_of_epoch(bags(labels), seed=seed, epoch=epoch, balanced=True)
    assert len(order) == len(labels)
    shown = Counter(labels[index] for index in order)
    counts = [shown[label] for label in set(labels)]
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(), st.integers(1, 30))
def test_over_epochs_all_bags_of_a_class_come_equally_often(labels: Labels, seed: int, epochs: int) -> None:
    shown: Counter[int] = Counter()
    for epoch in range(epochs):
        shown.update(order_of_epoch(bags(labels), seed=seed, epoch=epoch, balanced=True))
    for label in set(labels):
        counts = [shown[index] for index in range(len(labels)) if labels[index] == label]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_depends_on_seed_and_epoch_alone(balanced: bool) -> None:
    targets = bags([0] * 30 + [1] * 10)
    orders = [
        order_of_epoch(targets, seed=seed, epoch=epoch, balanced=balanced)
        for seed, epoch in ((1, 4), (1, 4), (1, 5), (2, 4))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_classes_do_not_come_in_turn() -> None:
    order = order_of_epoch(bags([0, 1] * 50), seed=0, epoch=0, balanced=True)
    assert {(order[place] + place) % 2 for place in range(100)} == {0, 1}


def test_the_first_softmax_task_says_the_classes_then_a_yes_or_no() -> None:
    targets: list[dict[str, Target]] = [
        {"age": (float(age),), "mixed": (1.0, 0.0), "found": (float(age > 1),), "grade": int(age > 8)}
        for age in range(10)
    ]
    order = order_of_epoch(targets, seed=0, epoch=0, balanced=True)
    assert order.count(9) == 5
    for bag in targets:
        del bag["grade"]
    order = order_of_epoch(targets, seed=0, epoch=0, balanced=True)
    assert sum(index > 1 for index in order) == 5
    for bag in targets:
        del bag["found"]
    with pytest.raises(ConfigError, match="leave it at shuffle"):
        order_of_epoch(targets, seed=0, epoch=0, balanced=True)


def test_which_of_a_frequent_class_come_together_changes_from_lap_to_lap_and_with_the_seed() -> None:
    """20 of the 30 frequent bags an epoch: epoch 3 begins a new lap, as epoch 0 did."""
    targets = bags([0] * 30 + [1] * 10)
    shown = [
        {index for index in order_of_epoch(targets, seed=seed, epoch=epoch, balanced=True) if index < 30}
        for seed, epoch in ((0, 0), (0, 3), (1, 0))
    ]
    assert [len(each) for each in shown] == [20, 20, 20]
    assert shown[0] != shown[1]
    assert shown[0] != shown[2]
