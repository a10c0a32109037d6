from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.datasets.manifest import SlideRecord, folds_by_case, split_by_case
from wsi_ips.errors import ConfigError

CLASSES = ("normal", "tumor")


@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from(CLASSES)), min_size=1, max_size=60), st.integers()
)
def test_a_case_never_lies_in_two_splits(slides: list[tuple[int, str]], seed: int) -> None:
    records = [
        SlideRecord(str(number), f"case{case}", {"label": label}, "train", Path("x"))
        for number, (case, label) in enumerate(slides)
    ]
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    divided = split_by_case(records, fractions=fractions, seed=seed)
    assert len({(record.case_id, record.split) for record in divided}) == len({r.case_id for r in divided})
    assert divided == split_by_case(records, fractions=fractions, seed=seed)
    assert [record.slide_id for record in divided] == [record.slide_id for record in records]


def test_labels_are_spread_over_the_splits() -> None:
    records = [
        SlideRecord(str(i), f"c{i}", {"label": CLASSES[i % 4 == 0]}, "train", Path("x")) for i in range(200)
    ]
    divided = split_by_case(records, fractions={"train": 0.5, "test": 0.5}, seed=3)
    for split in ("train", "test"):
        labels = [record.labels["label"] for record in divided if record.split == split]
        assert (labels.count("tumor"), len(labels)) == (25, 100)
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_case(records, fractions={"train": 0.5}, seed=0)


def slides(*cases: tuple[str, int]) -> list[SlideRecord]:
    """(label, number of slides) of each case."""
    return [
        SlideRecord(f"{case}_{slide}", f"c{case}", {"label": label}, "train", Path("x"))
        for case, (label, count) in enumerate(cases)
        for slide in range(count)
    ]


@given(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(1, 3)), min_size=10, max_size=40),
    st.integers(2, 5),
    st.integers(),
)
def test_folds_share_out_the_cases_of_every_label_evenly(
    cases: list[tuple[str, int]], k: int, seed: int
) -> None:
    records = slides(*cases)
    found = Counter(label for label, _ in cases)
    if min(found.values()) < k:
        with pytest.raises(ConfigError, match=f"{k} folds need {k} cases with label"):
            folds_by_case(records, k=k, column="label", seed=seed)
        return
    folds = folds_by_case(records, k=k, column="label", seed=seed)
    assert folds == folds_by_case(records, k=k, column="label", seed=seed)
    placed = {(record.case_id, fold) for record, fold in zip(records, folds, strict=True)}
    assert len(placed) == len(cases)
    sizes = Counter(fold for _, fold in placed)
    assert max(sizes.values()) - min(sizes[fold] for fold in range(k)) <= 1
    label_of = {record.case_id: record.labels["label"] for record in records}
    for label in found:
        per_fold = Counter(fold for case, fold in placed if label_of[case] == label)
        assert max(per_fold.values()) - min(per_fold[fold] for fold in range(k)) <= 1


def test_another_seed_divides_otherwise() -> None:
    records = slides(*[("normal", 1)] * 30)
    first, other = (folds_by_case(records, k=3, column="label", seed=seed) for seed in (0, 1))
    assert first != other


def test_folds_without_labels_need_only_cases_enough() -> None:
    records = slides(("normal", 2), ("tumor", 1), ("normal", 1))
    assert sorted(set(folds_by_case(records, k=3, column=None, seed=0))) == [0, 1, 2]
    for k in (1, 4):
        with pytest.raises(ConfigError, match=r"2 folds or more|take 3 folds or fewer"):
            folds_by_case(records, k=k, column=None, seed=0)
